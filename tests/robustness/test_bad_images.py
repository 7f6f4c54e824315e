"""Images that were harmed since they were annotated, splits without any, in every stage."""

import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.datasets.build import image
from tests.robustness.pipeline import Made
from tests.robustness.refusal import Case, Spot


def png(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = b""
    for kind, data in ((b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")):
        chunks += struct.pack(">I", len(data)) + kind + data
        chunks += struct.pack(">I", zlib.crc32(kind + data))
    return b"\x89PNG\r\n\x1a\n" + chunks


def become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


# Every stage that reads pixels, and what may happen to an image after it was annotated.
READERS = ("pretrain", "propose", "finetune", "extract-features", "detect", "show")
HARM: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:9000]), "truncated or damaged"),
    "of another size": (lambda path: image(path, (40, 50)), "is 50 x 40"),
    "deleted": (lambda path: path.unlink(), "no file"),
    "that is text": (lambda path: path.write_text("has no image"), "not an image"),
    "that is empty": (lambda path: path.write_bytes(b""), "empty file"),
    "too large to decode": (lambda path: path.write_bytes(png(60_000, 60_000)), "pixels"),
    "that is a folder": (lambda path: become_folder(path), "1.png"),
}


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("stage", READERS)
def test_an_image(made: Made, tmp_path: Path, stage: str, harm: str) -> None:
    def words(spot: Spot) -> Sequence[object]:
        data = spot.data()
        change(data / "images" / ("test" if stage in ("detect", "show") else "train") / "1.png")
        return spot.stage(stage, made.data, data)

    change, says = HARM[harm]
    named = "1" if "50 x 40" in says else "1.png"  # the image's id, or its file
    out = "out.png" if stage == "show" else "out.h5"
    # What the first image gave may be kept for the time when the second is put right.
    Case(harm, words, (named, says), out=out, keeps_work=stage != "show").check(made, tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"plain words", "not an image"), (b"", "empty"), (png(60_000, 60_000), "pixels")],
)
def test_one_photograph(made: Made, tmp_path: Path, content: bytes, says: str) -> None:
    def words(spot: Spot) -> Sequence[object]:
        return ("detect", spot.file("photo.png", content), "--model", made.model)

    Case("photo", words, ("photo.png", says)).check(made, tmp_path)


@pytest.mark.parametrize("stage", [*READERS, "evaluate"])
def test_a_split_without_images(made: Made, tmp_path: Path, stage: str) -> None:
    def empty(document: dict[str, Any]) -> None:
        document |= {"images": [], "annotations": []}

    split = "test" if stage in ("detect", "show", "evaluate") else "train"
    out = None if stage in ("show", "evaluate") else "out.h5"

    def words(spot: Spot) -> Sequence[object]:
        more = () if out else ("--out", spot.folder / "figures")
        return (*spot.stage(stage, made.data, spot.data(split, empty)), *more)

    Case(stage, words, (f"split '{split}' of ", "has no image"), out=out).check(made, tmp_path)


@pytest.mark.parametrize(
    ("stage", "says"),
    [("pretrain", "to learn from"), ("finetune", "to learn from"), ("evaluate", "object")],
)
def test_a_split_without_objects(made: Made, tmp_path: Path, stage: str, says: str) -> None:
    def bare(document: dict[str, Any]) -> None:
        document["annotations"] = []

    split = "test" if stage == "evaluate" else "train"
    out = None if stage == "evaluate" else "out.h5"

    def words(spot: Spot) -> Sequence[object]:
        more = () if out else ("--out", spot.folder / "figures")
        return (*spot.stage(stage, made.data, spot.data(split, bare)), *more)

    Case(stage, words, (says,), out=out).check(made, tmp_path)
