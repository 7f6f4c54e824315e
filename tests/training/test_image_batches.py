"""Batches of whole images: which, mirrored or not, how large; the same for every way to compute."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from rcnnpipe.datasets.policy import Policy
from rcnnpipe.datasets.records import Record
from rcnnpipe.errors import SettingError
from rcnnpipe.models.image_view import ImageView
from rcnnpipe.models.preprocessing import preset
from rcnnpipe.training.distributed import Ranks
from rcnnpipe.training.image_batches import Example, ImageSource
from rcnnpipe.training.loop import Batch
from tests.detectors_made import VIEW
from tests.training.made import SIZE, draw_records, propose_near, record_of

CPU = torch.device("cpu")
ALONE = Ranks(0, 1, CPU)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, ...]:
    return draw_records(tmp_path_factory.mktemp("images"), 5)


def source_of(records: tuple[Record, ...], **settings: Any) -> ImageSource:
    near = [propose_near(one) if len(one.boxes) else np.empty((0, 4)) for one in records]
    usual: dict[str, Any] = {
        "proposals": near,
        "view": VIEW,
        "preprocessing": preset("torchvision"),
        "policy": Policy(),
        "images": 2,
        "ranks": ALONE,
        "seed": 3,
    }
    return ImageSource(records, **(usual | settings))


def examples_of(batch: Batch[Any]) -> list[Example]:
    return [example for _, examples in batch.pieces for example in examples]


def unprepared(image: Tensor) -> Tensor:
    """(3, H, W) network input as 0..255 again."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (image * std.view(3, 1, 1) + mean.view(3, 1, 1)) * 255


def same_batches(first: Batch[Any], second: Batch[Any]) -> None:
    """The same images with the same boxes, each in whatever piece."""
    assert list(first.image_ids) == list(second.image_ids)
    one, two = (
        {
            example.key: (image, example)
            for images, examples in batch.pieces
            for image, example in zip(images, examples, strict=True)
        }
        for batch in (first, second)
    )
    assert one.keys() == two.keys()
    for key, (image, example) in one.items():
        other_image, other = two[key]
        assert torch.equal(image, other_image)
        assert (example.size, example.scale) == (other.size, other.scale)
        assert torch.equal(example.proposals, other.proposals)
        assert torch.equal(example.truth.boxes, other.truth.boxes)
        assert torch.equal(example.truth.labels, other.truth.labels)


