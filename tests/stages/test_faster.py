"""Faster R-CNN and FPN from drawn images to scores: contents, proposals, repeats, resuming."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rcnnpipe.artifacts.detections import read_detections
from rcnnpipe.artifacts.features import open_features
from rcnnpipe.artifacts.model import read_model
from rcnnpipe.artifacts.proposals import read_proposals
from rcnnpipe.datasets import open_dataset
from rcnnpipe.extraction.detectors import DetectorExtractor
from rcnnpipe.models.detector import Detector
from rcnnpipe.models.rpn import ProposalRules, SeparateRpnHeads
from rcnnpipe.ragged import rows_of
from rcnnpipe.randomness import generator
from rcnnpipe.systems.rcnn import Sampling
from tests.reference import rpn as slow
from tests.stages.faster_made import (
    CLASSES,
    DETECTORS,
    EVERY,
    OUTPUTS,
    OWN,
    SYSTEMS,
    TUNING,
    Chain,
    make_chain,
)
from tests.stages.made import (
    ON_CPU,
    detector_in,
    open_header,
    run,
    run_by_two_ranks,
    stopped_after,
    tensors_of,
)
from tests.training.made import SIZE
from tests.training.test_detecting import expected_loss, samples_of
from tests.training.test_image_batches import source_of

RPN_LOSSES = {"iteration", "loss", "learning-rate", "objectness-loss", "rpn-box-loss"}
REGION_FIGURES = {"class-loss", "box-loss", "foreground-accuracy", "background-accuracy"}


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return make_chain(tmp_path_factory.mktemp("faster"))


def same_rows(first: Path, second: Path) -> None:
    one, two = read_detections(first), read_detections(second)
    assert len(one.boxes) > 8
    for column in ("offsets", "labels", "scores", "boxes"):
        np.testing.assert_array_equal(getattr(one, column), getattr(two, column))


# Models


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_model_tells_how_it_was_made(system: str, chain: Chain) -> None:
    model = read_model(chain.folder / f"{system}.h5")
    header, settings = model.header, model.header.settings
    assert header.classes == CLASSES
    inputs = {"data": open_dataset(chain.data[0], "train").id}
    assert header.inputs == inputs | {"init": open_header(chain.weights).id}
    expected = {"system": system, "network": "demo", "train-from": "conv2", "mirror": True}
    expected["difficult"] = "keep" if system == "fpn" else "drop"  # the sheet, section 9
    assert {name: settings[name] for name in expected} == expected
    assert settings["parts"] == model.architecture["detector"]
    foreign = {"proposals", "crop", "features", "image-cache", "checkpoint-every", "init"}
    if system == "rpn":
        foreign |= {"batch-size", "foreground", "box-weight", "new-outputs", "pre-nms"}
    assert not settings.keys() & foreign
    figures = RPN_LOSSES if system == "rpn" else RPN_LOSSES | REGION_FIGURES
    assert model.curves.keys() == figures
    assert model.curves["iteration"].tolist() == [4, 8]
    losses = [values for name, values in model.curves.items() if name.endswith("-loss")]
    np.testing.assert_allclose(model.curves["loss"], sum(losses), rtol=1e-5)


def test_parts_are_the_papers_as_much_smaller_as_the_network(chain: Chain) -> None:
    # The demo's windows are a quarter of 224 pixels: so are anchors and the smallest boxes.
    faster = detector_in(chain.faster).parts
    assert faster.anchors is not None
    assert faster.anchors.sizes == ((32, 64, 128),)
    assert faster.anchors.ratios == (0.5, 1, 2)
    assert faster.proposals == ProposalRules(before=6000, keep=300, min_size=4, per_level=False)
    assert detector_in(chain.rpn).parts == faster
    fpn = detector_in(chain.fpn).parts
    assert fpn.anchors is not None
    assert fpn.anchors.sizes == ((32,), (64,), (128,), (256,))
    assert fpn.strides == [(4, 4), (8, 8), (16, 16), (32, 32)]
    assert fpn.view.multiple == 32
    assert (fpn.pooling.kind, fpn.pooling.size) == ("pool", 7)
    rules = {"before": 1000, "keep": 1000, "min_size": 0}
    assert fpn.proposals == ProposalRules(**rules, per_level=True, drop_first=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("system", SYSTEMS)
def test_first_values(system: str, chain: Chain, tmp_path: Path) -> None:
    chain.finetune(system, tmp_path / "m.h5", "--iterations", 0)
    start, weights = tensors_of(tmp_path / "m.h5"), tensors_of(chain.weights)
    for name, deviation in {"rpn.conv": 0.01, "rpn.objectness": 0.01, "rpn.deltas": 0.01}.items():
        assert start[f"{name}.weight"].std() == pytest.approx(deviation, rel=0.15)
        assert not start[f"{name}.bias"].any()
    np.testing.assert_allclose(start["deltas_std"], [(0.1, 0.1, 0.2, 0.2)] * 3)
    assert not start["deltas_mean"].any()
    kept = {name: value for name, value in weights.items() if f"network.{name}" in start}
    assert ("fc7.weight" in kept) == (system != "fpn")
    for name, value in kept.items():
        np.testing.assert_array_equal(start[f"network.{name}"], value)


@pytest.mark.parametrize("system", SYSTEMS)
def test_what_is_trained(system: str, chain: Chain, tmp_path: Path) -> None:
    chain.finetune(system, tmp_path / "m.h5", "--iterations", 0)
    before, after = tensors_of(tmp_path / "m.h5"), tensors_of(chain.folder / f"{system}.h5")
    same = {name for name in before if before[name].tobytes() == after[name].tobytes()}
    fixed = {"network.conv1.bias", "network.conv1.weight", "deltas_mean", "deltas_std"}
    if system == "rpn":  # which has no loss of regions
        layers = ("network.fc6", "network.fc7", *OUTPUTS)
        fixed |= {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
    assert same == fixed


@pytest.mark.parametrize("straddle", ["drop", "keep"])
@pytest.mark.parametrize("system", ["rpn", "fpn"])
def test_the_first_loss_is_the_sheets(
    system: str, straddle: str, chain: Chain, tmp_path: Path
) -> None:
    start, out = tmp_path / "start.h5", tmp_path / "m.h5"
    more = ("--straddle", straddle, "--post-nms", 40) if system == "fpn" else ()
    chain.finetune(system, start, "--iterations", 0)
    chain.finetune(system, out, "--iterations", 1, "--straddle", straddle, *more)
    curves = {name: values[0] for name, values in read_model(out).curves.items()}
    detector, dataset = detector_in(start), open_dataset(chain.data[0], "train")
    source = source_of(
        dataset.records,
        proposals=[np.empty((0, 4), np.float32)] * 8,
        view=detector.parts.view,
        preprocessing=detector.network.preprocessing,
        seed=0,
    )
    ((images, examples),) = next(iter(source.batches(0, 1))).pieces
    rules = ProposalRules(before=2000, keep=40, min_size=0, per_level=True, drop_first=False)
    with torch.inference_mode():
        found = detector.find_regions(detector.maps(images), [SIZE] * 2, [(1, 1)] * 2, rules)
    losses = np.array(
        [
            slow_rpn_loss(found, number, example, drop=straddle == "drop")
            for number, example in enumerate(examples)
        ]
    )
    objectness, boxes = losses.mean(axis=0)
    assert curves["objectness-loss"] == pytest.approx(objectness, rel=1e-5)
    assert curves["rpn-box-loss"] == pytest.approx(boxes, rel=1e-5)
    if system == "rpn":
        return
    # Regions are the proposals of the same pass and the objects themselves, 32 of each image.
    for example, (proposals, _) in zip(examples, found.proposals, strict=True):
        object.__setattr__(example, "proposals", proposals)
    samples = samples_of(examples, Sampling(batch_size=64, foreground=16, background_from=0.0))
    assert [len(sample.boxes) for sample in samples] == [32, 32]
    classes, moves = expected_loss(detector, images, examples, samples)
    assert curves["class-loss"] == pytest.approx(classes, rel=1e-5)
    assert curves["box-loss"] == pytest.approx(moves, rel=1e-5)


def slow_rpn_loss(found: Any, number: int, example: Any, drop: bool) -> tuple[float, float]:
    """Of an image, by one anchor after another; at most 128 of 256 are objects."""
    anchors, truth = found.anchors.tolist(), example.truth.boxes.tolist()
    labels, matched = slow.label(anchors, truth, [], SIZE, (0.7, 0.3), drop)
    assert {-1, 0, 1} == set(labels)
    random = generator(0, "anchors", *example.key)
    positives, negatives = (np.flatnonzero(np.array(labels) == label) for label in (1, 0))
    assert 0 < len(positives) <= 128
    wanted = 256 - len(positives)
    if len(negatives) > wanted:
        chosen = random.choice(len(negatives), wanted, replace=False, shuffle=False)
        negatives = negatives[np.sort(chosen)]
    targets = [truth[number] for number in matched]
    outputs = (found.logits[number].tolist(), found.deltas[number].tolist(), anchors, targets)
    return slow.loss(*outputs, positives.tolist(), negatives.tolist(), 3.0)


ABLATIONS: dict[str, tuple[str, tuple[object, ...], dict[str, Any]]] = {
    "no lateral": ("fpn", ("--no-lateral",), {"lateral": False}),
    "no top-down": ("fpn", ("--no-top-down",), {"top-down": False}),
    "finest only": ("fpn", ("--finest-only",), {"finest-only": True}),
    "separate heads": ("fpn", ("--separate-heads",), {"shared-heads": False}),
    "straddle": ("faster", ("--straddle", "keep"), {"straddle": "keep"}),
    "anchors": ("faster", ("--anchor-sizes", "24,48"), {"anchor-sizes": [24, 48]}),
    "a pyramid's": ("fpn", ("--anchor-sizes", "24,48,96,200"), {"anchor-sizes": [24, 48, 96, 200]}),
    "pre-nms": ("faster", ("--pre-nms", 30), {"pre-nms": 30}),
    "post-nms": ("fpn", ("--post-nms", 5), {"post-nms": 5}),
    "align": ("faster", ("--pooling", "align"), {"pooling": "align"}),
}


@pytest.mark.parametrize("case", ABLATIONS)
def test_ablations_are_trained_recorded_and_detect(case: str, chain: Chain, tmp_path: Path) -> None:
    system, more, settings = ABLATIONS[case]
    usual, out = chain.folder / f"{system}.h5", tmp_path / "m.h5"
    chain.finetune(system, out, *more)
    model, plain = read_model(out), read_model(usual)
    assert {name: model.header.settings[name] for name in settings} == settings
    assert model.header.id != plain.header.id
    assert np.isfinite(model.curves["loss"]).all()
    assert model.curves["loss"][0] != plain.curves["loss"][0]
    chain.detect(tmp_path / "d.h5", "--model", out)
    found, before = (
        read_detections(tmp_path / "d.h5"),
        read_detections(chain.folder / f"detections-{system}.h5"),
    )
    assert len(found.boxes) > 8
    assert not np.array_equal(found.scores[:8], before.scores[:8])


def test_ablations_change_the_parts_they_name(chain: Chain, tmp_path: Path) -> None:
    whole = {name for name in tensors_of(chain.fpn) if name.startswith("neck.")}

    def neck(*more: object) -> tuple[Detector, set[str]]:
        chain.finetune("fpn", tmp_path / "m.h5", "--iterations", 0, *more)
        names = {name for name in tensors_of(tmp_path / "m.h5") if name.startswith("neck.")}
        return detector_in(tmp_path / "m.h5"), whole - names

    detector, gone = neck("--no-lateral")
    assert {name.split(".")[1] for name in gone} == {"inner_blocks"}
    detector, gone = neck("--no-top-down")
    assert gone == set()
    assert detector.parts.neck is not None
    assert not detector.parts.neck.top_down
    detector, gone = neck("--finest-only")
    assert {name.split(".")[1] for name in gone} == {"layer_blocks"}
    assert detector.parts.strides == [(4, 4)]
    assert detector.parts.anchors is not None
    assert detector.parts.anchors.sizes == ((32, 64, 128, 256, 512),)
    detector, _ = neck("--finest-only", "--anchor-sizes", "16,32")
    assert detector.parts.anchors is not None
    assert detector.parts.anchors.sizes == ((16, 32),)


def test_separate_heads_are_one_for_each_map(chain: Chain, tmp_path: Path) -> None:
    shared = {name: value for name, value in tensors_of(chain.fpn).items() if "rpn." in name}
    model = tmp_path / "m.h5"
    chain.finetune("fpn", model, "--separate-heads")
    detector, trained = detector_in(model), tensors_of(model)
    assert isinstance(detector.rpn, SeparateRpnHeads)
    names = {f"rpn.heads.{n}.{x.removeprefix('rpn.')}" for n in range(4) for x in shared}
    assert {name for name in trained if name.startswith("rpn.")} == names
    chain.finetune("fpn", tmp_path / "start.h5", "--separate-heads", "--iterations", 0)
    start = tensors_of(tmp_path / "start.h5")
    for name in names:
        # Each learns from its own map, but boxes only where that has anchors of objects.
        if "deltas" not in name:
            assert not np.array_equal(start[name], trained[name]), name
    first, second = (start[f"rpn.heads.{n}.conv.weight"] for n in (0, 1))
    assert not np.array_equal(first, second)
    # What is trained on keeps its heads.
    chain.finetune("fpn", tmp_path / "more.h5", "--init", model, "--iterations", 0)
    assert isinstance(detector_in(tmp_path / "more.h5").rpn, SeparateRpnHeads)


@pytest.mark.parametrize("system", SYSTEMS)
def test_it_learns_to_find_things(system: str, chain: Chain, tmp_path: Path) -> None:
    model, found, scores = tmp_path / "m.h5", tmp_path / "found.h5", tmp_path / "scores"
    more = (40, "--lr", 0.02, "--straddle", "keep") if system == "rpn" else (60, "--lr", 0.02)
    chain.finetune(system, model, "--log-every", 8, "--iterations", *more)
    curves = read_model(model).curves
    assert curves["objectness-loss"][-1] < 0.4 * curves["objectness-loss"][0]
    if system == "rpn":
        chain.propose(model, found, "--max-boxes", 20, "--min-size", 6)
    else:
        chain.detect(found, "--model", model)
    run("evaluate", found, "--data", *chain.data, "--out", scores)
    metrics = json.loads((scores / "metrics.json").read_text())
    if system == "rpn":
        assert metrics["recall_50_100"] > 0.7
    else:
        assert metrics["voc_map_area"] > 0.9


# Proposals


def test_proposals_are_like_any(chain: Chain) -> None:
    found, dataset = read_proposals(chain.found), open_dataset(chain.data[0], "train")
    assert found.header.inputs == {"data": dataset.id, "model": open_header(chain.rpn).id}
    settings = found.header.settings
    expected = {"method": "rpn", "max-boxes": 2000, "min-size": 6, "device": "cpu", "scales": None}
    assert {name: settings[name] for name in expected} == expected
    assert not settings.keys() & {"strategy", "overlap", "boxes", "columns"}
    assert found.boxes.dtype == np.float32
    low, high = found.boxes[:, :2], found.boxes[:, 2:]
    assert (low >= 0).all()
    assert (high <= (SIZE[1], SIZE[0])).all()
    assert (high - low >= 6 - 1e-4).all()
    assert ((found.scores > 0) & (found.scores < 1)).all()
    for number in range(8):
        scores = found.scores[rows_of(found.offsets, number)]
        assert len(scores) > 100
        assert (np.diff(scores) <= 0).all()
    told = json.loads(run("inspect", chain.found, "--json").stdout)
    assert (told["schema"], told["warnings"]) == ("rcnnpipe.proposals/1", [])
    assert (told["images"]["count"], told["images"]["without_rows"]) == (8, 0)


def test_proposals_equal_the_slow_reference(chain: Chain) -> None:
    # As in alternating training all anchors go into suppression, those over the border too.
    detector, found = detector_in(chain.rpn), read_proposals(chain.found)
    dataset = open_dataset(chain.data[0], "train")
    pixels = torch.from_numpy(np.array(Image.open(dataset.records[2].path))).permute(2, 0, 1)
    with torch.inference_mode():
        maps = detector.maps(detector.network.preprocessing.apply(pixels)[None])
        seen = detector.find_regions(maps, [SIZE], [(1.0, 1.0)])
    rules = ProposalRules(before=0, keep=2000, min_size=6, per_level=False)
    outputs = ([seen.logits[0].tolist()], [seen.deltas[0].tolist()], [seen.anchors.tolist()])
    boxes, scores = slow.proposals(*outputs, SIZE, 6, rules)
    rows = rows_of(found.offsets, 2)
    assert len(boxes) == rows.stop - rows.start
    np.testing.assert_allclose(found.scores[rows], scores, rtol=1e-6)
    np.testing.assert_allclose(found.boxes[rows], boxes, atol=1e-4)


def test_settings_of_proposals(chain: Chain, tmp_path: Path) -> None:
    few, large, scaled = (tmp_path / f"{name}.h5" for name in ("few", "large", "scaled"))
    chain.propose(chain.rpn, few, "--max-boxes", 7, "--min-size", 6)
    usual, first = read_proposals(chain.found), read_proposals(few)
    assert np.diff(first.offsets).tolist() == [7] * 8
    for number in range(8):
        best = rows_of(usual.offsets, number).start
        own = first.boxes[rows_of(first.offsets, number)]
        np.testing.assert_array_equal(own, usual.boxes[best : best + 7])
    chain.propose(chain.rpn, large)
    sides = np.diff(read_proposals(large).boxes.reshape(-1, 2, 2), axis=1)
    assert 4 <= sides.min() < 20  # the model's own least side, not selective search's
    assert open_header(large).settings["min-size"] == 4
    chain.propose(chain.fpn, large)  # whose own least side is 0
    assert open_header(large).settings["min-size"] == 0
    chain.propose(chain.rpn, large, "--min-size", 97)
    assert len(read_proposals(large).boxes) == 0
    chain.propose(chain.rpn, scaled, "--scales", 100, "--min-size", 6)
    assert open_header(scaled).settings["scales"] == [100]
    assert not np.array_equal(read_proposals(scaled).boxes[:8], usual.boxes[:8])


def test_proposals_are_evaluated_and_learnt_from(chain: Chain, tmp_path: Path) -> None:
    run("evaluate", chain.found, "--data", *chain.data, "--out", tmp_path / "scores")
    metrics = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert metrics["objects"] == 8
    assert metrics["recall_50_300"] == 1
    fast = ("--system", "fast", *TUNING, "--batch-size", 32, "--foreground", 8)
    seen = ("finetune", *chain.data, "--proposals", chain.found, "--init", chain.weights)
    run(*seen, *fast, "--out", tmp_path / "m.h5")
    header = open_header(tmp_path / "m.h5")
    assert header.inputs["proposals"] == open_header(chain.found).id
    assert open_header(chain.rpn).id in header.lineage


@pytest.mark.parametrize("system", DETECTORS)
def test_equal_proposing_gives_equal_bytes(system: str, chain: Chain, tmp_path: Path) -> None:
    out, model = tmp_path / "p.h5", chain.folder / f"{system}.h5"
    for workers in (0, 3):
        chain.propose(model, out, *OWN[system], "--workers", workers)
        assert out.read_bytes() == (chain.folder / f"own-{system}.h5").read_bytes()


@pytest.mark.parametrize("stop", [1, 4, 8])
def test_proposing_that_was_stopped_goes_on(
    stop: int, chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, original, seen = tmp_path / "stopped.h5", DetectorExtractor.__call__, []

    def counted(self: DetectorExtractor, image: Any, todo: Any) -> Any:
        seen.append(todo.record.image_id)
        if len(seen) == stop:
            raise KeyboardInterrupt
        return original(self, image, todo)

    monkeypatch.setattr(DetectorExtractor, "__call__", counted)
    told = chain.propose(chain.rpn, out, "--min-size", 6, fails=True).output
    assert "goes on from what it has saved" in told
    del seen[:]
    seen += ["not stopped"] * 20
    chain.propose(chain.rpn, out, "--min-size", 6)
    assert len(seen) - 20 == 8 - (stop - 1)
    assert out.read_bytes() == chain.found.read_bytes()
    assert not out.with_name("stopped.h5.partial").exists()


# Detections


@pytest.mark.parametrize("system", DETECTORS)
def test_own_regions_are_those_it_proposes(system: str, chain: Chain, tmp_path: Path) -> None:
    model, detections = chain.folder / f"{system}.h5", chain.folder / f"detections-{system}.h5"
    found, header = tmp_path / "d.h5", open_header(detections)
    assert header.inputs.keys() == {"data", "model"}
    own = ("--proposals", chain.folder / f"own-{system}.h5")
    chain.detect(found, "--model", model, *own)
    same_rows(found, detections)
    assert open_header(found).inputs.keys() == {"data", "model", "proposals"}
    # Regions of another method, exchanged at test
    chain.detect(found, "--model", model, "--proposals", chain.proposals, *EVERY, "--no-refine")
    exchanged, proposals = read_detections(found), read_proposals(chain.proposals)
    assert len(exchanged.boxes) == 2 * len(proposals.boxes)
    known = {tuple(box) for box in proposals.boxes.tolist()}
    assert {tuple(box) for box in exchanged.boxes.tolist()} == known


@pytest.mark.parametrize("system", DETECTORS)
def test_detections_from_pixels_equal_those_from_the_cache(
    system: str, chain: Chain, tmp_path: Path
) -> None:
    model, features = chain.folder / f"{system}.h5", tmp_path / "features.h5"
    own = ("--proposals", chain.folder / f"own-{system}.h5", "--max-proposals", 60)
    words = ("extract-features", *chain.data, "--model", model, *own, *ON_CPU)
    run(*words, "--layers", "pool5,fc7,logits,deltas", "--out", features)
    with open_features(features) as cache:
        channels, side = (96, 3) if system == "faster" else (32, 7)
        assert cache.layers["pool5"] == channels * side**2
        assert cache.is_truth.sum() == 8
    pixels, cached = tmp_path / "pixels.h5", tmp_path / "cached.h5"
    chain.detect(pixels, "--model", model, "--max-proposals", 60, *EVERY)
    chain.detect(cached, "--features", features, *EVERY)
    one, two = read_detections(pixels), read_detections(cached)
    assert np.diff(one.offsets).tolist() == np.diff(two.offsets).tolist() == [120] * 8
    for number in range(8):
        for label in (1, 2):
            rows = rows_of(one.offsets, number)
            picked = [slice_of(file, rows, label) for file in (one, two)]
            np.testing.assert_allclose(picked[0][0], picked[1][0], rtol=2e-3, atol=1e-3)
            distance = np.abs(picked[0][1][:, None] - picked[1][1][None]).max(axis=2)
            assert (distance.min(axis=1) < 0.03).all()
    # What is trained on the features serves own regions as well.
    run("train-svm", features, "--layer", "fc7", "--out", tmp_path / "svm.h5")
    svm = ("--svm", tmp_path / "svm.h5")
    chain.detect(pixels, "--model", model, "--max-proposals", 60, *svm)
    chain.detect(cached, "--features", features, *svm)
    one, two = read_detections(pixels), read_detections(cached)
    assert len(one.boxes) == pytest.approx(len(two.boxes), abs=2)
    np.testing.assert_allclose(one.scores.max(), two.scores.max(), rtol=1e-3)


def slice_of(file: Any, rows: slice, label: int) -> tuple[Any, Any]:
    """Scores and boxes of a class in an image."""
    own = file.labels[rows] == label
    return file.scores[rows][own], file.boxes[rows][own]


def test_fewer_regions_of_its_own(chain: Chain, tmp_path: Path) -> None:
    # Ren et al. 2015, table 2: 300 and 100 proposals at test, and without suppression 6000.
    found, usual = tmp_path / "d.h5", tmp_path / "usual.h5"
    more = (*EVERY, "--no-refine", "--max-proposals")
    chain.detect(usual, "--model", chain.faster, *more, 0)
    own = read_proposals(chain.folder / "own-faster.h5")
    assert np.diff(read_detections(usual).offsets).tolist() == (2 * np.diff(own.offsets)).tolist()
    chain.detect(found, "--model", chain.faster, *more, 5)
    fewer = read_detections(found)
    assert np.diff(fewer.offsets).tolist() == [10] * 8
    for number in range(8):
        boxes = fewer.boxes[rows_of(fewer.offsets, number)]
        best = own.boxes[own.offsets[number] : own.offsets[number] + 5]
        assert {tuple(box) for box in boxes.tolist()} == {tuple(box) for box in best.tolist()}


def test_images_and_folders_need_no_proposals(chain: Chain, tmp_path: Path) -> None:
    images, more = chain.data[0] / "images" / "train", ("--model", chain.fpn, "--max-per-set", 0)
    chain.detect(tmp_path / "whole.h5", *more)
    whole = read_detections(tmp_path / "whole.h5")
    for place, count in ((images / "000.png", 1), (images, 8)):
        run("detect", place, *more, *ON_CPU, "--out", tmp_path / "d.h5")
        found = read_detections(tmp_path / "d.h5")
        assert len(found.image_ids) == count
        rows = slice(0, whole.offsets[count])
        for column in ("boxes", "scores", "labels"):
            np.testing.assert_array_equal(getattr(found, column), getattr(whole, column)[rows])


def test_compressed_detectors_find_regions(chain: Chain, tmp_path: Path) -> None:
    words = ("compress", chain.faster, "--layers", "fc6:24,fc7:16")
    run(*words, "--out", tmp_path / "c.h5")
    before, after = tensors_of(chain.faster), tensors_of(tmp_path / "c.h5")
    for name in (name for name in before if name.startswith("rpn.")):
        np.testing.assert_array_equal(before[name], after[name])
    more = (*EVERY, "--no-refine")
    chain.detect(tmp_path / "d.h5", "--model", tmp_path / "c.h5", *more)
    chain.detect(tmp_path / "e.h5", "--model", chain.faster, *more)
    one, two = read_detections(tmp_path / "d.h5"), read_detections(tmp_path / "e.h5")
    np.testing.assert_array_equal(one.offsets, two.offsets)
    assert not np.array_equal(one.scores, two.scores)


def test_a_compressed_pyramid_is_trained_on(chain: Chain, tmp_path: Path) -> None:
    small, out = tmp_path / "c.h5", tmp_path / "m.h5"
    run("compress", chain.fpn, "--layers", "fc6:24,fc7:16", "--out", small)
    chain.finetune("fpn", out, "--init", small, "--iterations", 1, "--lr", 1e-6)
    before, after = tensors_of(small), tensors_of(out)
    assert before["fc6.0.weight"].shape[0] == 24
    assert before.keys() == after.keys()
    for name in ("fc6.0.weight", "fc6.1.weight", "fc7.1.bias", "class_scores.weight"):
        np.testing.assert_allclose(after[name], before[name], rtol=1e-3, atol=1e-5)
    assert not np.array_equal(after["fc6.0.weight"], before["fc6.0.weight"])
    chain.detect(tmp_path / "d.h5", "--model", out)
    assert len(read_detections(tmp_path / "d.h5").boxes) > 0


# Repeats


@pytest.mark.parametrize("system", SYSTEMS)
def test_equal_runs_give_equal_bytes(system: str, chain: Chain, tmp_path: Path) -> None:
    out, usual = tmp_path / "m.h5", chain.folder / f"{system}.h5"
    chain.finetune(system, out, "--workers", 3, "--checkpoint-every", 7, "--image-cache", 0)
    assert out.read_bytes() == usual.read_bytes()
    if system != "rpn":
        detections = chain.folder / f"detections-{system}.h5"
        chain.detect(tmp_path / "d.h5", "--model", usual, "--workers", 0)
        assert (tmp_path / "d.h5").read_bytes() == detections.read_bytes()
    chain.finetune(system, out, "--seed", 1)
    assert out.read_bytes() != usual.read_bytes()


@pytest.mark.parametrize(
    ("system", "stop"), [("rpn", 5), ("faster", 1), ("faster", 5), ("fpn", 5), ("fpn", 8)]
)
def test_a_fine_tuning_that_was_stopped_goes_on(
    system: str, stop: int, chain: Chain, tmp_path: Path
) -> None:
    out = tmp_path / "stopped.h5"
    with stopped_after(stop - 1):
        chain.finetune(system, out, fails=True)
    assert not out.exists()
    result = chain.finetune(system, out)
    saved = (stop - 1) // 3 * 3
    assert (f"going on after iteration {saved}," in result.stderr) == (saved > 0)
    assert out.read_bytes() == (chain.folder / f"{system}.h5").read_bytes()
    assert not out.with_name("stopped.h5.partial").exists()


def test_parts_of_a_batch_add_up(chain: Chain, tmp_path: Path) -> None:
    # Of regions tests/training/test_detecting.py shows it: scores of a fresh RPN are so near to
    # each other that rounding, which is not the same on every processor, changes their order.
    more = ("--iterations", 2, "--log-every", 1)
    chain.finetune("rpn", tmp_path / "one.h5", *more)
    chain.finetune("rpn", tmp_path / "two.h5", *more, "--accumulate", 2)
    same_training(tmp_path / "one.h5", tmp_path / "two.h5")


def same_training(first: Path, second: Path) -> None:
    one, two = read_model(first), read_model(second)
    for name, values in one.curves.items():
        np.testing.assert_allclose(two.curves[name], values, rtol=1e-5, atol=1e-6, err_msg=name)
    for name, tensor in one.tensors.items():
        np.testing.assert_allclose(two.tensors[name], tensor, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_two_ranks(system: str, chain: Chain, tmp_path: Path) -> None:
    # Faster R-CNN's head has dropout on the demo network, none on a ResNet. In parts, since scores
    # of a fresh RPN are so near to each other that rounding would change the order of proposals.
    weights = chain.weights
    if system == "faster":
        weights, few = tmp_path / "w.h5", ("--epochs", 0, "--batch-size", 8, *ON_CPU)
        run("pretrain", *chain.data, "--network", "resnet18", *few, "--out", weights)
    words = ("finetune", *chain.data, *SYSTEMS[system], *TUNING, "--init", weights)
    more: tuple[object, ...] = ("--iterations", 2, "--log-every", 1, "--lr", 0.001)
    if system == "faster":  # its usual anchors on a ResNet are larger than the images
        more += ("--anchor-sizes", "24,48")
    run(*words, *more, "--accumulate", 2, "--out", tmp_path / "one.h5")
    run_by_two_ranks(*words, *more, "--out", tmp_path / "two.h5")
    ranks = [open_header(tmp_path / f"{name}.h5").settings["ranks"] for name in ("one", "two")]
    assert ranks == [1, 2]
    same_training(tmp_path / "one.h5", tmp_path / "two.h5")
    if system == "rpn":
        words = ("propose", *chain.data, "--method", "rpn", "--model", chain.rpn, *ON_CPU)
        run_by_two_ranks(*words, "--min-size", 6, "--out", tmp_path / "p.h5")
        assert (tmp_path / "p.h5").read_bytes() == chain.found.read_bytes()
    elif system == "faster":
        out = tmp_path / "d.h5"
        run_by_two_ranks("detect", *chain.data, "--model", chain.faster, *ON_CPU, "--out", out)
        assert out.read_bytes() == (chain.folder / "detections-faster.h5").read_bytes()
