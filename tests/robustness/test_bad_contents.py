"""Artifacts with one thing in them that cannot be: columns, numbers, shapes, attributes."""

import json
from collections.abc import Callable, Sequence
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


@CASES("the same ids, other sizes", "proposals.h5", "120 x 100")
def _(spot: Spot) -> Sequence[object]:
    path = spot.folder / "proposals.h5"
    changed(spot.made.proposals, put("sizes", 0, (50, 60)))(path)
    return spot.stage("extract-features", spot.made.proposals, path)


@CASES("softmax of a model for other classes", "pretrained.h5")
def _(spot: Spot) -> Sequence[object]:
    path = spot.folder / "pretrained.h5"
    classes = json.dumps(["background", "cat", "dog", "cow"])
    changed(spot.made.pretrained, attribute("classes", classes))(path)
    return ("detect", spot.made.data, "--split", "test", "--model", path)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_refused(case: Case, made: Made, tmp_path: Path) -> None:
    case.check(made, tmp_path)
