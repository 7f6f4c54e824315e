"""Faster R-CNN and FPN: wrong settings, models, classes and images are told; odd ones pass."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rcnnpipe.artifacts.detections import read_detections
from rcnnpipe.artifacts.model import read_model
from rcnnpipe.randomness import generator
from tests.stages.faster_made import (
    DETECTORS,
    OUTPUTS,
    SYSTEMS,
    TUNING,
    Chain,
    make_chain,
)
from tests.stages.made import (
    ON_CPU,
    run,
    sentence,
    tensors_of,
)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return make_chain(tmp_path_factory.mktemp("refused"), 4)


# System, what is added to its usual command -> sentence
WRONG: dict[str, tuple[str, tuple[object, ...], str]] = {
    "proposals": ("faster", ("--proposals", "found.h5"), "--proposals has no meaning with"),
    "features": ("fpn", ("--features", "f.h5"), "--features has no meaning with --system fpn"),
    "regions": ("rpn", ("--foreground", 8), "--foreground has no meaning with --system rpn"),
    "box weight": ("rpn", ("--box-weight", 2), "--box-weight has no meaning with --system rpn"),
    "validation": ("rpn", ("--validate", "train"), "--validate has no meaning with --system rpn"),
    "pre-nms": ("rpn", ("--pre-nms", 9), "--pre-nms has no meaning with --system rpn"),
    "lateral": ("faster", ("--lateral",), "--lateral has no meaning with --system faster"),
    "top-down": ("rpn", ("--no-top-down",), "--no-top-down has no meaning with --system rpn"),
    "finest": ("faster", ("--finest-only",), "--finest-only has no meaning with --system faster"),
    "own pooling": (
        "rpn",
        ("--init", "faster.h5", "--pooling", "align"),
        "its own parts; leave --pooling",
    ),
    "own anchors": (
        "faster",
        ("--init", "rpn.h5", "--anchor-sizes", 9),
        "own parts; leave --anchor-sizes",
    ),
    "own lateral": ("fpn", ("--init", "fpn.h5", "--lateral"), "its own parts; leave --lateral out"),
    "own top-down": (
        "fpn",
        ("--init", "fpn.h5", "--no-top-down"),
        "its own parts; leave --no-top-down",
    ),
    "own levels": (
        "fpn",
        ("--init", "fpn.h5", "--every-level"),
        "its own parts; leave --every-level",
    ),
    "own heads": (
        "fpn",
        ("--init", "fpn.h5", "--separate-heads"),
        "its own parts; leave --separate",
    ),
    "one head": ("fpn", ("--finest-only", "--separate-heads"), "--separate-heads are for several"),
    "heads": ("faster", ("--separate-heads",), "--separate-heads has no meaning with --system"),
    "a pyramid": ("faster", ("--init", "fpn.h5"), "the detector of --init has a feature pyramid"),
    "no pyramid": ("fpn", ("--init", "faster.h5"), "the detector of --init has no feature pyramid"),
    "another": ("faster", ("--init", "faster.h5", "--network", "zf5"), "holds a demo, not a zf5"),
    "outputs": ("faster", ("--new-outputs",), "--new-outputs is for a detector of --init"),
    "no use": ("rpn", ("--init", "faster.h5", "--new-outputs"), "--new-outputs has no meaning"),
    "neither": ("fpn", ("--no-lateral", "--no-top-down"), "with neither lateral connections nor"),
    "levels": ("fpn", ("--anchor-sizes", "8,16"), "2 sizes of anchors for 4 maps; give one for"),
    "anchors": ("rpn", ("--anchor-sizes", "300,400"), "none of the RPN's anchors, from 300 pixels"),
    "layers": ("fpn", ("--init", "none", "--network", "squeezenet"), "no feature pyramid on squee"),
    "layer": ("faster", ("--train-from", "fc9"), "no layer 'fc9' to train from"),
    "images": ("faster", ("--images", 3), "--batch-size 64 and --foreground 16 are regions of 3"),
    "parts": ("rpn", ("--accumulate", 3), "--images 2 cannot be shared by 1 ranks and 3 parts"),
    "large": ("fpn", ("--scales", 10**8), "does not fit into the memory; lower --scales"),
    "bare": ("faster", ("--split", "bare"), "none of the 8 images has an object to learn from"),
    "bare rpn": ("rpn", ("--split", "bare"), "none of the 8 images has an object to learn from"),
    "rate": ("rpn", ("--lr", "1e30"), "lower --lr, or look at the batch's images: "),
    "joint rate": ("fpn", ("--lr", "1e30"), "lower --lr, or look at the batch's images: "),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_fine_tuning_is_refused(case: str, chain: Chain, tmp_path: Path) -> None:
    system, more, told = WRONG[case]
    placed = [chain.folder / str(word) if str(word).endswith(".h5") else word for word in more]
    out = tmp_path / "no.h5"
    assert told in sentence(chain.finetune(system, out, *placed, fails=True))
    assert not out.exists()


def test_wrong_proposing_is_refused(chain: Chain, tmp_path: Path) -> None:
    out = tmp_path / "no.h5"
    for model, told in (
        (chain.weights, "weights.h5 has no RPN; rcnnpipe finetune --system rpn makes one"),
        (chain.found, "rcnnpipe.model/1 is needed here"),
        (chain.absent, "absent.h5 does not exist"),
    ):
        assert told in sentence(chain.propose(model, out, fails=True))
    for more, told in (
        (("--scales", 10**8), "image '0', scaled to 133333333 x 100000000 pixels, does"),
        (("--resize-width", 50), "--resize-width has no meaning with --method rpn"),
    ):
        assert told in sentence(chain.propose(chain.rpn, out, *more, fails=True))
    words = ("propose", *chain.data, "--out", out)
    for wrong in (("--method", "rpn"), ("--model", chain.rpn)):
        result = run(*words, *wrong, fails=True)
        assert result.exit_code == 2
        assert "--method rpn and --model FILE go together" in result.stderr
    told = "--scales has no meaning without --method rpn"
    assert told in sentence(run(*words, "--scales", 50, fails=True))
    assert not out.exists()


def test_wrong_detection_is_refused(chain: Chain, tmp_path: Path) -> None:
    out = tmp_path / "no.h5"
    told = "rpn.h5 has learnt to propose regions alone; give it to rcnnpipe propose --method rpn"
    alone = ("--model", chain.rpn)
    assert told in sentence(chain.detect(out, *alone, fails=True))
    assert told in sentence(chain.detect(out, *alone, "--proposals", chain.found, fails=True))
    told = "image '0', scaled to 133333333 x 100000000 pixels, does"
    large = ("--model", chain.faster, "--scales", 10**8)
    assert told in sentence(chain.detect(out, *large, fails=True))
    assert not out.exists()


def test_an_rpn_stays_one(chain: Chain, tmp_path: Path) -> None:
    """Its outputs have learnt nothing, whatever way they are come by."""
    small, out, features = tmp_path / "small.h5", tmp_path / "no.h5", tmp_path / "f.h5"
    run("compress", chain.rpn, "--layers", "fc6:9", "--out", small)
    alone = "small.h5 has learnt to propose regions alone"
    assert alone in sentence(chain.detect(out, "--model", small, fails=True))
    extract = ("extract-features", *chain.data, "--model", chain.rpn, "--proposals", chain.found)
    told = run(*extract, *ON_CPU, "--layers", "fc7,logits", "--out", out, fails=True)
    assert "no layer 'logits', only pool5, fc6, fc7" in sentence(told)
    run(*extract, *ON_CPU, "--layers", "fc7", "--out", features)
    told = chain.detect(out, "--features", features, fails=True)
    assert "has no layer 'logits'" in sentence(told)
    assert not out.exists()


def test_outputs_that_learnt_nothing_start_anew(chain: Chain, tmp_path: Path) -> None:
    """As those of a network do: normalised without being changed, and found in the model file."""
    model = tmp_path / "m.h5"
    words = ("finetune", *chain.data, *SYSTEMS["faster"], *TUNING, "--iterations", 0)
    run(*words, "--init", chain.rpn, "--seed", 3, "--out", model)
    own, before = tensors_of(model), tensors_of(chain.rpn)
    assert not np.array_equal(own["class_scores.weight"], before["class_scores.weight"])
    assert float(own["box_deltas.weight"].std()) == pytest.approx(0.001, rel=0.1)
    assert np.array_equal(own["rpn.objectness.weight"], before["rpn.objectness.weight"])
    assert read_model(chain.rpn).architecture["outputs_learnt"] is False
    assert "outputs_learnt" not in read_model(model).architecture


def test_a_detector_whose_maps_an_rpn_trains_is_none_any_more(chain: Chain, tmp_path: Path) -> None:
    learn = (*("finetune", *chain.data), *SYSTEMS["rpn"], *TUNING, "--init", chain.faster)
    told = run(*learn, "--iterations", 1, "--out", tmp_path / "rpn.h5").stderr
    assert "the classifier of --init stays as it is, but the maps it looks at are trained" in told
    alone = sentence(chain.detect(tmp_path / "no.h5", "--model", tmp_path / "rpn.h5", fails=True))
    assert "has learnt to propose regions alone" in alone
    fixed = ("--train-from", "fc6", "--iterations", 1, "--out", tmp_path / "fixed.h5")
    assert "the classifier of --init" not in run(*learn, *fixed).stderr
    chain.detect(tmp_path / "d.h5", "--model", tmp_path / "fixed.h5")


def changed(chain: Chain, folder: Path, change: Any) -> tuple[Path, str, str]:
    """The data set with another document and the same images, or those that ``change`` writes."""
    (folder / "annotations").mkdir(parents=True)
    shutil.copytree(chain.data[0] / "images", folder / "images")
    text = json.loads((chain.data[0] / "annotations" / "instances_train.json").read_text())
    change(text)
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(text))
    return folder, "--split", "train"


def test_outputs_of_other_classes_start_anew(chain: Chain, tmp_path: Path) -> None:
    def renamed(text: Any) -> None:
        text["categories"][0]["name"] = "cat"

    def more(text: Any) -> None:
        text["categories"].append({"id": 3, "name": "blue"})

    before, out = tensors_of(chain.faster), tmp_path / "m.h5"
    words = (*SYSTEMS["faster"], *TUNING, "--iterations", 0, "--init", chain.faster, "--out", out)
    outputs = {f"{name}.{part}" for name in OUTPUTS for part in ("weight", "bias")}
    cases: dict[str, tuple[Any, set[str]]] = {
        "same": (lambda text: None, set()),
        "renamed": (renamed, outputs),
        "more": (more, outputs | {"deltas_mean", "deltas_std"}),
    }
    for name, (change, expected) in cases.items():
        result = run("finetune", *changed(chain, tmp_path / name, change), *words)
        after = tensors_of(out)
        same = {x for x in before if before[x].tobytes() == after[x].tobytes()}
        assert before.keys() - same == expected
        told = "the detector of --init knows other classes; its outputs start anew"
        assert (told in result.stderr) == (name != "same")
    run("finetune", *changed(chain, tmp_path / "new", lambda text: None), *words, "--new-outputs")
    after = tensors_of(out)
    assert {x for x in before if before[x].tobytes() != after[x].tobytes()} == outputs
    assert after["class_scores.weight"].std() == pytest.approx(0.01, rel=0.15)
    assert not after["class_scores.bias"].any()
    other = tmp_path / "renamed"
    words = ("evaluate", chain.folder / "detections-faster.h5", "--data", other, "--split", "train")
    told = sentence(run(*words, "--out", tmp_path / "scores", fails=True))
    assert "different classes: red, green against cat, green" in told


def test_a_thin_image(chain: Chain, tmp_path: Path) -> None:
    def thin(text: Any) -> None:
        text["images"][0] |= {"width": 400, "height": 1}
        text["annotations"][0] |= {"bbox": [10, 0, 30, 1], "area": 30}

    data = changed(chain, tmp_path / "data", thin)
    pixels = np.full((1, 400, 3), 90, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "data" / "images" / "train" / "000.png")
    for name in DETECTORS:
        run("detect", *data, "--model", getattr(chain, name), *ON_CPU, "--out", tmp_path / "d.h5")
        found = read_detections(tmp_path / "d.h5")
        boxes = found.boxes[: found.offsets[1]]
        assert (len(boxes) > 0) == (name == "fpn")  # the other has a least side
        assert ((boxes >= 0) & (boxes <= (400, 1, 400, 1))).all()
    words = ("finetune", *data, *SYSTEMS["rpn"], *TUNING, "--init", chain.weights)
    run(*words, "--images", 1, "--iterations", 16, "--out", tmp_path / "m.h5")
    assert np.isfinite(read_model(tmp_path / "m.h5").curves["loss"]).all()


@pytest.mark.parametrize("system", SYSTEMS)
def test_images_without_objects_are_background(system: str, chain: Chain, tmp_path: Path) -> None:
    def without(text: Any) -> None:
        text["annotations"] = text["annotations"][:4]

    data = changed(chain, tmp_path / "data", without)
    words = ("finetune", *data, *SYSTEMS[system], *TUNING, "--init", chain.weights)
    run(*words, "--images", 1, "--log-every", 1, "--no-mirror", "--out", tmp_path / "m.h5")
    order = generator(0, "images of an epoch", 0).permutation(8)
    bare = order >= 4
    assert set(bare[:8]) == {True, False}
    curves = read_model(tmp_path / "m.h5").curves
    assert (curves["objectness-loss"] > 0.01).all()
    np.testing.assert_array_equal(curves["rpn-box-loss"] == 0, bare)
    if system != "rpn":
        assert (curves["class-loss"] > 0).all()
        np.testing.assert_array_equal(curves["box-loss"] == 0, bare)
        np.testing.assert_array_equal(np.isnan(curves["foreground-accuracy"]), bare)
