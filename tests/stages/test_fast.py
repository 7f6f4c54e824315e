"""Fast R-CNN from drawn images to scores: contents, lineage, repeats, resuming, wrong input."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result

from rcnnpipe.artifacts.detections import read_candidates, read_detections
from rcnnpipe.artifacts.features import open_features
from rcnnpipe.artifacts.model import read_model
from rcnnpipe.artifacts.proposals import read_proposals
from rcnnpipe.datasets import open_dataset
from rcnnpipe.extraction.detectors import DetectorExtractor
from rcnnpipe.extraction.regions import Regions
from rcnnpipe.images import read_image
from rcnnpipe.ragged import rows_of
from tests.reference import regions as slow
from tests.stages.made import (
    ON_CPU,
    Files,
    detector_in,
    open_header,
    run,
    run_by_two_ranks,
    sentence,
    stopped_after,
    tensors_of,
)
from tests.stages.test_finetune import coco_of
from tests.training.made import write_proposals

TUNING = (
    *("--system", "fast", "--scales", 72, "--iterations", 8, "--batch-size", 32),
    *("--foreground", 8, "--lr", 0.003, "--log-every", 4, "--checkpoint-every", 3, *ON_CPU),
)
CLASSES = ("background", "red", "green")
LAYERS = ("--layers", "pool5,fc7,logits,deltas")


class Chain(Files):
    """The files of a chain that ran, by name; and the commands that made them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.pixels = ("--model", folder / "model.h5", "--proposals", folder / "proposals.h5")
        self.cached = ("--features", folder / "features.h5")

    def finetune(self, out: Path, *more: object, **how: bool) -> Result:
        words = ("finetune", *self.seen, "--init", self.weights, *TUNING)
        return run(*words, *more, "--out", out, **how)

    def extract(self, out: Path, *more: object, **how: bool) -> Result:
        words = ("extract-features", *self.seen, "--model", self.model, *ON_CPU, *LAYERS)
        return run(*words, *more, "--out", out, **how)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    folder = tmp_path_factory.mktemp("fast")
    dataset = open_dataset(coco_of(folder / "data", 8), "train")
    write_proposals(folder / "proposals.h5", dataset)
    write_proposals(folder / "few.h5", dataset, images=5)
    chain = Chain(folder)
    few = ("--network", "demo", "--epochs", 1, "--batch-size", 8, *ON_CPU)
    run("pretrain", *chain.data, *few, "--out", chain.weights)
    chain.finetune(chain.model)
    chain.extract(chain.features)
    run("train-svm", chain.features, "--layer", "fc7", "--out", chain.svm)
    run("train-bbox-reg", chain.features, "--layer", "pool5", "--out", chain.bbox_reg)
    chain.detect(chain.detections, *chain.cached, "--keep-candidates")
    return chain


def test_the_model_is_a_detector_and_tells_how_it_was_made(chain: Chain) -> None:
    model = read_model(chain.model)
    header, settings = model.header, model.header.settings
    assert header.classes == CLASSES
    assert header.inputs == {
        "data": open_dataset(chain.data[0], "train").id,
        "proposals": open_header(chain.proposals).id,
        "init": open_header(chain.weights).id,
    }
    # Defaults are Fast R-CNN's own.
    expected = {
        **{"system": "fast", "network": "demo", "train-from": "conv2", "images": 2},
        **{"background-from": 0.1, "foreground-overlap": 0.5, "mirror": True, "box-weight": 1.0},
        **{"bias-lr-multiplier": 2.0, "step": 30_000},
    }
    assert {name: settings[name] for name in expected} == expected
    foreign = {"crop", "padding", "features", "memory", "image-cache", "checkpoint-every", "init"}
    foreign |= {"classifier-lr-multiplier"}
    assert not settings.keys() & foreign
    assert settings["parts"] == model.architecture["detector"]
    assert settings["parts"]["view"] | {"multiple": 1} == {
        "scales": [72],
        "longest": 120,
        "multiple": 1,
        "rounding": "round",
    }
    assert settings["parts"]["cut"] == {
        "map": "conv5",
        "source": "pool5",
        "layer": "fc7",
        "size": 3,
    }
    assert (settings["parts"]["pooling"]["kind"], settings["parts"]["pooling"]["strides"]) == (
        "pool",
        [8],
    )
    assert model.curves.keys() == {
        *("iteration", "loss", "learning-rate", "class-loss", "box-loss"),
        *("foreground-accuracy", "background-accuracy"),
    }
    assert model.curves["iteration"].tolist() == [4, 8]
    total = model.curves["class-loss"] + model.curves["box-loss"]
    np.testing.assert_allclose(model.curves["loss"], total, rtol=1e-5)


