import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from rcnnpipe.artifacts.bbox_reg import read_bbox_reg
from rcnnpipe.artifacts.features import open_features
from rcnnpipe.cli import main
from rcnnpipe.linear.ridge import BoxRefiner, paired_overlaps
from tests.artifacts_made import make_detections, make_features
from tests.reference import ridge as reference

COUNTS = (41, 0, 41)


def run(*arguments: object, fails: int = 0) -> Result:
    result = CliRunner().invoke(main, ["train-bbox-reg", *map(str, arguments)])
    assert result.exit_code == fails, result.output
    return result


def columns() -> dict[str, Any]:
    """Two images with an object each (row 0 and 41, classes cat and dog) and regions beside it."""
    random = np.random.default_rng(0)
    goals = np.array([[20.0, 30, 80, 100], [50, 10, 150, 60]])
    which = np.repeat([0, 1], 41)
    shifts = random.uniform(-0.2, 0.2, (82, 4))
    shifts[[0, 41]] = 0
    sides = np.tile(goals[:, 2:] - goals[:, :2], 2)[which]
    boxes = (goals[which] + shifts * sides).astype(np.float32)
    low, high = np.maximum(boxes, goals[which])[:, :2], np.minimum(boxes, goals[which])[:, 2:]
    shared = (high - low).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) + sides[:, :2].prod(1)
    features = np.hstack([shifts * 10, random.random((82, 28))])
    return {
        "boxes": boxes,
        "is_truth": np.isin(np.arange(82), [0, 41]),
        "labels": which + 1,
        "overlap": (shared / (areas - shared)).astype(np.float32),
        "truth": np.zeros(82, np.int64),
        "layers/pool5": features,
    }


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bbox-reg") / "features.h5"
    return make_features(path, counts=COUNTS, **columns())


@pytest.mark.parametrize("whiten", [True, False])
def test_the_weights_are_those_of_the_definition(
    features: Path, tmp_path: Path, whiten: bool
) -> None:
    out = tmp_path / "bb.h5"
    flag = "--whiten" if whiten else "--no-whiten"
    printed = json.loads(run(features, "--out", out, "--json", flag).stdout)
    found = read_bbox_reg(out)
    assert (found.layer, found.pixel) == ("pool5", 1.0)
    with open_features(features) as cache:
        rows = found.scale * cache.rows("pool5", slice(None)).astype(np.float64)
        chosen = cache.overlap > 0.6
        # 1-based inclusive corners, as the authors have them.
        boxes = cache.boxes.astype(np.float64) + np.array([1, 1, 0, 0])
        assert cache.header.id in found.header.lineage
    assert 0 < (~chosen).sum() < 40
    for number, name in enumerate(("cat", "dog")):
        first = 41 * number
        own = first + np.flatnonzero(chosen[first : first + 41])
        targets = np.array([reference.targets(boxes[row], boxes[first]) for row in own])
        mean, transform = np.zeros(4), np.eye(4)
        if whiten:
            mean = targets.mean(axis=0)
            covariance = np.cov(targets.T, bias=True) + 0.001 * np.eye(4)
            transform = reference.inverse_square_root(covariance)
        weights, bias = reference.ridge(rows[own], (targets - mean) @ transform, 1000.0)
        np.testing.assert_allclose(found.mean[number], mean, atol=1e-6)
        np.testing.assert_allclose(found.whitening[number], transform, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found.weights[number], weights, atol=1e-6)
        np.testing.assert_allclose(found.bias[number], bias, atol=1e-6)
        assert printed[name]["examples"] == len(own) == found.report["examples"][number]
        assert 0.6 < printed[name]["overlap_before"] < printed[name]["overlap_after"] < 1


def test_the_file_moves_boxes_onto_their_objects(features: Path, tmp_path: Path) -> None:
    run(features, "--out", tmp_path / "bb.h5", "--penalty", 0.01)
    refiner = BoxRefiner(read_bbox_reg(tmp_path / "bb.h5"), torch.device("cpu"))
    with open_features(features) as cache:
        rows = torch.from_numpy(cache.rows("pool5", slice(None)))
        boxes, labels = torch.from_numpy(cache.boxes), torch.from_numpy(cache.labels)
    goals = boxes[(labels - 1) * 41]
    moved = refiner(rows, boxes, labels)
    assert paired_overlaps(boxes, goals).mean() < 0.85
    assert paired_overlaps(moved, goals).mean() > 0.95


def test_equal_runs_give_equal_bytes_and_settings_matter(features: Path, tmp_path: Path) -> None:
    outs = [tmp_path / name for name in ("one.h5", "two.h5", "three.h5")]
    for out in outs[:2]:
        run(features, "--out", out)
    run(features, "--out", outs[2], "--widths", "continuous")
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert read_bbox_reg(outs[2]).pixel == 0
    assert read_bbox_reg(outs[2]).header.id != read_bbox_reg(outs[0]).header.id


def test_a_class_without_examples_is_told_and_leaves_boxes_alone(tmp_path: Path) -> None:
    values = columns()
    values["overlap"][41:] = 0.5
    path = make_features(tmp_path / "f.h5", counts=COUNTS, **values)
    result = run(path, "--out", tmp_path / "bb.h5")
    assert "dog has no examples: its boxes stay as they are" in result.stderr
    refiner = BoxRefiner(read_bbox_reg(tmp_path / "bb.h5"), torch.device("cpu"))
    boxes = torch.from_numpy(values["boxes"])
    moved = refiner(torch.ones(82, 32), boxes, torch.full((82,), 2))
    torch.testing.assert_close(moved, boxes)


def test_mistakes_are_told_and_leave_the_file_of_before(features: Path, tmp_path: Path) -> None:
    out = tmp_path / "bb.h5"
    run(features, "--out", out)
    before = out.read_bytes()
    values = columns()
    far = make_features(tmp_path / "far.h5", counts=COUNTS, **values | {"overlap": np.zeros(82)})
    lost = make_features(tmp_path / "lost.h5", counts=COUNTS, **values | {"truth": np.full(82, -1)})
    wrong = {
        "has no layer 'fc8', only fc7, pool5": (features, "--layer", "fc8"),
        "has no region that overlaps an object by more than 0.6": (far,),
        "extract-features with --truth": (lost,),
        "rcnnpipe.features/1 is needed": (make_detections(tmp_path / "d.h5"),),
    }
    for message, arguments in wrong.items():
        result = run(*arguments, "--out", out, fails=1)
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1
    run(features, "--out", out, "--penalty", "0", fails=2)
    assert out.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bb.h5", "d.h5", "far.h5", "lost.h5"]
