"""``rcnnpipe show`` draws what training sees, with everything that is annotated."""

from pathlib import Path

import numpy as np
import pytest

from rcnnpipe.datasets import Record, open_dataset
from rcnnpipe.datasets.masks import decode_segment
from rcnnpipe.finetuning.training_views import Training, record_of, seen_of
from rcnnpipe.images import read_image
from rcnnpipe.training.augmentation import Augmentation
from tests.stages.test_show import folder, pixels_of, show

__all__ = ["folder"]
ALL = ("--photometric", "--random-crop", "--scale-jitter", "0.5,1.5")


@pytest.fixture(scope="module")
def records(folder: Path) -> tuple[Record, ...]:
    return open_dataset(folder / "data.yaml", "all").records


def test_a_panel_for_each_draw(folder: Path, tmp_path: Path) -> None:
    widths = {}
    for words in (("--draws", "1"), ALL, (*ALL, "--draws", "5")):
        out = tmp_path / "one.png"
        found = show(folder, "data.yaml", *words, "--images", "4", "--out", out)
        assert found.exit_code == 0, found.output
        widths[words] = pixels_of(out).shape[1]
    few, usual, many = widths.values()
    assert few < usual < many


def test_a_picture_for_each_image_and_a_sheet(folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        found = show(folder, "data.yaml", *ALL, "--size", "200", "--out", tmp_path / name)
        assert found.exit_code == 0, found.output
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["4.png", "5.png", "6.png", "contact-sheet.png"]
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    show(folder, "data.yaml", *ALL, "--size", "200", "--seed", "1", "--out", tmp_path / "c")
    same = [(tmp_path / f"{folder}/4.png").read_bytes() for folder in ("a", "c")]
    assert same[0] != same[1]


def test_without_annotations(folder: Path, tmp_path: Path) -> None:
    found = show(folder, "images", *ALL, "--out", tmp_path / "x")
    assert found.exit_code == 0, found.output
    assert len(list((tmp_path / "x").iterdir())) == 4


def test_mirrored_or_not(folder: Path, records: tuple[Record, ...]) -> None:
    dataset, pixels = open_dataset(folder / "data.yaml", "all"), read_image(records[0].path)
    seen = {}
    for mirror in (True, False):
        training = Training(Augmentation(), mirror=mirror, draws=8)
        first, *views = training.views(dataset, 0, pixels)
        assert np.array_equal(first.pixels, pixels)
        for view in views:
            flipped = view.words == "mirrored"
            assert np.array_equal(view.pixels, pixels[:, ::-1] if flipped else pixels)
            assert view.record.boxes[0, 0] == (pixels.shape[1] - 60 if flipped else 20)
        seen[mirror] = {view.words for view in views}
    assert seen == {True: {"mirrored", ""}, False: {""}}


def test_what_is_annotated_comes_back(records: tuple[Record, ...]) -> None:
    for record in records:
        again = record_of(seen_of(record, read_image(record.path)), record)
        for name in ("boxes", "labels", "difficult", "truncated", "crowd", "areas", "keypoints"):
            assert np.array_equal(getattr(again, name), getattr(record, name)), name
        for old, new in zip(record.segments or (), again.segments or (), strict=True):
            mask = decode_segment(old, record.size)
            assert np.array_equal(mask, decode_segment(new, record.size))
            assert mask.any()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--draws", "2", "--proposals", "p.h5"), "--draws draws what training sees, and --prop"),
        (("--photometric", "--detections", "d.h5"), "--photometric draws what training sees"),
        (("--random-crop", "--kind", "truth"), "--kind something else"),
        (("--scale-jitter", "1,2", "--threshold", ".5"), "--scale-jitter draws what training"),
        (("--no-mirror", "--model", "m.h5"), "--mirror draws what training sees, and --model"),
        (("--draws", "2", "--windows", "2"), "--windows is about how a network maps windows"),
        (("--draws", "2", "--images", "9"), "has no image '9'"),
    ],
)
def test_mistakes_are_one_sentence(
    folder: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    found = show(folder, "data.yaml", *arguments, "--out", tmp_path / "out")
    assert found.exit_code == 1, found.output
    assert words in found.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", ["2,1", "0,1", "one"])
def test_no_range_of_factors_is_wrong_usage(folder: Path, words: str) -> None:
    found = show(folder, "data.yaml", "--scale-jitter", words)
    assert found.exit_code == 2
    assert "is no range MIN,MAX" in found.stderr
