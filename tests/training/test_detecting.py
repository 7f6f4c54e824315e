"""The loss of a detector against loops over regions, its gradients, and its sum over parts."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rcnnpipe.datasets.records import Record
from rcnnpipe.models.detector import Detector
from rcnnpipe.randomness import generator
from rcnnpipe.systems.rcnn import Sampling, Solver
from rcnnpipe.training.detecting import DetectionLoss
from rcnnpipe.training.distributed import Ranks
from rcnnpipe.training.finetuning import freeze_below, new_trainer
from rcnnpipe.training.image_batches import ImageSource
from rcnnpipe.training.loop import Batch, Part, train
from rcnnpipe.training.region_targets import Sample, sample_regions
from tests.detectors_made import VIEW, detector_of, fast_parts, neck_parts
from tests.reference import regions as slow
from tests.training import test_image_batches
from tests.training.made import draw_records, propose_near, record_of

CPU = torch.device("cpu")
ALONE = Ranks(0, 1, CPU)
# Few regions of more candidates: every image gives as many.
MIXED = 2  # seed of a first batch with both classes
SAMPLING = Sampling(batch_size=16, foreground=4, background_from=0.0)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, ...]:
    return draw_records(tmp_path_factory.mktemp("images"), 4)


def source_of(records: tuple[Record, ...], **settings: Any) -> ImageSource:
    boxes = [propose_near(record, 14) if len(record.boxes) else BARE for record in records]
    usual: dict[str, Any] = {"proposals": boxes, "seed": MIXED}
    return test_image_batches.source_of(records, **(usual | settings))


BARE = np.array([(5, 5, 30, 30)], np.float32)


def first_batch(source: ImageSource) -> Batch[Any]:
    return next(iter(source.batches(0, 1)))


def without_objects(records: tuple[Record, ...]) -> tuple[Record, ...]:
    return tuple(record_of(image_id=one.image_id, path=one.path, size=one.size) for one in records)


def loss_of(detector: Detector, **settings: Any) -> DetectionLoss:
    usual: dict[str, Any] = {"detector": detector, "sampling": SAMPLING, "images": 2}
    return DetectionLoss(**(usual | settings))


def samples_of(examples: Any, sampling: Sampling = SAMPLING, seed: int = 0) -> list[Sample]:
    """What each image adds, drawn for its iteration and place alone."""
    return [
        sample_regions(
            *(example.proposals, example.truth, sampling, 2),
            generator(seed, "regions", *example.key),
        )
        for example in examples
    ]


def expected_loss(
    detector: Detector, images: Tensor, examples: Any, samples: list[Sample], beta: float = 1.0
) -> tuple[float, float]:
    """By one region after another."""
    logits, deltas, labels, targets = [], [], [], []
    with torch.inference_mode():
        for number, (example, sample) in enumerate(zip(examples, samples, strict=True)):
            maps = detector.maps(images[number : number + 1])
            for box, label, target in zip(*sample, strict=True):
                pooled = detector.pool(maps, [box[None]], [(example.scale, example.scale)])
                found = detector.behind(pooled)
                logits.append(found["logits"][0].tolist())
                deltas.append(found["deltas"][0].tolist())
                labels.append(int(label))
                targets.append(target.tolist())
    mean, deviation = detector.deltas_mean.tolist(), detector.deltas_std.tolist()
    return slow.multi_task_loss(logits, deltas, labels, targets, mean, deviation, beta)


def figures(part: Part) -> dict[str, float]:
    return {name: float(share[0] / share[1]) for name, share in part.shares.items()}


@pytest.mark.parametrize("parts", [fast_parts, neck_parts])
@pytest.mark.parametrize("scale", [72, 100])
def test_the_loss_equals_the_slow_reference(
    parts: Any, scale: int, records: tuple[Record, ...]
) -> None:
    detector = detector_of(parts=parts).train()
    view = replace(VIEW, scales=(scale,), longest=200)
    ((images, examples),) = first_batch(source_of(records, view=view)).pieces
    samples = samples_of(examples)
    assert [len(sample.boxes) for sample in samples] == [8, 8]
    assert {int(label) for sample in samples for label in sample.labels} == {0, 1, 2}
    for beta, weight in ((1.0, 1.0), (0.2, 1.0), (1.0, 2.5)):
        part = loss_of(detector, beta=beta, box_weight=weight)((images, examples))
        classes, boxes = expected_loss(detector, images, examples, samples, beta)
        assert boxes > 0.1
        assert float(part.loss.detach()) == pytest.approx(classes + weight * boxes, rel=1e-4)
        assert figures(part)["class-loss"] == pytest.approx(classes, rel=1e-4)
        assert figures(part)["box-loss"] == pytest.approx(boxes, rel=1e-4)


def test_smooth_l1_is_the_sheets() -> None:
    # abs(x) .1 .5 1 2 -> .005 .125 .5 1.5
    rows = [[0.0, 0, 0, 0, 0.1, 0.5, 1.0, -2.0]]
    zeros, ones = [[0.0] * 4] * 2, [[1.0] * 4] * 2
    classes, boxes = slow.multi_task_loss([[0, 0]], rows, [1], [[0.0] * 4], zeros, ones)
    assert classes == pytest.approx(np.log(2))
    assert boxes == pytest.approx(0.005 + 0.125 + 0.5 + 1.5)


def test_unequal_numbers_of_regions_are_averaged_together(records: tuple[Record, ...]) -> None:
    # One image gives few regions: those of a batch in one piece weigh the same all the same.
    source = source_of(records)
    first = source.draw(0)[0][0]
    near = [boxes[: 2 if n == first else None] for n, boxes in enumerate(source.proposals)]
    ((images, examples),) = first_batch(replace(source, proposals=near)).pieces
    samples, detector = samples_of(examples), detector_of().train()
    assert [len(sample.boxes) for sample in samples] == [2, 8]
    part = loss_of(detector)((images, examples))
    classes, boxes = expected_loss(detector, images, examples, samples)
    assert float(part.loss.detach()) == pytest.approx(classes + boxes, rel=1e-4)


def test_background_alone_has_no_regression(records: tuple[Record, ...]) -> None:
    ((images, examples),) = first_batch(source_of(without_objects(records))).pieces
    detector = detector_of().train()
    part = loss_of(detector)((images, examples))
    classes, boxes = expected_loss(detector, images, examples, samples_of(examples))
    assert boxes == 0
    assert float(part.loss.detach()) == pytest.approx(classes, rel=1e-4)
    part.loss.backward()  # type: ignore[no-untyped-call]
    assert detector.class_scores.weight.grad is not None
    assert detector.class_scores.weight.grad.any()
    assert part.shares["foreground-accuracy"].tolist() == [0, 0]
    assert float(part.shares["background-accuracy"][1]) == 2  # one region of each image


def test_images_without_regions_add_nothing(records: tuple[Record, ...]) -> None:
    # What overlaps nothing by a tenth is nothing to learn from in Fast R-CNN.
    sampling = replace(SAMPLING, background_from=0.1)
    for parts in (fast_parts, neck_parts):
        detector = detector_of(parts=parts).train()
        ((images, examples),) = first_batch(source_of(without_objects(records))).pieces
        part = loss_of(detector, sampling=sampling)((images, examples))
        assert float(part.loss.detach()) == 0
        part.loss.backward()  # type: ignore[no-untyped-call]
        assert all(p.grad is None or not p.grad.any() for p in detector.parameters())


def gradients(detector: Detector, loss: DetectionLoss, pieces: Any) -> dict[str, Tensor]:
    detector.zero_grad()
    for piece in pieces:
        loss(piece).loss.backward()  # type: ignore[no-untyped-call]
    return {
        name: parameter.grad.clone()
        for name, parameter in detector.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("parts", [fast_parts, neck_parts])
def test_gradients_reach_every_layer_that_is_not_frozen(
    parts: Any, records: tuple[Record, ...]
) -> None:
    detector = detector_of(parts=parts).train()
    pieces = first_batch(source_of(records)).pieces
    found = gradients(detector, loss_of(detector), pieces)
    assert found.keys() == dict(detector.named_parameters()).keys()
    assert all(gradient.any() for gradient in found.values())
    assert {"network.conv1.weight", "box_deltas.bias"} <= found.keys()
    freeze_below(detector.network, "conv3")
    frozen = gradients(detector, loss_of(detector), pieces)
    lower = {f"network.conv{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")}
    assert found.keys() - frozen.keys() == lower
    for name, gradient in frozen.items():
        torch.testing.assert_close(gradient, found[name])


def test_gradients_are_those_of_small_steps(records: tuple[Record, ...]) -> None:
    detector = detector_of().train()
    pieces, loss = list(first_batch(source_of(records)).pieces), loss_of(detector)
    found = gradients(detector, loss, pieces)
    for name in ("class_scores.bias", "box_deltas.bias", "network.fc7.bias"):
        parameter = dict(detector.named_parameters())[name]
        place, step = int(found[name].abs().argmax()), 1e-2
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter[place] += sign * step
                values.append(float(sum(loss(piece).loss for piece in pieces)))
                parameter[place] -= sign * step
        slope = (values[0] - values[1]) / (2 * step)
        assert slope == pytest.approx(float(found[name][place]), rel=0.02)


def test_without_box_regression(records: tuple[Record, ...]) -> None:
    detector = detector_of().train()
    pieces = list(first_batch(source_of(records)).pieces)
    whole, classes = loss_of(detector)(pieces[0]), loss_of(detector, box_weight=0.0)(pieces[0])
    assert float(classes.loss.detach()) == pytest.approx(figures(whole)["class-loss"])
    found = gradients(detector, loss_of(detector, box_weight=0.0), pieces)
    for name in ("box_deltas.weight", "box_deltas.bias"):
        assert not found.get(name, torch.zeros(1)).any()
    assert found["class_scores.weight"].any()


def test_only_the_true_class_learns_to_move(records: tuple[Record, ...]) -> None:
    red = tuple(record for record in records if record.labels[0] == 1)
    detector = detector_of().train()
    pieces = first_batch(source_of(red)).pieces
    gradient = gradients(detector, loss_of(detector), pieces)["box_deltas.bias"].view(3, 4)
    assert gradient[1].all()
    assert not gradient[[0, 2]].any()


def test_accuracies_count_regions(records: tuple[Record, ...]) -> None:
    detector = detector_of().train()
    with torch.no_grad():
        detector.class_scores.weight.zero_()
        for right, bias in (("background", [1.0, 0, 0]), ("red", [0.0, 1, 0])):
            detector.class_scores.bias.copy_(torch.tensor(bias))
            ((images, examples),) = first_batch(source_of(records)).pieces
            part = loss_of(detector)((images, examples))
            labels = torch.cat([sample.labels for sample in samples_of(examples)])
            foreground, background = (
                part.shares[f"{kind}-accuracy"].tolist() for kind in ("foreground", "background")
            )
            assert (foreground[1], background[1]) == (4, 12)
            assert foreground[0] == (int((labels == 1).sum()) if right == "red" else 0)
            assert background[0] == (int((labels == 0).sum()) if right == "background" else 0)


def shares_of(records: tuple[Record, ...], world: int, accumulate: int) -> Iterator[Any]:
    for rank in range(world):
        ranks = Ranks(rank, world, CPU)
        source = source_of(records, images=4, ranks=ranks, accumulate=accumulate)
        yield from first_batch(source).pieces


@pytest.mark.parametrize(("world", "accumulate"), [(1, 2), (1, 4), (2, 1), (2, 2), (4, 1)])
def test_parts_and_ranks_add_up_to_the_whole(
    world: int, accumulate: int, records: tuple[Record, ...]
) -> None:
    sampling = replace(SAMPLING, batch_size=32, foreground=8)
    detector = detector_of().train()
    loss = loss_of(detector, sampling=sampling, images=4)
    whole, parts = list(shares_of(records, 1, 1)), list(shares_of(records, world, accumulate))
    assert (len(whole), len(parts)) == (1, world * accumulate)
    expected, found = loss(*whole), [loss(part) for part in parts]
    total = sum(float(part.loss.detach()) for part in found)
    assert total == pytest.approx(float(expected.loss.detach()), rel=1e-5)
    for name, share in expected.shares.items():
        summed = torch.stack([part.shares[name] for part in found]).sum(0)
        torch.testing.assert_close(summed, share)
    one, two = gradients(detector, loss, whole), gradients(detector, loss, parts)
    assert one.keys() == two.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, rtol=1e-3, atol=1e-5)


def test_draws_depend_on_the_seed_alone(records: tuple[Record, ...]) -> None:
    detector = detector_of().train()
    ((images, examples),) = first_batch(source_of(records)).pieces
    first, same, other = (
        float(loss_of(detector, seed=seed)((images, examples)).loss.detach()) for seed in (0, 0, 1)
    )
    assert first == same != other
    # A later iteration with the same images draws other regions.
    later = [replace(example, key=(9, example.key[1])) for example in examples]
    assert float(loss_of(detector)((images, later)).loss.detach()) != first


def trained(
    records: tuple[Record, ...], iterations: int, **settings: Any
) -> tuple[Detector, dict[str, list[float]]]:
    """A detector and the curves of its training, four values each."""
    detector = detector_of(loud=False)
    detector.deltas_std.fill_(0.1)
    trainer = new_trainer(detector, Solver(learning_rate=0.005), ALONE)
    batches = source_of(records, **settings).batches(0, iterations)
    loss = loss_of(detector)
    for _ in train(trainer, batches, loss, iterations, log_every=iterations // 4):
        pass
    return detector.eval(), trainer.curves


def test_training_in_parts_ends_where_training_at_once_does(records: tuple[Record, ...]) -> None:
    (whole, curves), (parts, of_parts) = (trained(records, 8, accumulate=n) for n in (1, 2))
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-4, atol=1e-6)
    assert curves.keys() == of_parts.keys()
    for name, values in curves.items():
        np.testing.assert_allclose(of_parts[name], values, rtol=1e-5)


def test_it_learns_to_tell_and_to_move(records: tuple[Record, ...]) -> None:
    detector, curves = trained(records, 80)
    assert curves["class-loss"][-1] < 0.4 * curves["class-loss"][0]
    assert curves["box-loss"][-1] < 0.8 * max(curves["box-loss"])
    for kind in ("foreground", "background"):
        assert curves[f"{kind}-accuracy"][-1] > 0.9
    # What normalises deltas is no weight: it stays as it is.
    assert (detector.deltas_std == 0.1).all()
    assert not detector.deltas_mean.any()
