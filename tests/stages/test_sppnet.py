"""SPP-net from drawn images to scores, stage by stage: contents, lineage, repeats, wrong input."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from click.testing import Result
from torchvision.ops import box_iou

from rcnnpipe.artifacts.detections import read_candidates, read_detections
from rcnnpipe.artifacts.features import open_features
from rcnnpipe.artifacts.model import read_model
from rcnnpipe.artifacts.proposals import read_proposals
from rcnnpipe.artifacts.svm import read_svm
from rcnnpipe.datasets import open_dataset
from rcnnpipe.extraction import maps
from rcnnpipe.extraction.maps import MapExtractor
from rcnnpipe.extraction.regions import Regions
from rcnnpipe.images import read_image
from rcnnpipe.models.projection import geometry_of
from rcnnpipe.models.weights import read_network
from rcnnpipe.ragged import rows_of
from tests.stages.made import (
    ON_CPU,
    Files,
    open_header,
    run,
    run_by_two_ranks,
    sentence,
    stopped_after,
    tensors_of,
)
from tests.stages.test_finetune import coco_of
from tests.training.made import write_proposals

PYRAMID = ("--network", "demo", "--pyramid", "1,2", "--hidden", 16, "--scales", "48,90")
POOLING = ("--layers", "pool5", "--random-scales", "--mirror", *ON_CPU)
TUNING = (
    *("--system", "sppnet", "--iterations", 8, "--batch-size", 16, "--foreground", 4),
    *("--lr", 0.003, "--log-every", 4, "--checkpoint-every", 3, *ON_CPU),
)
CLASSES = ("background", "red", "green")


class Chain(Files):
    """The files of a chain that ran, by name; and the commands that made them."""

    def pretrain(self, out: Path, *more: object, **how: bool) -> Result:
        words = ("pretrain", *self.data, *PYRAMID, "--batch-size", 8, *ON_CPU)
        return run(*words, *more, "--out", out, **how)

    def pool(self, out: Path, *more: object, **how: bool) -> Result:
        words = ("extract-features", *self.seen, "--model", self.weights, *POOLING)
        return run(*words, *more, "--out", out, **how)

    def finetune(self, out: Path, *more: object, **how: bool) -> Result:
        words = ("finetune", "--features", self.pooled, "--init", self.weights, *TUNING)
        return run(*words, *more, "--out", out, **how)

    def extract(self, out: Path, *more: object, **how: bool) -> Result:
        words = ("extract-features", *self.seen, "--model", self.model, *ON_CPU)
        return run(*words, "--layers", "pool5,fc7,logits", *more, "--out", out, **how)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    folder = tmp_path_factory.mktemp("sppnet")
    dataset = open_dataset(coco_of(folder / "data", 8), "train")
    write_proposals(folder / "proposals.h5", dataset)
    chain = Chain(folder)
    chain.pretrain(chain.fresh, "--epochs", 0)
    chain.pretrain(chain.weights, "--epochs", 1)
    chain.pool(chain.pooled)
    chain.finetune(chain.model)
    chain.extract(chain.features)
    run("train-svm", chain.features, "--thin", "cells", "--out", chain.svm)
    run("train-bbox-reg", chain.features, "--out", chain.bbox_reg)
    linear = ("--svm", chain.svm, "--bbox-reg", chain.bbox_reg)
    spp = ("--suppress-first", "--keep-candidates", "--max-per-set", 5)
    chain.detect(chain.detections, "--features", chain.features, *linear, *spp)
    chain.detect(chain.softmax, "--features", chain.features, "--keep-candidates")
    return chain


def test_a_pyramid_is_pre_trained(chain: Chain) -> None:
    before, after = read_model(chain.fresh), read_model(chain.weights)
    head = after.architecture["head"]
    assert head == before.architecture["head"]
    # What is learnt from data, the scale of the pyramid, is no setting.
    asked = after.header.settings["head"]
    assert asked == head | {"pyramid": {"levels": [1, 2], "training": "windows"}}
    assert head == {
        "map": "conv5",
        "hidden": 16,
        "pyramid": {"levels": [1, 2], "training": "windows", "scale": 1},
        "view": {
            "scales": [48, 90],
            "reference": 56,  # the demo's window
            "choice": "nearest-area",
            "projection": "paper",
        },
    }
    assert not after.header.settings.keys() & {"pyramid", "hidden", "scales", "projection"}
    assert after.header.classes == CLASSES
    for name, value in before.tensors.items():
        assert not np.array_equal(value, after.tensors[name]), name  # everything is trained


def test_every_setting_of_the_head_is_taken(chain: Chain, tmp_path: Path) -> None:
    pyramid = ("--pyramid", "3,1", "--pyramid-training", "bins", "--map", "conv4")
    view = ("--reference", 40, "--scale-choice", "nearest-scale", "--projection", "authors")
    chain.pretrain(tmp_path / "w.h5", *pyramid, *view, "--epochs", 0)
    assert read_model(tmp_path / "w.h5").architecture["head"] == {
        "map": "conv4",
        "hidden": 16,
        "pyramid": {"levels": [3, 1], "training": "bins", "scale": 1},
        "view": {
            "scales": [48, 90],
            "reference": 40,
            "choice": "nearest-scale",
            "projection": "authors",
        },
    }
    assert not any(name.startswith("conv5") for name in tensors_of(tmp_path / "w.h5"))


def test_a_pyramid_can_stand_on_a_model_of_ours(chain: Chain, tmp_path: Path) -> None:
    plain, pooled = tmp_path / "plain.h5", tmp_path / "pooled.h5"
    few = ("--network", "demo", "--epochs", 0, "--batch-size", 8, *ON_CPU)
    run("pretrain", *chain.data, *few, "--out", plain)
    run("pretrain", *chain.data, "--init", plain, "--pyramid", "1,2", *few, "--out", pooled)
    before, after = tensors_of(plain), tensors_of(pooled)
    for name in (f"conv{n}.{kind}" for n in range(1, 6) for kind in ("weight", "bias")):
        np.testing.assert_array_equal(before[name], after[name])
    assert after["fc6.weight"].shape == (256, 96 * 5)
    # Another pyramid on it is refused, and settings of one without it.
    for more, told in (
        ((pooled, "--pyramid", "1,2"), "has a pyramid of its own; leave --pyramid out"),
        ((pooled, "--scales", "48"), "has a pyramid of its own; leave --scales out"),
        ((plain, "--scales", "48"), "--scales is for a network with a pyramid; give --pyramid too"),
        ((plain, "--hidden", 8), "--hidden is for a network with a pyramid; give --pyramid too"),
    ):
        words = ("pretrain", *chain.data, "--init", *more, *few, "--out", tmp_path / "no.h5")
        assert told in sentence(run(*words, fails=True))


def test_pooled_rows_are_what_the_network_makes_of_mirrored_images_too(chain: Chain) -> None:
    _, network = read_network(chain.weights)
    assert network.head is not None
    dataset = open_dataset(chain.data[0], "train")
    ids = list(dataset.image_ids)
    with open_features(chain.pooled) as features:
        assert features.layers == {"pool5": 96 * 5}
        assert list(features.image_ids) == ids + [f"{one}@mirrored" for one in ids]
        assert features.header.classes == CLASSES
        scale, cells = features.scale, features.cells
        assert scale is not None
        assert cells is not None
        assert set(scale.tolist()) == {0, 1}
        extractor = MapExtractor(
            *(network, ("pool5",), torch.device("cpu"), network.head.view),
            geometry_of(network, "conv5"),
            random_scales=True,
        )
        half = len(features.boxes) // 2
        for number in (0, 3, 8, 11):
            rows = rows_of(features.offsets, number)
            record, boxes = dataset.records[number % 8], features.boxes[rows]
            image = read_image(record.path)
            if number >= 8:
                image = np.ascontiguousarray(image[:, ::-1])
                # The same regions, seen from the other side, with the same objects
                unmirrored = slice(rows.start - half, rows.stop - half)
                x1, y1, x2, y2 = features.boxes[unmirrored].T
                np.testing.assert_allclose(boxes, np.stack((96 - x2, y1, 96 - x1, y2), axis=1))
                for column in (features.labels, features.overlap, features.truth):
                    np.testing.assert_allclose(column[rows], column[unmirrored], rtol=1e-5)
            own = replace(record, image_id=features.image_ids[number])
            found = extractor(image, Regions(own, boxes))
            np.testing.assert_array_equal(scale[rows], found["scale"])
            np.testing.assert_array_equal(cells[rows], found["cells"])
            np.testing.assert_allclose(
                features.rows("pool5", rows).astype(np.float32),
                found["pool5"].float(),
                rtol=2e-3,
                atol=2e-3,
            )
        assert features.is_truth.sum() == 16


def test_fine_tuning_changes_what_stands_behind_the_pyramid_alone(chain: Chain) -> None:
    model = read_model(chain.model)
    before, after = tensors_of(chain.weights), dict(model.tensors)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert np.array_equal(value, after[name]) == name.startswith("conv"), name
    header = model.header
    assert header.classes == CLASSES
    assert header.inputs == {
        "features": open_header(chain.pooled).id,
        "init": open_header(chain.weights).id,
    }
    settings = header.settings
    assert (settings["system"], settings["train-from"], settings["mirror"]) == (
        "sppnet",
        "fc6",
        False,
    )
    # Defaults are SPP-net's own.
    names = ("background-from", "bias-lr-multiplier", "classifier-lr-multiplier", "step")
    assert [settings[name] for name in names] == [0.1, 1, 1, 250_000]
    assert not settings.keys() & {"memory", "image-cache", "checkpoint-every", "init"}
    assert np.isfinite(model.curves["loss"]).all()
    assert model.architecture["head"] == read_model(chain.weights).architecture["head"]


def test_it_learns(chain: Chain, tmp_path: Path) -> None:
    chain.finetune(tmp_path / "m.h5", "--iterations", 80, "--lr", 0.01)
    curves = read_model(tmp_path / "m.h5").curves
    assert curves["loss"][-3:].mean() < 0.8 * curves["loss"][:3].mean()


def test_upper_layers_can_be_trained_alone(chain: Chain, tmp_path: Path) -> None:
    chain.finetune(tmp_path / "m.h5", "--train-from", "fc7")
    before, after = tensors_of(chain.weights), tensors_of(tmp_path / "m.h5")
    changed = {name for name, value in before.items() if not np.array_equal(value, after[name])}
    assert changed == {f"fc{n}.{kind}" for n in (7, 8) for kind in ("weight", "bias")}
    assert read_model(tmp_path / "m.h5").header.settings["train-from"] == "fc7"


def test_features_of_the_tuned_network(chain: Chain) -> None:
    with open_features(chain.features) as features, open_features(chain.pooled) as pooled:
        assert features.layers == {"fc7": 16, "logits": 3, "pool5": 480}
        assert len(features.image_ids) == 8
        assert features.scale is not None
        assert pooled.scale is not None
        same = features.scale == pooled.scale[: len(features.scale)]
        assert not same.all()  # nearest scales here, random ones there
        # The convolutions are the same ones: where the scale is the same, so is pool5.
        rows = slice(0, len(same))
        one, two = features.rows("pool5", rows), pooled.rows("pool5", rows)
        np.testing.assert_allclose(one[same], two[same], rtol=2e-3, atol=2e-3)
        assert (one[~same] != two[~same]).any(axis=1).all()


def test_layers_behind_the_pyramid_are_made_without_an_image(chain: Chain, tmp_path: Path) -> None:
    # pool5 of the model that the tuned one began as: its convolutions are the same.
    pooled, behind = tmp_path / "pooled.h5", tmp_path / "behind.h5"
    words = ("extract-features", *chain.seen, "--model", chain.weights, "--layers", "pool5")
    run(*words, *ON_CPU, "--out", pooled)
    model = ("--model", chain.model, *ON_CPU, "--layers", "fc7,logits")
    run("extract-features", "--pooled", pooled, *model, "--out", behind)
    with open_features(behind) as found, open_features(chain.features) as expected:
        assert found.layers == {"fc7": 16, "logits": 3}
        assert found.image_ids == expected.image_ids
        columns = ("boxes", "is_truth", "labels", "overlap", "overlaps", "truth", "scale", "cells")
        for name in (*columns, "offsets", "sizes"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        for layer in found.layers:
            one, two = (file.rows(layer, slice(None)) for file in (found, expected))
            np.testing.assert_allclose(one, two, rtol=1e-2, atol=5e-3)
            assert found.mean_norm(layer) == pytest.approx(expected.mean_norm(layer), rel=1e-3)
    linear = tmp_path / "svm.h5"
    run("train-svm", behind, "--thin", "cells", "--out", linear)
    chain.detect(tmp_path / "d.h5", "--features", behind, "--svm", linear)
    # Of another model, or with options for images, it is refused.
    refused = ("extract-features", "--pooled", pooled, "--out", tmp_path / "no.h5")
    other = run(*refused, "--model", chain.fresh, "--layers", "fc7", *ON_CPU, fails=True)
    assert f"the maps of {pooled} are not those of {chain.fresh}" in sentence(other)
    for more in (chain.data, ("--proposals", chain.proposals), ("--mirror",), ("--scales", 48)):
        flag = "DATA" if more is chain.data else str(more[0])
        result = run(*refused, *model, *more, fails=True)
        assert f"{flag} has no meaning with --pooled" in sentence(result)
    spoilt = tmp_path / "spoilt.h5"
    shutil.copy(pooled, spoilt)
    with h5py.File(spoilt, "r+") as file:
        rows = len(file["boxes"])
        del file["layers/pool5"]
        file["layers/pool5"] = np.zeros((rows, 7), np.float16)
    result = run(
        "extract-features", "--pooled", spoilt, *model, "--out", tmp_path / "no", fails=True
    )
    assert "has 7 features of a region in layer 'pool5', but the model makes 480" in sentence(
        result
    )
    result = run(*refused, *model, "--layers", "conv5", fails=True)
    assert "no layer 'conv5', only pool5, fc6, fc7, logits" in sentence(result)


def test_thinning_is_recorded_and_leaves_negatives_out(chain: Chain, tmp_path: Path) -> None:
    seen = {}
    for rule in ("none", "cells", "overlap"):
        out = tmp_path / f"{rule}.h5"
        result = run("train-svm", chain.features, "--thin", rule, "--json", "--out", out)
        assert read_svm(out).header.settings["thin"] == rule
        seen[rule] = [row["negatives_seen"] for row in json.loads(result.stdout).values()]
    for less in ("cells", "overlap"):
        assert all(np.array(seen[less]) <= seen["none"])
        assert sum(seen[less]) < sum(seen["none"])
    assert (tmp_path / "cells.h5").read_bytes() == chain.svm.read_bytes()


def test_thinning_by_cells_needs_cells(chain: Chain, tmp_path: Path) -> None:
    few = ("--epochs", 0, "--batch-size", 8, *ON_CPU)
    plain, features = tmp_path / "plain.h5", tmp_path / "f.h5"
    run("pretrain", *chain.data, "--network", "demo", *few, "--out", plain)
    words = ("extract-features", *chain.seen, "--model", plain, "--layers", "fc7", *ON_CPU)
    run(*words, "--out", features)
    for rule in ("none", "overlap"):
        run("train-svm", features, "--thin", rule, "--out", tmp_path / "s.h5")
    result = run("train-svm", features, "--thin", "cells", "--out", tmp_path / "no.h5", fails=True)
    assert "has no pyramid; use --thin overlap" in sentence(result)


def test_detections_from_pixels_equal_those_from_the_cache(chain: Chain, tmp_path: Path) -> None:
    linear = ("--svm", chain.svm, "--bbox-reg", chain.bbox_reg)
    pixels = ("--model", chain.model, "--proposals", chain.proposals)
    rules = ("--suppress-first", "--max-per-set", 5)
    chain.detect(tmp_path / "pixels.h5", *pixels, *linear, *rules)
    one, two = read_detections(tmp_path / "pixels.h5"), read_detections(chain.detections)
    assert len(one.boxes) > 8
    np.testing.assert_array_equal(one.offsets, two.offsets)
    np.testing.assert_array_equal(one.labels, two.labels)
    np.testing.assert_allclose(one.scores, two.scores, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(one.boxes, two.boxes, atol=0.05)
    run("evaluate", chain.detections, "--data", *chain.data, "--out", tmp_path / "scores")
    metrics = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert metrics


def test_other_scales_are_taken_and_recorded(chain: Chain, tmp_path: Path) -> None:
    chain.extract(tmp_path / "f.h5", "--scales", "30,64,100", "--layers", "pool5")
    with open_features(tmp_path / "f.h5") as features:
        assert features.scale is not None
        # Regions are about 30 of 72 pixels wide: at a scale of 134 they would be 56.
        assert set(features.scale.tolist()) == {2}
        assert features.header.settings["scales"] == [30, 64, 100]
        assert features.header.id != open_header(chain.features).id
    image = open_dataset(chain.data[0], "train").records[0].path
    detect = ("detect", image, "--model", chain.model, "--scales", "64", *ON_CPU)
    run(*detect, "--out", tmp_path / "d.h5")
    assert open_header(tmp_path / "d.h5").settings["scales"] == [64]


def best(path: Path, number: int, label: int) -> list[float]:
    """Scores of an image's candidates of a class."""
    found = read_candidates(path)
    rows = rows_of(found.offsets, number)
    return [float(score) for score in found.scores[rows][found.labels[rows] == label]]