def test_all_but_the_first_convolution_is_trained(chain: Chain, tmp_path: Path) -> None:
    before, after = tensors_of(chain.weights), tensors_of(chain.model)
    for name, value in before.items():
        if name.startswith("fc8"):
            assert f"network.{name}" not in after
        else:
            same = np.array_equal(value, after[f"network.{name}"])
            assert same == name.startswith("conv1."), name
    chain.finetune(tmp_path / "m.h5", "--train-from", "fc7")
    upper = tensors_of(tmp_path / "m.h5")
    there = [name for name in before if f"network.{name}" in upper]
    kept = {name for name in there if np.array_equal(before[name], upper[f"network.{name}"])}
    assert kept == {name for name in before if not name.startswith(("fc7", "fc8"))}
    assert read_model(tmp_path / "m.h5").header.settings["train-from"] == "fc7"


def test_without_weights_everything_is_trained(chain: Chain, tmp_path: Path) -> None:
    words = ("finetune", *chain.seen, "--network", "demo", *TUNING)
    run(*words, "--iterations", 0, "--out", tmp_path / "start.h5")
    run(*words, "--out", tmp_path / "m.h5")
    before, after = tensors_of(tmp_path / "start.h5"), tensors_of(tmp_path / "m.h5")
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == before.keys() - {"deltas_mean", "deltas_std"}
    assert before["class_scores.weight"].std() == pytest.approx(0.01, rel=0.1)
    assert before["box_deltas.weight"].std() == pytest.approx(0.001, rel=0.1)


