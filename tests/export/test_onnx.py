"""Graphs find what the networks find; what would not is never written."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from rcnnpipe.artifacts.model import Model
from rcnnpipe.errors import SettingError
from rcnnpipe.export import onnx_file
from rcnnpipe.export.agreement import Agreement, Pixels, compare, detected, differences
from rcnnpipe.export.graph import DetectionRules
from rcnnpipe.export.onnx_file import Runtime, graph_of, write_onnx
from rcnnpipe.export.operators import nms_of_classes
from rcnnpipe.models.backbones import Network
from rcnnpipe.models.detector import Detector
from rcnnpipe.models.image_view import ImageView
from rcnnpipe.models.parts import Parts
from rcnnpipe.suppression import suppress
from rcnnpipe.systems import fast, faster, fpn
from tests import artifacts_made as made
from tests.detectors_made import detector_of

RULES = DetectionRules(0.2, 0.5, 100, 100)
# (height, width): enlarged, made smaller, bound by the longest side, of one pixel's height; and
# 155 / 160, whose quotient times 155 is not 160 in float32.
SIZES = [(60, 80), (201, 333), (40, 320), (155, 243), (1, 9)]


def image(size: tuple[int, int], seed: int = 0) -> Pixels:
    random = torch.Generator().manual_seed(seed)
    cells = torch.rand((1, 3, 7, 9), generator=random)
    pixels = nn.functional.interpolate(cells, size=size, mode="bicubic")
    return np.ascontiguousarray((pixels[0] * 255).clamp(0, 255).byte().permute(1, 2, 0).numpy())


def of_fast(network: Network, **changed: Any) -> Parts:
    return replace(fast.parts_of(network, ImageView((120,), 200)), **changed)


def of_faster(network: Network, **changed: Any) -> Parts:
    return replace(faster.parts_of(network, ImageView((120,), 200), "align"), **changed)


def of_fpn(network: Network, **changed: Any) -> Parts:
    return replace(fpn.parts_of(network, ImageView((120,), 200, 32), "align"), **changed)


def of_torchvision(network: Network, **changed: Any) -> Parts:
    """The demo's pyramid with all that is torchvision's own, of its several versions."""
    parts = of_fpn(network)
    assert parts.proposals is not None
    assert parts.anchors is not None
    assert parts.neck is not None
    rules: dict[str, Any] = {
        "before": 80,
        "keep": 60,
        "min_size": 1e-3,
        "resized": True,
        "least_score": 0.5,
    }
    return replace(
        parts,
        view=ImageView((160,), 266, 32, "floor"),
        pooling=replace(parts.pooling, kind="pool"),
        anchors=replace(parts.anchors, spread=True),
        proposals=replace(parts.proposals, **rules),
        neck=replace(parts.neck, norm=True),
        convolutions=1,
        rpn_depth=2,
        smallest=12.0,
        **changed,
    )


def of_separate_heads(network: Network, **changed: Any) -> Parts:
    return of_fpn(network, separate_heads=True, **changed)


SYSTEMS = [of_fast, of_faster, of_fpn, of_separate_heads, of_torchvision]


@pytest.mark.parametrize("parts", SYSTEMS)
def test_a_graph_finds_what_the_network_finds(parts: Callable[..., Parts]) -> None:
    detector = detector_of("demo", parts=parts)
    view = detector.parts.view
    # Once with caps that cut something off, once without.
    for rules in (replace(RULES, max_per_image=7, max_detections=20), DetectionRules(0, 0.3, 0, 0)):
        runtime, total = Runtime(graph_of(detector, view, rules)), 0
        assert ("proposals" in runtime.inputs) == (detector.rpn is None)
        for number, size in enumerate(SIZES):
            with torch.inference_mode():
                ours = partial(detected, detector, view, rules)
                found = compare([image(size, number)], ours, runtime)
            total += found.detections
            assert found.alone == 0, size
            assert found.box < 2e-3
            assert found.score < 1e-5
        assert total > 10


def test_no_regions_are_no_detections() -> None:
    detector = detector_of("demo", parts=of_fast)
    runtime = Runtime(graph_of(detector, detector.parts.view, RULES))
    given = {"image": np.zeros((1, 3, 40, 50), np.float32), "proposals": np.zeros((0, 4), "f4")}
    boxes, scores, labels = runtime.session.run(None, given)
    assert (boxes.shape, scores.shape, labels.shape) == ((0, 4), (0,), (0,))
    assert labels.dtype == np.int64


def test_suppression_within_classes() -> None:
    random = np.random.default_rng(5)
    corners = random.uniform(0, 40, (3, 50, 2, 2)).astype(np.float32)
    boxes = np.concatenate((corners.min(axis=2), corners.max(axis=2) + 5), axis=2)
    scores = -np.sort(-random.random((3, 50), np.float32))
    rows = nms_of_classes(torch.from_numpy(boxes), torch.from_numpy(scores), 0.4, 0.3).numpy()
    good = np.argwhere(scores > 0.3)  # by class, then falling score
    flat = boxes[tuple(good.T)], scores[tuple(good.T)], good[:, 0]
    expected = np.sort(suppress(*flat, 0.4))
    np.testing.assert_array_equal(rows, good[expected])


# What is written, and what is not


def model_of(detector: Detector, **settings: Any) -> Model:
    head = made.header("model", settings=settings)
    return Model(head, detector.settings(), detector.tensors(), {})


@pytest.fixture(scope="module")
def model() -> Model:
    return model_of(detector_of("demo", parts=of_fpn))


IMAGES = [image((60, 80)), image((90, 70), 1)]


def test_the_file(model: Model, tmp_path: Path) -> None:
    agreement = write_onnx(tmp_path / "m.onnx", model, RULES, images=IMAGES)
    assert agreement.images == 2
    assert agreement.detections > 10
    content = (tmp_path / "m.onnx").read_bytes()
    graph = onnx.load_from_string(content)
    onnx.checker.check_model(graph)
    about = json.loads(graph.metadata_props[0].value)
    assert about["classes"] == list(made.CLASSES)
    assert about["rules"]["nms_overlap"] == 0.5
    assert str(Path(onnx_file.__file__).parents[2]).encode() not in content
    write_onnx(tmp_path / "again.onnx", model, RULES, images=IMAGES)
    assert (tmp_path / "again.onnx").read_bytes() == content
    assert len(list(tmp_path.iterdir())) == 2


def test_another_scale(model: Model, tmp_path: Path) -> None:
    assert write_onnx(tmp_path / "m.onnx", model, RULES, (64,), IMAGES).detections > 10
    with pytest.raises(SettingError, match=r"at one scale, this model at 2 \(64, 80\)"):
        write_onnx(tmp_path / "two.onnx", model, RULES, (64, 80), IMAGES)


def test_a_graph_that_finds_something_else_is_not_written(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(detector: Detector, *arguments: Any) -> bytes:
        changed = detector_of("demo", parts=of_fpn)
        changed.load_state_dict(detector.state_dict())
        changed.box_deltas.weight.data[5] += 0.05
        return graph_of(changed, *arguments)

    monkeypatch.setattr(onnx_file, "graph_of", other)
    with pytest.raises(SettingError, match="does not find what the network finds"):
        write_onnx(tmp_path / "m.onnx", model, RULES, images=IMAGES)
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_compare_is_no_proof(model: Model, tmp_path: Path) -> None:
    for images in ([], IMAGES):
        with pytest.raises(SettingError, match="nothing was detected in the images"):
            write_onnx(
                tmp_path / "m.onnx", model, replace(RULES, score_threshold=1.0), None, images
            )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changed", "holds"),
    [
        ({}, True),
        ({"box": 0.11}, False),
        ({"score": 2e-3}, False),
        ({"alone": 2}, True),
        ({"alone": 3}, False),
    ],
)
def test_tolerance(changed: dict[str, Any], holds: bool) -> None:
    agreement = replace(Agreement(2, 200, 0.09, 9e-4, 0), **changed)
    if holds:
        agreement.require()
        return
    with pytest.raises(SettingError, match="200 detections in 2 images"):
        agreement.require()


def test_differences_pair_detections() -> None:
    boxes = np.array([[0, 0, 10, 10], [50, 50, 60, 60], [0, 0, 10, 10]], np.float32)
    first = {"boxes": boxes, "scores": np.array([0.9, 0.8, 0.7]), "labels": np.array([1, 1, 2])}
    turned = {name: values[::-1] for name, values in first.items()}
    assert differences(first, turned) == (0, 0, 0)
    second = turned | {"boxes": turned["boxes"] + 0.25, "scores": turned["scores"] + 0.125}
    assert differences(first, second) == pytest.approx((0.25, 0.125, 0))
    assert differences(first, turned | {"labels": np.array([2, 2, 1])})[2] == 2
    broken = turned | {"boxes": turned["boxes"] * np.nan}
    assert differences(first, broken) == (0, 0, 6)
    assert differences(first, {name: values[:1] for name, values in first.items()})[2] == 2


def test_other_models_are_refused(tmp_path: Path) -> None:
    detector = detector_of("demo", parts=of_faster)
    detector.outputs_learnt = False
    out = tmp_path / "m.onnx"
    with pytest.raises(SettingError, match="has learnt to propose regions alone"):
        write_onnx(out, model_of(detector), RULES)
    plain = Model(made.header("model"), detector.network.settings(), {}, {})
    with pytest.raises(SettingError, match="is a network of windows"):
        write_onnx(out, plain, RULES)
    assert not out.exists()


def test_missing_packages_are_named(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SettingError, match=r"run pip install 'rcnnpipe\[onnx\]'"):
        write_onnx(tmp_path / "m.onnx", model, RULES)