def test_suppression_before_the_caps(chain: Chain, tmp_path: Path) -> None:
    first, last = tmp_path / "first.h5", tmp_path / "last.h5"
    usual = ("--features", chain.features, "--keep-candidates", "--max-per-set", 0)
    for path, more in ((first, ("--suppress-first",)), (last, ())):
        chain.detect(path, *usual, "--max-per-image", 0, *more)
    # Without caps the order changes nothing but the candidates.
    one, two = read_detections(first), read_detections(last)
    for name in ("boxes", "scores", "labels", "offsets"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    proposed = read_proposals(chain.proposals)
    assert len(read_candidates(last).boxes) == 2 * len(proposed.boxes)
    kept = read_candidates(first)
    assert len(kept.boxes) == len(one.boxes) < 2 * len(proposed.boxes)
    for number in range(8):
        rows = rows_of(kept.offsets, number)
        for label in (1, 2):
            boxes = torch.from_numpy(kept.boxes[rows][kept.labels[rows] == label])
            assert (box_iou(boxes, boxes).fill_diagonal_(0) <= 0.3).all()
    # With caps, suppression leaves room for the next best.
    capped = {}
    for name, more in (("first", ("--suppress-first",)), ("last", ())):
        capped[name] = tmp_path / f"capped-{name}.h5"
        chain.detect(capped[name], *usual, "--max-per-image", 2, *more)
    for number in range(8):
        for label in (1, 2):
            assert best(capped["first"], number, label) == best(first, number, label)[:2]
            assert best(capped["last"], number, label) == best(last, number, label)[:2]
    assert len(read_detections(capped["last"]).boxes) < len(read_detections(capped["first"]).boxes)


def test_candidates_are_suppressed_anew(chain: Chain, tmp_path: Path) -> None:
    # With the settings of before the same comes out, with others what they would have given.
    again = ("--candidates", chain.softmax)
    chain.detect(tmp_path / "same.h5", *again)
    for overlap, limit in ((0.3, 40), (0.6, 2), (1, 0)):
        more = ("--nms-overlap", overlap, "--max-per-set", limit)
        chain.detect(tmp_path / "anew.h5", *again, *more)
        chain.detect(tmp_path / "whole.h5", "--features", chain.features, *more)
        one, two = read_detections(tmp_path / "anew.h5"), read_detections(tmp_path / "whole.h5")
        for name in ("boxes", "scores", "labels", "offsets", "sizes"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
        assert one.image_ids == two.image_ids
    header = open_header(tmp_path / "same.h5")
    assert header.inputs == {
        "data": open_dataset(chain.data[0], "train").id,
        "candidates-1": open_header(chain.softmax).id,
    }
    assert header.classes == CLASSES
    # What scored them is told by their own file.
    names = ("keep-candidates", "max-detections", "max-per-set", "nms-overlap", "split")
    assert sorted(header.settings) == list(names)


def test_two_models_are_put_together(chain: Chain, tmp_path: Path) -> None:
    chain.finetune(tmp_path / "m.h5", "--seed", 1)
    pixels = ("--model", tmp_path / "m.h5", "--proposals", chain.proposals)
    other, both, twice = (tmp_path / f"{name}.h5" for name in ("other", "both", "twice"))
    chain.detect(other, *pixels, "--keep-candidates")
    chain.detect(both, "--candidates", chain.softmax, "--candidates", other, "--keep-candidates")
    parts = [read_candidates(path) for path in (chain.softmax, other)]
    union = read_candidates(both)
    for number in range(8):
        rows = rows_of(union.offsets, number)
        expected = np.concatenate([one.scores[rows_of(one.offsets, number)] for one in parts])
        np.testing.assert_array_equal(union.scores[rows], expected)
    found = read_detections(both)
    assert 0 < len(found.scores) <= len(union.scores)
    assert set(found.scores) <= set(union.scores)
    # One and the same twice: each box goes because of its twin, so that nothing is new.
    chain.detect(twice, "--candidates", chain.softmax, "--candidates", chain.softmax)
    one, two = read_detections(twice), read_detections(chain.softmax)
    np.testing.assert_array_equal(one.scores, two.scores)
    np.testing.assert_array_equal(one.boxes, two.boxes)
    assert header_inputs(both) == ["candidates-1", "candidates-2", "data"]
    run("evaluate", both, "--data", *chain.data, "--out", tmp_path / "scores")


def header_inputs(path: Path) -> list[str]:
    return sorted(open_header(path).inputs)


def test_equal_runs_give_equal_bytes_however_they_are_done(chain: Chain, tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    for workers in (1, 3):
        chain.pool(out, "--workers", workers)
        assert out.read_bytes() == chain.pooled.read_bytes()
    for workers, rest in ((1, ()), (0, ("--checkpoint-every", 7, "--memory", 1))):
        chain.finetune(out, "--workers", workers, *rest)
        assert out.read_bytes() == chain.model.read_bytes()
    again = ("--features", chain.features, "--keep-candidates")
    chain.detect(out, *again)
    assert out.read_bytes() == chain.softmax.read_bytes()
    both = ("--candidates", chain.softmax, "--candidates", chain.detections)
    chain.detect(tmp_path / "one.h5", *both)
    chain.detect(tmp_path / "two.h5", *both)
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()


@pytest.mark.slow
def test_two_ranks(chain: Chain, tmp_path: Path) -> None:
    words = ("extract-features", *chain.seen, "--model", chain.weights, *POOLING)
    run_by_two_ranks(*words, "--out", tmp_path / "pooled.h5")
    assert (tmp_path / "pooled.h5").read_bytes() == chain.pooled.read_bytes()
    learnt = ("--features", chain.pooled, "--init", chain.weights)
    run_by_two_ranks("finetune", *learnt, *TUNING, "--out", tmp_path / "m.h5")
    model = read_model(tmp_path / "m.h5")
    assert model.header.settings["ranks"] == 2
    assert np.isfinite(model.curves["loss"]).all()
    # Each draws its share of the batches that one rank alone would have; masks of dropout differ.
    alone = read_model(chain.model).curves["loss"]
    np.testing.assert_allclose(model.curves["loss"], alone, rtol=0.2)


@pytest.mark.parametrize("what", ["pool", "finetune"])
def test_another_seed_gives_something_else(what: str, chain: Chain, tmp_path: Path) -> None:
    getattr(chain, what)(tmp_path / "out.h5", "--seed", 1)
    usual = {"pool": chain.pooled, "finetune": chain.model}[what]
    assert (tmp_path / "out.h5").read_bytes() != usual.read_bytes()


@pytest.mark.parametrize("stop", [1, 6, 16])
def test_an_extraction_that_was_stopped_goes_on(
    stop: int, chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, original, seen = tmp_path / "stopped.h5", MapExtractor.__call__, []

    def counted(self: MapExtractor, image: Any, todo: Regions) -> Any:
        seen.append(todo.record.image_id)
        if len(seen) == stop:
            raise KeyboardInterrupt
        return original(self, image, todo)

    monkeypatch.setattr(maps.MapExtractor, "__call__", counted)
    result = chain.pool(out, fails=True)
    assert "goes on from what it has saved" in result.output
    assert not out.exists()
    before, seen[:] = list(seen), ["not stopped"] * 99
    chain.pool(out)
    assert len(before) == stop
    assert len(seen[99:]) <= 16
    assert out.read_bytes() == chain.pooled.read_bytes()
    assert not out.with_name("stopped.h5.partial").exists()


@pytest.mark.parametrize("stop", [1, 5, 8])
def test_a_fine_tuning_that_was_stopped_goes_on(stop: int, chain: Chain, tmp_path: Path) -> None:
    out = tmp_path / "stopped.h5"
    with stopped_after(stop - 1):
        chain.finetune(out, "--memory", 1, fails=True)
    assert not out.exists()
    result = chain.finetune(out)
    saved = (stop - 1) // 3 * 3
    assert (f"going on after iteration {saved}," in result.stderr) == (saved > 0)
    assert out.read_bytes() == chain.model.read_bytes()


def test_files_that_do_not_belong_together_are_refused(chain: Chain, tmp_path: Path) -> None:
    out = tmp_path / "no.h5"
    # Features of the tuned model, to go on with the one it was tuned from; and the reverse.
    told = f"{chain.features} was not made by {chain.weights}; run rcnnpipe extract-features with"
    assert told in sentence(chain.finetune(out, "--features", chain.features, fails=True))
    told = f"{chain.pooled} was not made by {chain.fresh}; run"
    assert told in sentence(chain.finetune(out, "--init", chain.fresh, fails=True))
    # An SVM of the tuned network's features, on those of another
    chain.finetune(tmp_path / "m.h5", "--seed", 1)
    other = ("--model", tmp_path / "m.h5", "--proposals", chain.proposals, "--svm", chain.svm)
    assert str(chain.svm) in sentence(chain.detect(out, *other, fails=True))
    assert not out.exists()


def wrong_tuning(chain: Chain) -> list[tuple[tuple[object, ...], str]]:
    system, features = ("--system", "sppnet"), ("--features", chain.pooled)
    init, data = ("--init", chain.weights), chain.data[0]
    whole = (*system, *features, *init)
    rcnn = ("--proposals", chain.proposals, "--network", "demo")
    return [
        ((data, *whole), "DATA has no meaning with --system sppnet; leave it out"),
        ((*whole, "--split", "train"), "--split has no meaning with --system sppnet"),
        ((*whole, "--proposals", chain.proposals), "--proposals has no meaning with --system spp"),
        ((*whole, "--network", "demo"), "--network has no meaning with --system sppnet"),
        ((*whole, "--crop", "tight"), "--crop has no meaning with --system sppnet"),
        ((*whole, "--padding", 3), "--padding has no meaning with --system sppnet"),
        ((*whole, "--difficult", "drop"), "--difficult has no meaning with --system sppnet"),
        ((*whole, "--crowd", "keep"), "--crowd has no meaning with --system sppnet"),
        ((*whole, "--image-cache", 9), "--image-cache has no meaning with --system sppnet"),
        ((*whole, "--mirror"), "--mirror has no meaning with --system sppnet, whose images"),
        ((data, "--split", "train", *rcnn, *features), "--features has no meaning with --system r"),
        ((data, *rcnn, "--memory", 9), "--memory has no meaning with --system rcnn"),
        ((*system, *init), "--system sppnet needs --features; run rcnnpipe extract-features --lay"),
        ((*system, *features), "--system sppnet needs --init MODEL.h5, the model that made"),
        ((*whole, "--train-from", "conv1"), "only what follows pool5 learns from its features"),
        ((*whole, "--train-from", "pool5"), "only what follows pool5 learns from its features"),
        ((*whole, "--train-from", "fc9"), "no layer 'fc9' to train from"),
        ((*whole, "--foreground", 500), "--foreground 500 is not within a batch of 128"),
        ((*whole, "--background-from", 0.5), "--background-from 0.5 is not below"),
        ((*whole, "--accumulate", 129), "a batch of 128 cannot be shared by 129"),
        ((*whole, "--lr", "1e30", "--iterations", 9), "lower --lr, or look at the batch's images"),
    ]


@pytest.mark.parametrize("number", range(21))
def test_wrong_fine_tuning_is_refused(number: int, chain: Chain, tmp_path: Path) -> None:
    cases = wrong_tuning(chain)
    assert len(cases) == 21
    words, told = cases[number]
    out = tmp_path / "no.h5"
    result = run("finetune", *words, *ON_CPU, "--out", out, fails=True)
    assert told in sentence(result)
    assert not out.exists()


def test_features_without_pool5_cannot_be_learnt_from(chain: Chain, tmp_path: Path) -> None:
    words = ("extract-features", *chain.seen, "--model", chain.weights, "--layers", "fc7", *ON_CPU)
    run(*words, "--out", tmp_path / "f.h5")
    result = chain.finetune(tmp_path / "m.h5", "--features", tmp_path / "f.h5", fails=True)
    assert "has no layer 'pool5', only fc7; run rcnnpipe extract-features" in sentence(result)


def test_a_model_without_a_pyramid_is_not_sppnets(chain: Chain, tmp_path: Path) -> None:
    few = ("--epochs", 0, "--batch-size", 8, *ON_CPU)
    plain, features = tmp_path / "plain.h5", tmp_path / "f.h5"
    run("pretrain", *chain.data, "--network", "demo", *few, "--out", plain)
    words = ("extract-features", *chain.seen, "--model", plain, "--layers", "pool5", *ON_CPU)
    run(*words, "--mirror", "--out", features)  # mirrored windows serve R-CNN as well
    result = chain.finetune(tmp_path / "m.h5", "--features", features, "--init", plain, fails=True)
    assert "of a model with a pyramid" in sentence(result)
    for more in (("--scales", "48"), ("--random-scales",)):
        result = run(*words, *more, "--out", tmp_path / "no.h5", fails=True)
        assert f"{more[0]} is for networks with a pyramid" in sentence(result)
    detect = ("--model", plain, "--proposals", chain.proposals, "--scales", "48")
    result = chain.detect(tmp_path / "no.h5", *detect, fails=True)
    assert "--scales is for networks with a pyramid" in sentence(result)


def test_maps_are_no_features_of_regions(chain: Chain, tmp_path: Path) -> None:
    for layer in ("conv1", "conv5"):
        result = chain.extract(tmp_path / "no.h5", "--layers", f"fc7,{layer}", fails=True)
        assert f"'{layer}' is a map of the whole image" in sentence(result)
    assert not (tmp_path / "no.h5").exists()


def wrong_candidates(chain: Chain, folder: Path) -> list[tuple[tuple[object, ...], str]]:
    kept, bare = ("--candidates", chain.softmax), folder / "bare.h5"
    chain.detect(bare, *kept)
    return [
        (("--candidates", bare), f"{bare} keeps no candidates; run rcnnpipe detect with --keep"),
        ((*kept, "--candidates", bare), f"{bare} keeps no candidates"),
        (("--candidates", chain.features), "rcnnpipe.detections/1 is needed here"),
        ((*kept, "--svm", chain.svm), "--svm has no meaning with --candidates"),
        ((*kept, "--bbox-reg", chain.bbox_reg), "--bbox-reg has no meaning with --candidates"),
        ((*kept, "--proposals", chain.proposals), "--proposals has no meaning with --candidates"),
        ((*kept, "--scales", "48"), "--scales has no meaning with --candidates"),
        ((*kept, "--score-threshold", 0.5), "--score-threshold has no meaning with --candidates"),
        ((*kept, "--max-per-image", 3), "--max-per-image has no meaning with --candidates"),
        ((*kept, "--suppress-first"), "--suppress-first has no meaning with --candidates"),
        ((*kept, "--no-refine"), "--no-refine has no meaning with --candidates"),
        ((*kept, "--model", chain.model), "detect needs one of --model"),
        ((*kept, "--features", chain.features), "detect needs one of --model"),
        ((), "detect needs one of --model"),
    ]


@pytest.mark.parametrize("number", range(14))
def test_wrong_candidates_are_refused(number: int, chain: Chain, tmp_path: Path) -> None:
    cases = wrong_candidates(chain, tmp_path)
    assert len(cases) == 14
    words, told = cases[number]
    out = tmp_path / "no.h5"
    assert told in sentence(chain.detect(out, *words, fails=True))
    assert not out.exists()


def test_candidates_of_other_classes_or_images_are_refused(chain: Chain, tmp_path: Path) -> None:
    text = chain.data[0] / "annotations" / "instances_train.json"
    document = json.loads(text.read_text())
    document["categories"][0]["name"] = "crimson"
    folder = tmp_path / "data"
    (folder / "annotations").mkdir(parents=True)
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(document))
    (folder / "images").symlink_to(chain.data[0] / "images")
    other = Chain(tmp_path)
    write_proposals(other.proposals, open_dataset(folder, "train"))
    other.pretrain(other.weights, "--epochs", 0)
    detect = ("--model", other.weights, "--proposals", other.proposals, "--keep-candidates")
    other.detect(other.softmax, *detect)
    both = ("--candidates", chain.softmax, "--candidates", other.softmax)
    told = sentence(chain.detect(tmp_path / "no.h5", *both, fails=True))
    assert "crimson" in told
    assert str(other.softmax) in told
    # The same images, but for one that the candidates have never seen
    few = json.loads(text.read_text())
    few["images"].append(few["images"][0] | {"id": 99})
    (folder / "annotations" / "instances_more.json").write_text(json.dumps(few))
    words = ("detect", folder, "--split", "more", "--candidates", chain.softmax)
    result = run(*words, "--out", tmp_path / "no.h5", fails=True)
    assert "has no candidates for 1 of 9 images, the first is '99'" in sentence(result)