def test_deltas_are_normalised_over_the_whole_set(chain: Chain) -> None:
    dataset, proposals = open_dataset(chain.data[0], "train"), read_proposals(chain.proposals)
    images = []
    for number, record in enumerate(dataset.records):
        boxes = proposals.boxes[rows_of(proposals.offsets, number)].tolist()
        objects = list(zip(record.boxes.tolist(), record.labels.tolist(), strict=True))
        images.append((boxes, objects))
    means, deviations = slow.statistics(images, 0.5, 3)
    tensors = tensors_of(chain.model)
    np.testing.assert_allclose(tensors["deltas_mean"], means, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(tensors["deltas_std"], deviations, rtol=1e-5, atol=1e-7)
    assert (tensors["deltas_std"][1:] < 0.2).all()


def test_it_learns_to_find_things(chain: Chain, tmp_path: Path) -> None:
    model, found = tmp_path / "m.h5", tmp_path / "d.h5"
    chain.finetune(model, "--iterations", 60, "--log-every", 15)
    curves = read_model(model).curves
    assert curves["class-loss"][-1] < 0.5 * curves["class-loss"][0]
    assert curves["foreground-accuracy"][-1] > 0.8
    chain.detect(found, "--model", model, "--proposals", chain.proposals)
    run("evaluate", found, "--data", *chain.data, "--out", tmp_path / "scores")
    metrics = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert metrics["voc_map_area"] > 0.7


def test_features_are_what_the_detector_makes(chain: Chain) -> None:
    detector, dataset = detector_in(chain.model), open_dataset(chain.data[0], "train")
    layers = ("pool5", "fc7", "logits", "deltas")
    extractor = DetectorExtractor(detector, layers, torch.device("cpu"), detector.parts.view)
    with open_features(chain.features) as features:
        assert features.layers == {"deltas": 12, "fc7": 256, "logits": 3, "pool5": 864}
        assert features.header.classes == CLASSES
        assert features.header.inputs["model"] == open_header(chain.model).id
        assert features.cells is None
        assert features.is_truth.sum() == 8
        for number in (0, 5):
            rows, record = rows_of(features.offsets, number), dataset.records[number]
            found = extractor(read_image(record.path), Regions(record, features.boxes[rows]))
            for layer in layers:
                np.testing.assert_allclose(
                    features.rows(layer, rows).astype(np.float32),
                    found[layer].float(),
                    rtol=1e-3,
                    atol=1e-4,
                )
            # Deltas are such that regions move by them as they are.
            tensors = tensors_of(chain.model)
            weight, bias = tensors["box_deltas.weight"], tensors["box_deltas.bias"]
            raw = features.rows("fc7", rows).astype(np.float32) @ weight.T + bias
            moved = raw * tensors["deltas_std"].ravel() + tensors["deltas_mean"].ravel()
            np.testing.assert_allclose(features.rows("deltas", rows), moved, rtol=1e-3, atol=1e-4)


def same_detections(first: Path, second: Path) -> None:
    """Equal up to the 16 bits of a cache."""
    one, two = read_detections(first), read_detections(second)
    assert len(one.boxes) > 8
    np.testing.assert_array_equal(one.offsets, two.offsets)
    np.testing.assert_array_equal(one.labels, two.labels)
    np.testing.assert_allclose(one.scores, two.scores, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(one.boxes, two.boxes, atol=1e-3)


def linear(chain: Chain, kind: str) -> tuple[object, ...]:
    return {
        "own": (),
        "no refine": ("--no-refine",),
        "svm": ("--svm", chain.svm),
        "svm and regression": ("--svm", chain.svm, "--bbox-reg", chain.bbox_reg),
        "regression": ("--bbox-reg", chain.bbox_reg),
    }[kind]


KINDS = ("own", "no refine", "svm", "svm and regression", "regression")


@pytest.mark.parametrize("kind", KINDS)
def test_detections_from_pixels_equal_those_from_the_cache(
    kind: str, chain: Chain, tmp_path: Path
) -> None:
    # All candidates, without suppression, in which tiny differences could tell.
    more = (*linear(chain, kind), "--nms-overlap", 1, "--max-per-set", 0)
    pixels, cached = tmp_path / "pixels.h5", tmp_path / "cached.h5"
    chain.detect(pixels, *chain.pixels, *more)
    chain.detect(cached, *chain.cached, *more)
    by_region(pixels, cached)
    chain.detect(tmp_path / "d.h5", *chain.cached, *linear(chain, kind))
    run("evaluate", tmp_path / "d.h5", "--data", *chain.data, "--out", tmp_path / "scores")
    assert "voc_map_area" in json.loads((tmp_path / "scores" / "metrics.json").read_text())


def by_region(first: Path, second: Path) -> None:
    """Each candidate of a class in the one has its like in the other, if not at the same place."""
    one, two = read_detections(first), read_detections(second)
    assert len(one.boxes) == len(two.boxes) == 2 * 80
    for number in range(8):
        rows = rows_of(one.offsets, number)
        assert rows == rows_of(two.offsets, number)
        for label in (1, 2):
            sides = [file.labels[rows] == label for file in (one, two)]
            scores = [file.scores[rows][own] for file, own in zip((one, two), sides, strict=True)]
            np.testing.assert_allclose(scores[0], scores[1], rtol=2e-3, atol=1e-3)
            boxes = [file.boxes[rows][own] for file, own in zip((one, two), sides, strict=True)]
            distance = np.abs(boxes[0][:, None] - boxes[1][None]).max(axis=2)
            assert (distance.min(axis=1) < 0.02).all()


def test_boxes_move_by_the_deltas_of_their_class(chain: Chain, tmp_path: Path) -> None:
    more = ("--nms-overlap", 1, "--max-per-set", 0)
    plain, moved = tmp_path / "plain.h5", tmp_path / "moved.h5"
    chain.detect(plain, *chain.cached, "--no-refine", *more)
    chain.detect(moved, *chain.cached, *more)
    before, after = read_detections(plain), read_detections(moved)
    np.testing.assert_array_equal(before.scores, after.scores)
    np.testing.assert_array_equal(before.labels, after.labels)
    with open_features(chain.features) as features:
        for number in range(8):
            rows = rows_of(features.offsets, number)
            deltas = features.rows("deltas", rows).astype(np.float64)
            proposed = features.boxes[rows]
            own = rows_of(before.offsets, number)
            pairs = zip(before.boxes[own], after.boxes[own], before.labels[own], strict=True)
            for box, refined, label in pairs:
                (row,) = np.flatnonzero((proposed[1:] == box).all(axis=1)) + 1
                tx, ty, tw, th = deltas[row, 4 * label : 4 * label + 4]
                width, height = box[2] - box[0], box[3] - box[1]
                x, y = box[0] + width / 2 + tx * width, box[1] + height / 2 + ty * height
                width, height = width * np.exp(tw), height * np.exp(th)
                corners = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
                expected = np.clip(corners, 0, (96, 72, 96, 72))
                np.testing.assert_allclose(refined, expected, atol=1e-3)
    assert not np.allclose(before.boxes, after.boxes, atol=0.1)


def test_features_without_deltas_leave_boxes_where_they_are(chain: Chain, tmp_path: Path) -> None:
    few, found = tmp_path / "f.h5", tmp_path / "d.h5"
    chain.extract(few, "--layers", "logits")
    told = f"boxes are not moved: no --bbox-reg is given, and {few} has no layer 'deltas'"
    assert told in chain.detect(found, "--features", few).stderr
    assert told not in chain.detect(tmp_path / "m.h5", "--features", few, "--no-refine").stderr
    assert "not moved" not in chain.detect(tmp_path / "m.h5", *chain.cached).stderr
    chain.detect(tmp_path / "plain.h5", *chain.cached, "--no-refine")
    same_detections(found, tmp_path / "plain.h5")
    refused = chain.detect(tmp_path / "no.h5", "--features", few, "--svm", chain.svm, fails=True)
    assert "takes features of layer 'fc7'" in sentence(refused)
    chain.extract(few, "--layers", "fc7")
    refused = chain.detect(tmp_path / "no.h5", "--features", few, fails=True)
    assert "has no layer 'logits', only fc7" in sentence(refused)


def test_an_svm_of_other_classes_does_not_take_the_deltas(chain: Chain, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "annotations").mkdir(parents=True)
    (folder / "images").symlink_to(chain.data[0] / "images")
    text = json.loads((chain.data[0] / "annotations" / "instances_train.json").read_text())
    text["categories"].append({"id": 3, "name": "blue"})
    for number in (0, 3):
        text["annotations"][number]["category_id"] = 3
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(text))
    other = Chain(tmp_path)
    write_proposals(other.proposals, open_dataset(folder, "train"))
    words = ("extract-features", *other.seen, "--model", chain.model, "--layers", "fc7,deltas")
    run(*words, *ON_CPU, "--out", other.features)
    run("train-svm", other.features, "--layer", "fc7", "--out", other.svm)
    pixels = ("--model", chain.model, "--proposals", other.proposals, "--svm", other.svm)
    for source in (pixels, ("--features", other.features, "--svm", other.svm)):
        told = sentence(other.detect(tmp_path / "no.h5", *source, fails=True))
        assert "--no-refine" in told
        assert str(source[1]) in told
        other.detect(tmp_path / "d.h5", *source, "--no-refine")
        assert read_detections(tmp_path / "d.h5").header.classes == (*CLASSES, "blue")


def test_images_and_folders_are_looked_at_without_proposals(chain: Chain, tmp_path: Path) -> None:
    images = chain.data[0] / "images" / "train"
    for place, count in ((images / "000.png", 1), (images, 8)):
        words = ("detect", place, "--model", chain.model, *ON_CPU, "--max-proposals", 30)
        run(*words, "--out", tmp_path / "d.h5")
        found = read_detections(tmp_path / "d.h5")
        assert len(found.image_ids) == count
        assert found.header.classes == CLASSES


def test_several_scales(chain: Chain, tmp_path: Path) -> None:
    model, features = tmp_path / "m.h5", tmp_path / "f.h5"
    chain.finetune(model, "--scales", "48,72,100")
    view = detector_in(model).parts.view
    assert (view.scales, view.longest) == ((48, 72, 100), 167)
    assert open_header(model).settings["scales"] == [48, 72, 100]
    chain.finetune(model, "--scales", "48", "--longest", 60)
    view = detector_in(model).parts.view
    assert (view.scales, view.longest) == ((48,), 60)
    # Other scales than the model's own
    chain.extract(features, "--scales", "40,150")
    assert open_header(features).settings["scales"] == [40, 150]
    with open_features(features) as found, open_features(chain.features) as own:
        np.testing.assert_array_equal(found.boxes, own.boxes)
        one, two = found.rows("fc7", slice(None)), own.rows("fc7", slice(None))
        assert not np.allclose(one, two, atol=0.05)
    chain.detect(tmp_path / "d.h5", *chain.pixels, "--scales", "40,150")
    assert open_header(tmp_path / "d.h5").settings["scales"] == [40, 150]
    refused = chain.detect(tmp_path / "no.h5", *chain.cached, "--scales", "40", fails=True)
    assert "--scales has no meaning with --features" in sentence(refused)


def test_other_parts_are_taken_and_recorded(chain: Chain, tmp_path: Path) -> None:
    out = tmp_path / "m.h5"
    chain.finetune(out, "--pooling", "align", "--images", 4, "--no-mirror", "--iterations", 2)
    detector, settings = detector_in(out), open_header(out).settings
    assert detector.parts.pooling.kind == "align"
    assert (settings["images"], settings["mirror"]) == (4, False)
    run("finetune", *chain.seen, *TUNING, "--network", "demo", "--iterations", 0, "--out", out)
    usual = ("finetune", *chain.seen, "--system", "fast", "--network", "demo", *ON_CPU)
    run(*usual, "--iterations", 0, "--out", out)
    view = detector_in(out).parts.view
    assert (view.scales, view.longest) == ((150,), 250)  # 600 and 1000 of windows of 224


def test_without_box_regression_boxes_learn_nothing(chain: Chain, tmp_path: Path) -> None:
    start, out = tmp_path / "start.h5", tmp_path / "m.h5"
    chain.finetune(start, "--iterations", 0)
    chain.finetune(out, "--box-weight", 0, "--weight-decay", 0)
    before, after = tensors_of(start), tensors_of(out)
    for name in ("box_deltas.weight", "box_deltas.bias"):
        np.testing.assert_array_equal(before[name], after[name])
    assert not np.array_equal(before["class_scores.weight"], after["class_scores.weight"])
    curves = read_model(out).curves
    np.testing.assert_allclose(curves["loss"], curves["class-loss"], rtol=1e-5)


def test_settings_come_from_a_section(chain: Chain, tmp_path: Path) -> None:
    section = tmp_path / "params.yaml"
    section.write_text("fast: {system: fast, scales: [48, 60], box-weight: 0.5, images: 4}\n")
    words = ("finetune", *chain.seen, "--init", chain.weights, "--iterations", 0, *ON_CPU)
    run(*words, "--params", f"{section}:fast", "--out", tmp_path / "m.h5")
    settings = open_header(tmp_path / "m.h5").settings
    assert (settings["system"], settings["box-weight"], settings["images"]) == ("fast", 0.5, 4)
    assert detector_in(tmp_path / "m.h5").parts.view.scales == (48, 60)


def test_images_of_which_nothing_can_be_learnt_are_left_out(chain: Chain, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "annotations").mkdir(parents=True)
    (folder / "images").symlink_to(chain.data[0] / "images")
    text = json.loads((chain.data[0] / "annotations" / "instances_train.json").read_text())
    text["annotations"] = text["annotations"][:3]
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(text))
    (folder / "images").unlink()
    # Were the others looked at, they would be missed.
    for number in range(3):
        (folder / "images" / "train").mkdir(parents=True, exist_ok=True)
        name = f"images/train/{number:03}.png"
        shutil.copy(chain.data[0] / name, folder / name)
    for number in range(3, 8):
        (folder / "images" / "train" / f"{number:03}.png").write_bytes(b"no image")
    words = ("finetune", folder, "--split", "train", "--proposals", chain.proposals, *TUNING)
    run(*words, "--init", chain.weights, "--out", tmp_path / "m.h5")
    # With background from an overlap of 0 on, they are.
    more = ("--init", chain.weights, "--background-from", 0, "--out", tmp_path / "no.h5")
    assert "png" in sentence(run(*words, *more, fails=True))


