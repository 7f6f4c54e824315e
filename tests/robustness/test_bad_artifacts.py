"""Artifacts that are missing, damaged, of the wrong kind, or do not belong together."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.robustness.pipeline import Made, change_coco, draw_coco, ran
from tests.robustness.refusal import OUT, Case, Cases, Spot, changed

CASES = Cases()

# Every place where a stage takes an artifact: (stage, which of the pipeline's files stands there).
INPUTS = (
    ("finetune", "proposals"),
    ("finetune", "pretrained"),
    ("extract-features", "proposals"),
    ("extract-features", "model"),
    ("train-svm", "features"),
    ("train-bbox-reg", "features"),
    ("detect", "model"),
    ("detect", "svm"),
    ("detect", "bbox_reg"),
    ("pool", "pyramid"),
    ("finetune-pooled", "pooled"),
    ("finetune-pooled", "pyramid"),
    ("suppress-anew", "candidates"),
    ("evaluate", "detections"),
    ("show", "detections"),
    ("export", "detections"),
)


def flipped(path: Path, source: Path) -> None:
    """A copy in which the packed bytes of every packed data set are spoilt."""
    places: list[tuple[int, int]] = []
    with h5py.File(source) as file:

        def look(name: str, node: Any) -> None:
            if isinstance(node, h5py.Dataset) and node.compression:
                chunk = node.id.get_chunk_info(0)
                places.append((chunk.size, chunk.byte_offset))

        file.visititems(look)
    content = bytearray(source.read_bytes())
    for size, offset in places:
        content[offset + size // 2 : offset + size // 2 + 8] = b"\xff" * 8
    path.write_bytes(content)


def plain_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["values"] = np.arange(3)


def giant(file: h5py.File) -> None:
    """A data set that claims far more than the file can hold."""
    file.create_dataset("more", (2**34,), "f8", chunks=(2**20,), compression="gzip")


DAMAGES: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "missing": (lambda path, source: None, "does not exist"),
    "a folder": (lambda path, source: path.mkdir(), "folder"),
    "text": (lambda path, source: path.write_text("hello"), "is no HDF5 file, or damaged"),
    "empty": (lambda path, source: path.write_bytes(b""), "is no HDF5 file, or damaged"),
    "cut off": (
        lambda path, source: path.write_bytes(source.read_bytes()[:-500]),
        "is cut off; delete it",
    ),
    "other HDF5": (lambda path, source: plain_hdf5(path), "no artifact of rcnnpipe"),
    "spoilt bytes": (flipped, "is damaged"),
    "a newer layout": (
        lambda path, source: changed(source, newer)(path),
        "which this version of rcnnpipe cannot read",
    ),
    "broken settings": (
        lambda path, source: changed(source, lambda file: file.attrs.update(lineage="["))(path),
        "is damaged",
    ),
    "no classes": (
        lambda path, source: changed(source, lambda file: file.attrs.__delitem__("classes"))(path),
        "is damaged",
    ),
    "false sizes": (lambda path, source: changed(source, giant)(path), "claims"),
}


def newer(file: h5py.File) -> None:
    file.attrs["schema"] = file.attrs["schema"].replace("/1", "/9")


# So small that they are not packed, and bytes have no checksum.
PLAIN = ("svm", "bbox_reg", "detections", "candidates")


@pytest.mark.parametrize(
    ("stage", "name", "damage"),
    [
        (*place, damage)
        for place in INPUTS
        for damage in DAMAGES
        if damage != "spoilt bytes" or place[1] not in PLAIN
    ],
)
def test_damaged(made: Made, tmp_path: Path, stage: str, name: str, damage: str) -> None:
    spoil, says = DAMAGES[damage]
    if (stage, damage) == ("evaluate", "a folder"):
        says = "holds no comp4_det_SPLIT_CLASS.txt"

    def words(spot: Spot) -> Sequence[object]:
        path = spot.folder / f"{name}.h5"
        spoil(path, getattr(made, name))
        return spot.stage(stage, getattr(made, name), path)

    out = None if stage == "evaluate" else OUT.get(stage, "out.h5")
    more = ("--out", tmp_path / "scores") if stage == "evaluate" else ()
    case = Case(damage, lambda spot: (*words(spot), *more), (f"{name}.h5", says), out=out)
    case.check(made, tmp_path)


@pytest.mark.parametrize(("stage", "name"), INPUTS)
def test_of_the_wrong_kind(made: Made, tmp_path: Path, stage: str, name: str) -> None:
    other = "svm" if name != "svm" else "features"

    def words(spot: Spot) -> Sequence[object]:
        more = ("--out", tmp_path / "scores") if stage == "evaluate" else ()
        return (*spot.stage(stage, getattr(made, name), getattr(made, other)), *more)

    out = None if stage == "evaluate" else OUT.get(stage, "out.h5")
    says = (f"{other}.h5 holds rcnnpipe.{other}/1", "evaluated" if not out else "is needed here")
    Case(name, words, says, out=out).check(made, tmp_path)


@CASES("proposals of other images", "proposals.h5", "has no proposals for 3 of 3 images", "'100'")
def _(spot: Spot) -> Sequence[object]:
    return ("detect", spot.made.data, "--split", "test", "--model", spot.made.model,
            "--proposals", spot.made.proposals)  # fmt: skip


@CASES("a feature cache of other images", "features.h5", "'100'")
def _(spot: Spot) -> Sequence[object]:
    data = (spot.made.data, "--split", "test")
    return ("detect", *data, "--features", spot.made.features, "--svm", spot.made.svm)


@CASES("a layer that the network lacks", "'conv99'", "pool5")
def _(spot: Spot) -> Sequence[object]:
    return spot.stage("extract-features", "pool5,fc7", "pool5,conv99")


@CASES("a layer that the cache lacks", "features.h5 has no layer 'fc6'", "--layers fc6")
def _(spot: Spot) -> Sequence[object]:
    return ("train-svm", spot.made.features, "--layer", "fc6")


@CASES("a layer that the cache lacks, for boxes", "features.h5 has no layer 'fc6'")
def _(spot: Spot) -> Sequence[object]:
    return ("train-bbox-reg", spot.made.features, "--layer", "fc6")


@CASES("a cache without annotated objects", "has no annotated objects of red, blue")
def _(spot: Spot) -> Sequence[object]:
    path = spot.folder / "f.h5"
    words = spot.stage("extract-features")
    ran(*words, "--no-truth", "--out", path)
    return ("train-svm", path)


@CASES("a cache without good regions", "f.h5 lacks the ground truth its regions")
def _(spot: Spot) -> Sequence[object]:
    path = spot.folder / "f.h5"
    ran(*spot.stage("extract-features"), "--no-truth", "--out", path)
    return ("train-bbox-reg", path, "--min-overlap", "0.999")


@pytest.fixture(scope="module")
def others(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The same from another network; and detections of other classes on the same images."""
    other = Made(tmp_path_factory.mktemp("others"))
    demo = (
        "--network",
        "demo",
        "--iterations",
        0,
        "--proposals",
        made.proposals,
        "--device",
        "cpu",
    )
    ran("finetune", made.data, "--split", "train", *demo, "--seed", 5, "--out", other.model)
    words = Spot(made, other.folder).stage("extract-features", made.model, other.model)
    ran(*words, "--out", other.features)
    ran("train-svm", other.features, "--out", other.svm)
    ran("train-bbox-reg", other.features, "--out", other.bbox_reg)

    def rename(document: dict[str, Any]) -> None:
        document["categories"][0]["name"] = "green"

    change_coco(draw_coco(other.data), "test", rename)
    change_coco(other.data, "train", rename)
    return other


