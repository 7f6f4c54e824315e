"""YOLO folders: shares of the image, layouts, names, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from rcnnpipe.datasets import open_dataset
from rcnnpipe.errors import DataError
from tests.datasets.build import SIZE, image, yolo


def test_boxes_and_polygons(tmp_path: Path) -> None:
    # cx .5 cy .5 w .5 h .25 of 60 x 40: x 15..45, y 15..25.
    text = "1 0.5 0.5 0.5 0.25\n\n0 0.1 0.1 0.5 0.1 0.5 0.5\n"
    dataset = open_dataset(yolo(tmp_path, {"a": text, "b": ""}))
    assert dataset.classes == ("background", "cat", "dog")
    assert dataset.category_ids == (0, 0, 1)
    first, empty = dataset.records
    assert first.size == SIZE
    np.testing.assert_allclose(first.boxes, [[15, 15, 45, 25], [6, 4, 30, 20]])
    assert first.labels.tolist() == [2, 1]
    assert first.segments is not None
    assert first.segments[0] is None
    np.testing.assert_allclose(first.segments[1], [[6, 4, 30, 4, 30, 20]])
    assert len(empty.boxes) == 0


def test_an_image_without_a_label_file_is_negative(tmp_path: Path) -> None:
    root = yolo(tmp_path, {"a": "0 0.5 0.5 0.5 0.5"})
    image(root / "images" / "z.png")
    assert [len(record.boxes) for record in open_dataset(root).records] == [1, 0]


@pytest.mark.parametrize("layout", ["images/{}", "{}/images"])
def test_split_folders(tmp_path: Path, layout: str) -> None:
    for split, count in (("train", 2), ("val", 1)):
        place = layout.format(split)
        for number in range(count):
            image(tmp_path / place / f"{split}{number}.png")
            label = tmp_path / place.replace("images", "labels") / f"{split}{number}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("0 0.5 0.5 0.5 0.5")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert open_dataset(tmp_path, "train").image_ids == ("train0", "train1")
    assert len(open_dataset(tmp_path, "val").records[0].boxes) == 1
    assert open_dataset(tmp_path, "val").classes == ("background", "cat", "dog")


def test_split_lists(tmp_path: Path) -> None:
    root = yolo(tmp_path, {"a": "0 0.5 0.5 0.5 0.5", "b": ""})
    (root / "train.txt").write_text("./images/b.png\nimages/a.png\n")
    dataset = open_dataset(root, "train")
    assert dataset.image_ids == ("b", "a")
    assert len(dataset.records[1].boxes) == 1
    (root / "train.txt").write_text("/etc/passwd.png\n")
    with pytest.raises(DataError, match="leaves the data folder"):
        open_dataset(root, "train")


def test_names_as_a_mapping_or_not_at_all(tmp_path: Path) -> None:
    root = yolo(tmp_path, {"a": "1 0.5 0.5 0.5 0.5"}, names="names: {0: ant, 1: bee}")
    assert open_dataset(root).classes == ("background", "ant", "bee")
    (root / "data.yaml").unlink()
    assert open_dataset(root).classes == ("background", "1")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.5", "image a, annotation 1: line 1 is not"),
        ("\u00b2 0.5 0.5 0.5 0.5", "line 1 is not"),
        ("cat 0.5 0.5 0.5 0.5", "line 1 is not"),
        ("2 0.5 0.5 0.5 0.5", "class '#2' is not declared"),
        ("0 0.5 0.5 0 0.5", "has no area"),
        ("0 0.5 0.5 -0.1 0.5", "ends before it begins"),
        ("0 nan 0.5 0.1 0.5", "is not four numbers"),
        ("0 30 20 10 10", "lies outside"),
    ],
)
def test_what_would_corrupt_training_is_refused(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(yolo(tmp_path, {"a": line}))


def test_a_label_without_an_image(tmp_path: Path) -> None:
    root = yolo(tmp_path, {"a": "0 0.5 0.5 0.5 0.5"})
    (root / "labels" / "gone.txt").write_text("")
    (root / "labels" / "classes.txt").write_text("cat\ndog")
    with pytest.raises(DataError, match=r"a fault: image gone: label file .* has no image"):
        open_dataset(root)