def test_equal_runs_give_equal_bytes_however_they_are_done(chain: Chain, tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    for more in (("--workers", 0, "--checkpoint-every", 7, "--image-cache", 0), ("--workers", 3)):
        chain.finetune(out, *more)
        assert out.read_bytes() == chain.model.read_bytes()
    chain.extract(out, "--workers", 3)
    assert out.read_bytes() == chain.features.read_bytes()
    chain.detect(out, *chain.cached, "--keep-candidates")
    assert out.read_bytes() == chain.detections.read_bytes()
    chain.finetune(out, "--seed", 1)
    assert out.read_bytes() != chain.model.read_bytes()


@pytest.mark.parametrize("stop", [1, 5, 8])
def test_a_fine_tuning_that_was_stopped_goes_on(stop: int, chain: Chain, tmp_path: Path) -> None:
    out = tmp_path / "stopped.h5"
    with stopped_after(stop - 1):
        chain.finetune(out, fails=True)
    assert not out.exists()
    assert "going on" not in chain.finetune(out, "--box-weight", 2, "--iterations", 1).stderr
    result = chain.finetune(out)
    saved = (stop - 1) // 3 * 3
    assert (f"going on after iteration {saved}," in result.stderr) == (saved > 0)
    assert out.read_bytes() == chain.model.read_bytes()
    assert not out.with_name("stopped.h5.partial").exists()


@pytest.mark.parametrize("stop", [1, 4, 8])
def test_an_extraction_that_was_stopped_goes_on(
    stop: int, chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, original, seen = tmp_path / "stopped.h5", DetectorExtractor.__call__, []

    def counted(self: DetectorExtractor, image: Any, todo: Regions) -> Any:
        seen.append(todo.record.image_id)
        if len(seen) == stop:
            raise KeyboardInterrupt
        return original(self, image, todo)

    monkeypatch.setattr(DetectorExtractor, "__call__", counted)
    assert "goes on from what it has saved" in chain.extract(out, fails=True).output
    seen[:] = ["not stopped"] * 99
    chain.extract(out)
    assert out.read_bytes() == chain.features.read_bytes()
    assert not out.with_name("stopped.h5.partial").exists()


@pytest.mark.slow
def test_two_ranks(chain: Chain, tmp_path: Path) -> None:
    # ResNets have no dropout, whose masks differ between ranks; batch norms of given weights are
    # frozen; all images give 8 regions.
    resnet, few = tmp_path / "w.h5", ("--epochs", 0, "--batch-size", 8, *ON_CPU)
    run("pretrain", *chain.data, "--network", "resnet18", *few, "--out", resnet)
    rest = ("--iterations", 3, "--batch-size", 16, "--foreground", 4, "--log-every", 1)
    words = ("finetune", *chain.seen, *TUNING, "--init", resnet, "--background-from", 0, *rest)
    run(*words, "--out", tmp_path / "one.h5")
    run_by_two_ranks(*words, "--out", tmp_path / "two.h5")
    one, two = read_model(tmp_path / "one.h5"), read_model(tmp_path / "two.h5")
    assert (one.header.settings["ranks"], two.header.settings["ranks"]) == (1, 2)
    for name, values in one.curves.items():
        np.testing.assert_allclose(two.curves[name], values, rtol=1e-5, err_msg=name)
    for name, tensor in one.tensors.items():
        np.testing.assert_allclose(two.tensors[name], tensor, rtol=1e-3, atol=1e-6, err_msg=name)
    extract = ("extract-features", *chain.seen, "--model", chain.model, *ON_CPU, *LAYERS)
    run_by_two_ranks(*extract, "--out", tmp_path / "f.h5")
    assert (tmp_path / "f.h5").read_bytes() == chain.features.read_bytes()


# What is added to the usual command, or stands instead of a part of it -> sentence
WRONG: dict[str, tuple[tuple[object, ...], str]] = {
    "features": (("--features", "f.h5"), "--features has no meaning with --system fast"),
    "memory": (("--memory", 9), "--memory has no meaning with --system fast"),
    "crop": (("--crop", "tight"), "--crop has no meaning with --system fast"),
    "padding": (("--padding", 3), "--padding has no meaning with --system fast"),
    "images": (("--images", 3), "--batch-size 32 and --foreground 8 are regions of 3 images"),
    "foreground": (("--foreground", 7), "--foreground 7 are regions of 2 images together"),
    "too much foreground": (("--foreground", 34), "--foreground 34 is not within a batch of 32"),
    "parts": (("--accumulate", 2, "--images", 3), "--images 3 cannot be shared by 1 ranks and 2"),
    "more parts": (("--accumulate", 4), "--images 2 cannot be shared by 1 ranks and 4 parts"),
    "more images": (("--images", 64), "a batch of 32 cannot be shared by 64"),
    "overlaps": (("--background-overlap", 0.7), "--background-overlap 0.7 is above"),
    "no background": (("--background-from", 0.5), "--background-from 0.5 is not below"),
    "longest": (("--longest", 60), "a longest side of 60 pixels is below a shorter side of 72"),
    "of several": (("--scales", "48,90", "--longest", 80), "80 pixels is below a shorter side of"),
    "too large": (("--scales", 10**8), "does not fit into the memory; lower --scales"),
    "layer": (("--train-from", "fc9"), "no layer 'fc9' to train from"),
    "rate": (("--lr", "1e30"), "lower --lr, or look at the batch's images: "),
    "network": (("--network", "zf5"), "holds a demo, not a zf5"),
    "background": (
        ("--background-from", 0.499),
        "none of the 8 images has a region with an overlap of at least 0.499 and below 0.5",
    ),
    "classifier": (("--classifier-lr-multiplier", 2), "no meaning with --system fast"),
    "bare": (("--split", "bare"), "none of the 8 images has an object to learn from"),
    "split": (("--split", "nothing"), "nothing"),
    "proposals": (("--proposals", "absent.h5"), "absent.h5 does not exist; run rcnnpipe propose"),
    "few proposals": (("--proposals", "few.h5"), "no proposals for 3 of 8 images"),
    "another kind": (("--proposals", "weights.h5"), "rcnnpipe.proposals/1 is needed here"),
    "init": (("--init", "absent.h5"), "absent.h5 does not exist"),
    "init of another kind": (("--init", "svm.h5"), "rcnnpipe.model/1 is needed here"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_fine_tuning_is_refused(case: str, chain: Chain, tmp_path: Path) -> None:
    more, told = WRONG[case]
    placed = [chain.folder / str(word) if str(word).endswith(".h5") else word for word in more]
    out = tmp_path / "no.h5"
    assert told in sentence(chain.finetune(out, *placed, fails=True))
    assert not out.exists()


def test_what_is_missing_is_told(chain: Chain, tmp_path: Path) -> None:
    out, usual = ("--out", tmp_path / "no.h5"), ("--network", "demo", *TUNING)
    result = run("finetune", *chain.data, *usual, *out, fails=True)
    assert "--system fast needs --proposals; run rcnnpipe propose first" in sentence(result)
    result = run("finetune", "--proposals", chain.proposals, *usual, *out, fails=True)
    assert "--system fast needs DATA; name the data set" in sentence(result)
    result = run("finetune", *chain.seen, *TUNING, *out, fails=True)
    assert "name a network: alexnet" in sentence(result)
    for flag, value in (("--images", 2), ("--longest", 9), ("--box-weight", 0), ("--scales", 9)):
        words = ("finetune", *chain.seen, "--network", "demo", flag, value)
        told = f"{flag} has no meaning with --system rcnn"
        assert told in sentence(run(*words, *out, fails=True))


def test_a_network_with_a_pyramid_is_refused(chain: Chain, tmp_path: Path) -> None:
    pyramid = ("--pyramid", "1,2", "--hidden", 16, "--scales", 48, "--epochs", 0)
    words = ("pretrain", *chain.data, "--network", "demo", *pyramid, "--batch-size", 8, *ON_CPU)
    run(*words, "--out", tmp_path / "w.h5")
    result = chain.finetune(tmp_path / "no.h5", "--init", tmp_path / "w.h5", fails=True)
    assert "detectors need weights without one" in sentence(result)


def test_a_detector_is_no_network(chain: Chain, tmp_path: Path) -> None:
    told, out = f"{chain.model} holds a detector, which", tmp_path / "no.h5"
    init = ("--init", chain.model, *ON_CPU, "--out", out)
    seen, few = chain.seen, ("--batch-size", 8)
    cases: list[tuple[object, ...]] = [
        ("evaluate", chain.model, "--data", *chain.data, "--out", tmp_path / "scores"),
        ("pretrain", *chain.data, *few, *init),
        ("pretrain", *chain.data, *few, "--pyramid", "1,2", *init),
        ("finetune", *seen, *init),
        ("finetune", "--system", "sppnet", "--features", chain.features, *init),
        ("extract-features", "--pooled", chain.features, "--model", chain.model, "--out", out),
        ("show", *chain.data, "--model", chain.model, "--images", "0", "--out", tmp_path / "a.png"),
    ]
    for words in cases:
        assert told in sentence(run(*words, fails=True)), words
    assert not out.exists()


def test_wrong_extraction_and_detection_is_refused(chain: Chain, tmp_path: Path) -> None:
    out = tmp_path / "no.h5"
    for layer in ("conv5", "fc9"):
        result = chain.extract(out, "--layers", f"fc7,{layer}", fails=True)
        told = f"no layer '{layer}', only pool5, fc6, fc7, logits, deltas"
        assert told in sentence(result)
    for more, told in (
        (("--random-scales",), "--random-scales is for networks with a pyramid, not for detectors"),
        (("--scales", 10**8), "does not fit into the memory; lower --scales"),
        (("--proposals", chain.few), "no proposals for 3 of 8 images"),
    ):
        assert told in sentence(chain.extract(out, *more, fails=True))
    # Another detector than the one whose features an SVM or a regression knows
    chain.finetune(tmp_path / "m.h5", "--seed", 1)
    other = ("--model", tmp_path / "m.h5", "--proposals", chain.proposals)
    for more in (("--svm", chain.svm), ("--bbox-reg", chain.bbox_reg)):
        told = sentence(chain.detect(out, *other, *more, fails=True))
        assert str(more[1]) in told
        assert str(tmp_path / "m.h5") in told
    result = run("train-svm", chain.features, "--thin", "cells", "--out", out, fails=True)
    assert "use --thin overlap" in sentence(result)
    assert not out.exists()


def test_proposals_of_another_split_serve_but_are_told(chain: Chain, tmp_path: Path) -> None:
    text = json.loads((chain.data[0] / "annotations" / "instances_train.json").read_text())
    text["images"], text["annotations"] = text["images"][:4], text["annotations"][:4]
    part = chain.data[0] / "annotations" / "instances_part.json"
    part.write_text(json.dumps(text))
    more = ("--iterations", 1)
    result = chain.finetune(tmp_path / "m.h5", *more, "--split", "part")
    assert "was made for another data set or split" in result.stderr
    assert "other data set" not in chain.finetune(tmp_path / "n.h5", *more).stderr


def test_candidates_are_kept_and_suppressed_anew(chain: Chain, tmp_path: Path) -> None:
    chain.detect(tmp_path / "d.h5", "--candidates", chain.detections)
    one, two = read_detections(tmp_path / "d.h5"), read_detections(chain.detections)
    np.testing.assert_array_equal(one.boxes, two.boxes)
    # Boxes are suppressed where the deltas have moved them.
    chain.detect(tmp_path / "p.h5", *chain.cached, "--keep-candidates", "--no-refine")
    moved, plain = read_candidates(chain.detections), read_candidates(tmp_path / "p.h5")
    np.testing.assert_array_equal(moved.scores, plain.scores)
    assert not np.array_equal(moved.boxes, plain.boxes)
