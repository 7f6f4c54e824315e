"""Artifacts with one thing in them that cannot be: columns, numbers, shapes, attributes."""

import json
from collections.abc import Callable, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.robustness.pipeline import Made
from tests.robustness.refusal import OUT, Case, Cases, Spot, changed

CASES = Cases()


def spoilt(
    name: str, stage: str, artifact: str, *says: str, change: Callable[[h5py.File], object]
) -> None:
    """A case: one of the pipeline's files with one thing in it changed."""

    def words(spot: Spot) -> Sequence[object]:
        path, source = spot.folder / f"{artifact}.h5", getattr(spot.made, artifact)
        changed(source, change)(path)
        return spot.stage(stage, source, path)

    CASES(name, f"{artifact}.h5", *says, out=OUT.get(stage, "out.h5"))(words)


def put(name: str, index: Any, value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[name][index] = value

    return change


def instead(name: str, value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = value

    return change


def without(name: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]

    return change


def attribute(name: str, value: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file.attrs[name] = value

    return change


FT, EX, SVM, REG, DET, EXP = (
    *("finetune", "extract-features", "train-svm", "train-bbox-reg", "detect", "export"),
)
spoilt("a box that is no number", FT, "proposals", change=put("boxes", (3, 1), np.nan))
spoilt("a box without end", EX, "proposals", change=put("boxes", (3, 2), np.inf))
spoilt("an inverted box", EX, "proposals", change=put("boxes", 3, (50, 50, 40, 60)))
spoilt("offsets that fall", EX, "proposals", change=put("offsets", 1, 10**6))
spoilt("offsets too short", EX, "proposals", change=put("offsets", -1, 7))
spoilt("no boxes", EX, "proposals", change=without("boxes"))
spoilt("boxes of five", EX, "proposals", change=instead("boxes", np.zeros((300, 5))))
spoilt("boxes of words", EX, "proposals", change=instead("boxes", np.full((300, 4), b"x")))
spoilt("no image ids", EX, "proposals", change=without("image_ids"))
spoilt("image ids that are numbers", EX, "proposals", change=instead("image_ids", np.arange(5)))
spoilt("no sizes", EX, "proposals", change=without("sizes"))
spoilt("too few sizes", EX, "proposals", change=instead("sizes", np.full((2, 2), 100)))
spoilt("a folder for boxes", EX, "proposals", change=instead("boxes", np.arange(0)))
spoilt("one number for scores", EX, "proposals", change=instead("scores", np.float32(1)))
spoilt("no tensors", EX, "model", change=without("tensors"))
spoilt("no architecture", EX, "model", change=lambda file: file.attrs.__delitem__("architecture"))
spoilt("an architecture of no kind", EX, "model", change=attribute("architecture", "{}"))
spoilt("an architecture that is no JSON", EX, "model", change=attribute("architecture", "{"))
spoilt("a missing tensor", EX, "model", change=without("tensors/conv1.weight"))
spoilt(
    "a tensor of another shape", EX, "model", "conv1.weight",
    change=instead("tensors/conv1.weight", np.zeros((2, 2), np.float32)),
)  # fmt: skip
spoilt(
    "weights that are no numbers", EX, "model",
    change=put("tensors/conv1.weight", 0, np.nan),
)  # fmt: skip
spoilt("labels of no class", SVM, "features", change=put("labels", 0, 99))
spoilt("labels below", REG, "features", change=put("labels", 0, -7))
spoilt("truth of no row", REG, "features", change=put("truth", slice(None), 10**6))
spoilt("no layers", SVM, "features", change=without("layers"))
spoilt("a mean norm of nothing", SVM, "features", change=attribute("mean_norm/fc7", "0"))
spoilt("a mean norm of NaN", REG, "features", change=attribute("mean_norm/pool5", "NaN"))
spoilt("features that are no numbers", SVM, "features", change=put("layers/fc7", 0, np.nan))
spoilt("features without end", REG, "features", change=put("layers/pool5", 0, np.inf))
spoilt("overlaps of other classes", SVM, "features",
       change=instead("overlaps", np.zeros((308, 7), np.float32)))  # fmt: skip
spoilt("an SVM of no layer", DET, "svm", change=attribute("layer", "fc99"))
spoilt("an SVM that is no number", DET, "svm", change=put("weights", 0, np.nan))
spoilt("an SVM of other length", DET, "svm",
       change=instead("weights", np.zeros((2, 7), np.float32)))  # fmt: skip
spoilt("an SVM without bias", DET, "svm", change=without("bias"))
spoilt("an SVM without scale", DET, "svm", change=attribute("scale", "x"))
spoilt("whitening that cannot be undone", DET, "bbox_reg", change=put("whitening", 0, 0))
spoilt("regression that is no number", DET, "bbox_reg", change=put("weights", 0, np.nan))
spoilt("detections of no class", EXP, "detections", change=put("labels", 0, 9))
spoilt("scores that are no numbers", EXP, "detections", change=put("scores", 0, np.nan))
spoilt("scores that are missing", "show", "detections", change=without("scores"))

POOL, TUNE, ANEW = "pool", "finetune-pooled", "suppress-anew"


def detector_with(*path: str, value: Any) -> Callable[[h5py.File], None]:
    """Changes a setting of a model, of a detector as a rule."""

    def change(file: h5py.File) -> None:
        architecture = json.loads(file.attrs["architecture"])
        reduce(getitem, path[:-1], architecture)[path[-1]] = value
        file.attrs["architecture"] = json.dumps(architecture)

    return change


def head_with(part: str, name: str, value: Any) -> Callable[[h5py.File], None]:
    """Changes a setting of a model's "pyramid", or of its "view" of regions."""
    return detector_with("head", part, name, value=value)


spoilt("bins by nothing", POOL, "pyramid", "'0, 2'", change=head_with("pyramid", "levels", [0, 2]))
spoilt("bins by words", POOL, "pyramid", change=head_with("pyramid", "levels", ["a", "b"]))
spoilt("bins that the weights do not fit", POOL, "pyramid", "fc6.weight",
       change=head_with("pyramid", "levels", [1, 3]))  # fmt: skip
spoilt("bins that are a number", POOL, "pyramid", change=head_with("pyramid", "levels", 6))
spoilt("a training unheard of", POOL, "pyramid", change=head_with("pyramid", "training", "cells"))
spoilt("a factor of nothing", POOL, "pyramid", change=head_with("pyramid", "scale", 0))
spoilt("a factor that is a word", POOL, "pyramid", change=head_with("pyramid", "scale", "x"))
spoilt("no scales", POOL, "pyramid", "at least one", change=head_with("view", "scales", []))
spoilt("scales of nothing", POOL, "pyramid", change=head_with("view", "scales", [0]))
spoilt("scales that are words", POOL, "pyramid", change=head_with("view", "scales", ["x"]))
spoilt("an unknown projection", POOL, "pyramid", "'x' is none of paper, authors",
       change=head_with("view", "projection", "x"))  # fmt: skip
spoilt("an unknown part of a view", POOL, "pyramid", change=head_with("view", "zoom", 2))
WHOLE = "detect-fast"

spoilt("a detector of no parts", WHOLE, "detector", change=detector_with("detector", value={}))
spoilt("a detector of a word", WHOLE, "detector", change=detector_with("detector", value="fast"))
spoilt("a detector of other classes", WHOLE, "detector", "class_scores.weight",
       change=detector_with("classes", value=7))  # fmt: skip
spoilt("a detector of too many classes", WHOLE, "detector",
       change=detector_with("classes", value=10**12))  # fmt: skip
spoilt("a detector of no network", WHOLE, "detector", "'lenet'",
       change=detector_with("network", "network", value="lenet"))  # fmt: skip
spoilt("a cut at no layer", WHOLE, "detector", "'conv9'",
       change=detector_with("detector", "cut", "map", value="conv9"))  # fmt: skip
spoilt("a detector without a head", WHOLE, "detector", "either a cut network or a neck",
       change=detector_with("detector", "cut", value=None))  # fmt: skip
spoilt("a pooling unheard of", WHOLE, "detector", "'mean' is none of pool, align",
       change=detector_with("detector", "pooling", "kind", value="mean"))  # fmt: skip
spoilt("other bins of regions", WHOLE, "detector",
       change=detector_with("detector", "pooling", "size", value=5))  # fmt: skip
spoilt("more strides than maps", WHOLE, "detector", "from 2 maps: there are 1",
       change=detector_with("detector", "pooling", "strides", value=[8, 16]))  # fmt: skip
spoilt("no scales of a detector", WHOLE, "detector", "give one or more above 0",
       change=detector_with("detector", "view", "scales", value=[]))  # fmt: skip
spoilt("scales of a detector that are words", WHOLE, "detector",
       change=detector_with("detector", "view", "scales", value=["x"]))  # fmt: skip
spoilt("a detector without its deviations", WHOLE, "detector", "deltas_std",
       change=without("tensors/deltas_std"))  # fmt: skip
spoilt("a detector of numbers that are none", WHOLE, "detector", "deltas_mean",
       change=put("tensors/deltas_mean", 0, np.nan))  # fmt: skip
spoilt("outputs of another shape", WHOLE, "detector", "box_deltas.weight",
       change=instead("tensors/box_deltas.weight", np.zeros((2, 2), np.float32)))  # fmt: skip
spoilt("a tensor of words", EX, "model", change=instead("tensors/conv1.bias", np.full(32, b"x")))
spoilt("a tensor of words in a detector", WHOLE, "detector",
       change=instead("tensors/deltas_mean", np.full((3, 4), b"x")))  # fmt: skip
spoilt("cells of three", TUNE, "pooled", change=instead("cells", np.zeros((616, 3), np.int64)))
spoilt("too few scales", TUNE, "pooled", change=instead("scale", np.zeros(7, np.int64)))
spoilt("pooled features that are no numbers", TUNE, "pooled", "no finite numbers in layer 'pool5'",
       change=put("layers/pool5", slice(None), np.nan))  # fmt: skip
spoilt("pooled features of other length", TUNE, "pooled",
       change=instead("layers/pool5", np.zeros((616, 7), np.float16)))  # fmt: skip
spoilt("candidates of no class", ANEW, "candidates", change=put("candidates/labels", 0, 9))
spoilt("candidates that are no numbers", ANEW, "candidates",
       change=put("candidates/scores", 0, np.nan))  # fmt: skip
spoilt("candidates without boxes", ANEW, "candidates", change=without("candidates/boxes"))
spoilt("candidates of other images", ANEW, "candidates",
       change=instead("candidates/offsets", np.zeros(2, np.int64)))  # fmt: skip


@CASES("the same ids, other sizes", "proposals.h5", "120 x 100")
def _(spot: Spot) -> Sequence[object]:
    path = spot.folder / "proposals.h5"
    changed(spot.made.proposals, put("sizes", 0, (50, 60)))(path)
    return spot.stage("extract-features", spot.made.proposals, path)


@CASES(
    "recall of the same ids, other sizes", "proposals.h5", "120 x 100", out=None, keeps_work=True
)
def _(spot: Spot) -> Sequence[object]:
    path = spot.folder / "proposals.h5"
    changed(spot.made.proposals, put("sizes", 0, (50, 60)))(path)
    place = spot.folder.parent / "out" / "recall"
    return ("evaluate", path, "--data", spot.made.data, "--split", "train", "--out", place)


@CASES(
    "a cache that is no number",
    "features.h5",
    "no finite numbers in layer 'fc7'",
    keeps_work=True,
)
def _(spot: Spot) -> Sequence[object]:
    path = spot.folder / "features.h5"
    changed(spot.made.features, put("layers/fc7", slice(None), np.nan))(path)
    return (
        "detect",
        spot.made.data,
        "--split",
        "train",
        "--features",
        path,
        "--svm",
        spot.made.svm,
    )


@CASES("softmax of a model for other classes", "pretrained.h5")
def _(spot: Spot) -> Sequence[object]:
    path = spot.folder / "pretrained.h5"
    classes = json.dumps(["background", "cat", "dog", "cow"])
    changed(spot.made.pretrained, attribute("classes", classes))(path)
    return ("detect", spot.made.data, "--split", "test", "--model", path)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_refused(case: Case, made: Made, tmp_path: Path) -> None:
    case.check(made, tmp_path)