@pytest.mark.parametrize("images", [1, 2, 3, 4])
def test_an_epoch_has_every_image_as_it_is_and_mirrored(
    images: int, records: tuple[Record, ...]
) -> None:
    source = source_of(records, images=images)
    drawn = [one for iteration in range(30) for one in source.draw(iteration)]
    orders = []
    for epoch in range(len(drawn) // 10):
        own = drawn[10 * epoch : 10 * epoch + 10]
        assert sorted(own) == [(n, flip) for n in range(5) for flip in (False, True)]
        orders.append(own)
    assert len({tuple(order) for order in orders}) == len(orders) >= 3
    plain = source_of(records, images=images, mirror=False)
    drawn = [one for iteration in range(30) for one in plain.draw(iteration)]
    for epoch in range(len(drawn) // 5):
        assert sorted(drawn[5 * epoch : 5 * epoch + 5]) == [(n, False) for n in range(5)]


def test_draws_depend_on_seed_and_iteration_alone(records: tuple[Record, ...]) -> None:
    source = source_of(records)
    again = source_of(records, ranks=Ranks(1, 2, CPU), accumulate=2, workers=0, cache_bytes=0)
    assert [again.draw(n) for n in (7, 2)] == [source.draw(n) for n in (7, 2)]
    other = source_of(records, seed=4)
    assert [source.draw(n) for n in range(5)] != [other.draw(n) for n in range(5)]


def test_what_was_drawn_is_in_the_batch(records: tuple[Record, ...]) -> None:
    source = source_of(records, images=3)
    for number, batch in enumerate(source.batches(0, 4)):
        drawn = source.draw(number)
        assert list(batch.image_ids) == [records[image].image_id for image, _ in drawn]
        ((pixels, examples),) = batch.pieces
        assert pixels.shape == (3, 3, *SIZE)
        assert [example.key for example in examples] == [(number, place) for place in range(3)]
        for image, example, (index, flip) in zip(pixels, examples, drawn, strict=True):
            record = records[index]
            expected = torch.from_numpy(np.array(Image.open(record.path))).permute(2, 0, 1)
            expected = expected.flip(2) if flip else expected
            torch.testing.assert_close(unprepared(image), expected.float(), atol=1e-3, rtol=0)
            assert example.truth.labels.tolist() == record.labels.tolist()
            assert (example.size, example.scale) == (SIZE, 1)
            own = torch.from_numpy(propose_near(record))
            if flip:
                own = torch.stack((96 - own[:, 2], own[:, 1], 96 - own[:, 0], own[:, 3]), dim=1)
            assert torch.equal(example.proposals, own)
            assert example.proposals.dtype == example.truth.boxes.dtype == torch.float32


def test_boxes_are_mirrored_with_the_pixels(records: tuple[Record, ...]) -> None:
    # The bright square and nothing else is inside of its box, whichever way the image lies.
    seen = Counter[bool]()
    source = source_of(records)
    for number, batch in enumerate(source.batches(0, 5)):
        for images, examples in batch.pieces:
            for image, example in zip(images, examples, strict=True):
                x1, y1, x2, y2 = example.truth.boxes[0].int().tolist()
                bright = unprepared(image)[int(example.truth.labels[0]) - 1] > 200
                assert (x2 - x1, y2 - y1) == (30, 30)
                assert bright[y1:y2, x1:x2].all()
                assert int(bright.sum()) == 900
        seen.update(flip for _, flip in source.draw(number))
    assert seen == {True: 5, False: 5}


def test_truth_under_a_policy() -> None:
    boxes = [(0, 0, 10, 10), (20, 5, 50, 30), (60, 5, 70, 15)]
    record = record_of(boxes, [1, 2, 1], crowd=[1], difficult=[2])
    cases: list[tuple[dict[str, Any], list[int]]] = [
        ({}, [1, -1, 1]),
        ({"crowd": "drop"}, [1, 1]),
        ({"crowd": "keep", "difficult": "ignore"}, [1, 2, -1]),
        ({"crowd": "drop", "difficult": "drop"}, [1]),
    ]
    for policy, labels in cases:
        source = source_of((record,), policy=Policy(**policy))
        truth = source.truth_of(0)
        assert truth.labels.tolist() == labels
        assert len(truth.boxes) == len(labels)
    assert source_of((record_of(),)).truth_of(0).boxes.shape == (0, 4)


def test_images_are_scaled_after_their_pixels_are_prepared(records: tuple[Record, ...]) -> None:
    # 72 x 96 to a shorter side of 100: 133.33 wide, which is 133; boxes stay in original pixels.
    source = source_of(records, view=ImageView((100,), 200), mirror=False)
    (batch,) = source.batches(0, 1)
    ((pixels, examples),) = batch.pieces
    assert pixels.shape == (2, 3, 100, 133)
    for image, example, (index, _) in zip(pixels, examples, source.draw(0), strict=True):
        assert example.scale == 100 / 72
        np.testing.assert_array_equal(example.truth.boxes, records[index].boxes)
        original = torch.from_numpy(np.array(Image.open(records[index].path))).permute(2, 0, 1)
        prepared = preset("torchvision").apply(original)[None]
        expected = interpolate(prepared, (100, 133), mode="bilinear")[0]
        torch.testing.assert_close(image, expected)
    # 96 becomes 90 at most: a scale of 90 / 96.
    short = source_of(records, view=ImageView((80,), 90))
    (batch,) = short.batches(0, 1)
    ((pixels, examples),) = batch.pieces
    assert pixels.shape == (2, 3, 68, 90)  # 67.5, rounded to even
    assert examples[0].scale == 90 / 96


def test_smaller_images_are_padded_with_zeros(tmp_path: Path) -> None:
    sizes = [(40, 60), (60, 45)]
    held = []
    for number, size in enumerate(sizes):
        path = tmp_path / f"{number}.png"
        Image.fromarray(np.full((*size, 3), 200, np.uint8)).save(path)
        held.append(record_of([(5, 5, 20, 20)], [1], image_id=str(number), path=path, size=size))
    boxes = [np.array([(1, 2, 30, 40)], np.float32)] * 2
    settings = {"proposals": boxes, "view": ImageView((40,), 80, multiple=32), "mirror": False}
    source = source_of(tuple(held), **settings)
    (batch,) = source.batches(0, 1)
    ((pixels, examples),) = batch.pieces
    assert pixels.shape == (2, 3, 64, 64)
    for image, example in zip(pixels, examples, strict=True):
        height, width = {sizes[0]: (40, 60), sizes[1]: (53, 40)}[example.size]
        assert (image[:, :height, :width] != 0).all()
        assert not image[:, height:].any()
        assert not image[:, :, width:].any()


def test_of_several_scales_each_image_takes_one(records: tuple[Record, ...]) -> None:
    view = ImageView((36, 72, 108), 180)
    source = source_of(records, view=view, images=2)
    drawn = []
    for batch in source.batches(0, 60):
        ((pixels, examples),) = batch.pieces
        scales = [example.scale for example in examples]
        assert pixels.shape[2] == round(72 * max(scales))
        drawn += scales
    counts = Counter(drawn)
    assert counts.keys() == {0.5, 1, 1.5}
    assert min(counts.values()) >= 25  # of 120, 40 on average with a deviation of 5.2
    assert any(first != second for first, second in zip(drawn[::2], drawn[1::2], strict=True))
    again = source_of(records, view=view, images=2, workers=0)
    assert [e.scale for batch in again.batches(0, 60) for e in examples_of(batch)] == drawn


@pytest.mark.parametrize("images", [2, 4])
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_ranks_and_parts_together_see_what_one_sees(
    images: int, world: int, accumulate: int, records: tuple[Record, ...]
) -> None:
    view = ImageView((60, 72), 120)
    whole = list(source_of(records, view=view, images=images).batches(0, 3))
    shares = [
        list(
            source_of(
                *(records,),
                view=view,
                images=images,
                ranks=Ranks(rank, world, CPU),
                accumulate=accumulate,
            ).batches(0, 3)
        )
        for rank in range(world)
    ]
    for number, expected in enumerate(whole):
        parts = [share[number] for share in shares]
        counts = [len(example) for part in parts for _, example in part.pieces]
        pieces = min(accumulate, images // world)
        assert counts == [images // world // pieces] * (world * pieces)
        together = Batch(expected.image_ids, [piece for part in parts for piece in part.pieces])
        for part in parts:
            assert list(part.image_ids) == list(expected.image_ids)
        keys = [example.key for example in examples_of(together)]
        assert sorted(keys) == [(number, place) for place in range(images)]
        # Padding depends on what is in a piece: images are compared without it.
        one, two = (unpadded(batch, view) for batch in (expected, together))
        same_batches(one, two)


def unpadded(batch: Batch[Any], view: ImageView) -> Batch[Any]:
    pieces = []
    for images, examples in batch.pieces:
        for image, example in zip(images, examples, strict=True):
            height, width = view.resized_size(example.size, example.scale)
            pieces.append((image[None, :, :height, :width], [example]))
    return Batch(batch.image_ids, pieces)


@pytest.mark.parametrize("changed", [{"workers": 0}, {"workers": 3}, {"cache_bytes": 0}])
def test_workers_and_memory_change_nothing(
    changed: dict[str, int], records: tuple[Record, ...]
) -> None:
    whole = list(source_of(records).batches(0, 7))
    again = list(source_of(records, **changed).batches(0, 7))
    resumed = list(source_of(records, **changed).batches(5, 7))
    assert len(whole) == len(again) == 7
    for first, second in zip(whole + whole[5:], again + resumed, strict=True):
        same_batches(first, second)


def test_some_of_the_records_alone(records: tuple[Record, ...]) -> None:
    source = source_of(records)
    few = source.only([3, 1])
    assert [record.image_id for record in few.records] == ["003", "001"]
    drawn = [one for iteration in range(2) for one in few.draw(iteration)]
    assert sorted(drawn) == [(0, False), (0, True), (1, False), (1, True)]
    for batch in few.batches(0, 2):
        for example, image_id in zip(examples_of(batch), batch.image_ids, strict=True):
            record = records[int(image_id)]
            assert example.truth.labels.tolist() == record.labels.tolist()
            assert len(example.proposals) == len(propose_near(record))


def test_images_that_fit_no_memory_are_told(records: tuple[Record, ...]) -> None:
    source = source_of(records, view=replace(VIEW, scales=(10**8,), longest=10**9))
    with pytest.raises(SettingError, match="x 100000000 pixels does not fit into the memory"):
        next(iter(source.batches(0, 1)))
