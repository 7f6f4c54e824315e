"""``rcnnpipe show`` draws what training sees, with everything that is annotated."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rcnnpipe.datasets import Dataset, Record, open_dataset
from rcnnpipe.datasets.masks import decode_segment
from rcnnpipe.finetuning.training_views import Training, record_of, seen_of
from rcnnpipe.images import read_image
from rcnnpipe.training.augmentation import Augmentation
from rcnnpipe.training.seen import crop
from tests.stages.test_show import folder, pixels_of, show
from tests.training.made import CLASSES
from tests.training.made import record_of as made_record

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


def several() -> Record:
    """Three objects side by side, the second a crowd; the third has no mask."""
    boxes = [(0, 10, 20, 30), (30, 10, 50, 30), (60, 10, 80, 30)]
    whole = made_record(boxes, [2, 1, 2], crowd=[1], difficult=[2])
    segments = ([[0, 10, 20, 10, 20, 30]], [[30, 10, 50, 10, 50, 30]], None)
    keypoints = np.array([[[x + 5.0, 15, 2], [x + 15.0, 15, 1]] for x, *_ in boxes])
    return replace(whole, segments=segments, keypoints=keypoints)


def test_what_a_crop_leaves_keeps_what_it_is() -> None:
    record = several()
    seen = seen_of(record, np.zeros((*record.size, 3), np.uint8))
    left = record_of(crop(seen, (0, 35, 40, 61)), record)
    assert left.size == (40, 61)
    assert left.labels.tolist() == [1, 2]
    assert left.crowd.tolist() == [True, False]
    assert left.difficult.tolist() == [False, True]
    assert left.boxes.tolist() == [[0, 10, 15, 30], [25, 10, 45, 30]]
    assert left.keypoints is not None
    assert left.keypoints.tolist() == [
        [[0, 15, 2], [10, 15, 1]],
        [[30, 15, 2], [40, 15, 1]],
    ]
    assert left.segments is not None
    assert left.segments[1] is None
    assert decode_segment(left.segments[0], left.size)[:, 15:].sum() == 0


def test_a_crowd_stays_while_anything_of_it_is_seen() -> None:
    """Its middle need not be."""
    record = several()
    seen = seen_of(record, np.zeros((*record.size, 3), np.uint8))
    assert record_of(crop(seen, (0, 45, 40, 51)), record).labels.tolist() == [1, 2]
    assert record_of(crop(seen, (0, 51, 40, 45)), record).labels.tolist() == [2]


def test_keypoints_change_sides_in_a_mirror() -> None:
    record = several()
    dataset = Dataset("made", CLASSES, (record,), keypoint_names=("left_ear", "right_ear"))
    training = Training(Augmentation(), draws=8)
    _, *views = training.views(dataset, 0, np.zeros((*record.size, 3), np.uint8))
    (mirrored,) = {view.record.keypoints[0].tobytes() for view in views if view.words}  # type: ignore[index]
    # From 5 and 15 of 96 pixels to 90 and 80, and exchanged.
    assert np.frombuffer(mirrored).tolist() == [80, 15, 1, 90, 15, 2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--draws", "2", "--proposals", "p.h5"), "--proposals has no meaning where what training"),
        (("--photometric", "--detections", "d.h5"), "--detections has no meaning where"),
        (("--random-crop", "--kind", "truth"), "--kind has no meaning where"),
        (("--scale-jitter", "1,2", "--threshold", "auto"), "--threshold has no meaning where"),
        (("--no-mirror", "--model", "m.h5"), "--model has no meaning where"),
        (("--draws", "2", "--windows", "2"), "--windows has no meaning where"),
        (("--draws", "2", "--window", "1,1,9,9"), "--window has no meaning where"),
        (("--draws", "2", "--top", "50"), "--top has no meaning where"),
        (("--mirror", "--device", "cpu"), "--device has no meaning where"),
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