@pytest.mark.parametrize("name", ["svm", "bbox_reg"])
def test_of_another_network(made: Made, others: Made, tmp_path: Path, name: str) -> None:
    def words(spot: Spot) -> Sequence[object]:
        return spot.stage("detect", getattr(made, name), getattr(others, name))

    says = (str(getattr(others, name)), f"was not made from {made.model}", "rcnnpipe train-")
    Case(name, words, says).check(made, tmp_path)


@pytest.mark.parametrize("stage", ["evaluate", "show", "export"])
def test_of_other_classes(made: Made, others: Made, tmp_path: Path, stage: str) -> None:
    def words(spot: Spot) -> Sequence[object]:
        more = ("--out", tmp_path / "scores") if stage == "evaluate" else ()
        return (*spot.stage(stage, made.data, others.data), *more)

    out = None if stage == "evaluate" else OUT[stage]
    Case(stage, words, ("detections.h5", "red", "green"), out=out).check(made, tmp_path)


@pytest.mark.parametrize("stage", ["evaluate", "show", "export"])
def test_of_another_split(made: Made, tmp_path: Path, stage: str) -> None:
    def words(spot: Spot) -> Sequence[object]:
        more = ("--out", tmp_path / "scores") if stage == "evaluate" else ()
        return (*spot.stage(stage, "test", "train"), *more)

    out = None if stage == "evaluate" else OUT[stage]
    Case(stage, words, ("detections.h5",), out=out).check(made, tmp_path)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_refused(case: Case, made: Made, tmp_path: Path) -> None:
    case.check(made, tmp_path)
