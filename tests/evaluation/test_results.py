import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rcnnpipe.errors import DataError
from rcnnpipe.evaluation.columns import Truth, extents_of
from rcnnpipe.evaluation.comp4 import is_comp4_folder, read_comp4_results
from rcnnpipe.evaluation.results import Region, read_coco_results
from tests.evaluation.made import truth

IDS = (0, 18, 44)  # category ids of labels 1 and 2


def made() -> Truth:
    return truth([(0, 1, (0, 0, 10, 10)), (1, 2, (5, 5, 50, 50))], images=2, classes=2)


def row(**changes: Any) -> dict[str, Any]:
    return {"image_id": 1, "category_id": 18, "bbox": [1, 2, 3, 4], "score": 0.5} | changes


def read(tmp_path: Path, rows: Any, region: Region = "boxes") -> Any:
    path = tmp_path / "results.json"
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows))
    return read_coco_results(path, made(), IDS, region)


def test_coco_rows(tmp_path: Path) -> None:
    found = read(tmp_path, [row(), row(image_id="2", category_id=44, bbox=[0.1, 0.2, 0.3, 0.7])])
    np.testing.assert_array_equal(found.images, [0, 1])
    np.testing.assert_array_equal(found.labels, [1, 2])
    np.testing.assert_array_equal(found.boxes[0], [1, 2, 4, 6])
    # The stated width times height, not the one from rounded corners
    assert found.extents[1] == found.areas[1] == 0.3 * 0.7


def test_extents_are_those_of_the_file() -> None:
    """x + width - x is not always width; the width that was written is recovered."""
    rng = np.random.default_rng(0)
    stated = np.round(rng.uniform(0, 500, (2000, 4)), 2)
    corners = np.concatenate([stated[:, :2], stated[:, :2] + stated[:, 2:]], axis=1)
    differences = corners[:, 2:] - corners[:, :2]
    assert (differences != stated[:, 2:]).any()
    np.testing.assert_array_equal(extents_of(corners), stated[:, 2] * stated[:, 3])
    anything = np.array([[0.0, 0.0, 1 / 3, 2 / 7]])
    assert extents_of(anything)[0] == (1 / 3) * (2 / 7)


def test_unknown_categories_are_left_out_with_a_note(tmp_path: Path) -> None:
    found = read(tmp_path, [row(), row(category_id=7), row(category_id=7, image_id=999)])
    assert len(found.scores) == 1
    assert found.notes == ("2 detections of categories the data set does not have (7) left out",)


def test_zero_padded_ids_are_also_numbers(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps([row(image_id=12)]))
    padded = truth([(0, 1, (0, 0, 10, 10))])
    padded = Truth(**{**vars(padded), "image_ids": ("000012",)})
    assert read_coco_results(path, padded, IDS).images[0] == 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no detections"),
        ("{", "is not JSON"),
        ({"annotations": []}, "is a COCO annotation file"),
        ({"a": 1}, "is not a COCO result file"),
        ([row(), 3], "row 1 has no bbox or category_id or image_id or score"),
        ([{"image_id": 1, "category_id": 18, "score": 1}], "row 0 has no bbox"),
        (
            [row(image_id=77)],
            "detections on images the data set does not have .1., the first on '77'",
        ),
        ([row(category_id=1)], "no category in common with the data set: its ids are 1, the data"),
        ([row(category_id=[1])], "category_id that is not a number"),
        ([row(score=float("nan"))], "the score of a detection in image 1 is not finite"),
        ([row(), row(score="high")], "the score of a detection in image 1 is not a number"),
        ([row(bbox=[1, 2, float("inf"), 4])], "the bbox of a detection in image 1 is not finite"),
        ([row(bbox=[1, 2, 3])], "the bbox of a detection in image 1 is not 4 numbers"),
        ([row(), row(bbox=[1, 2, 3, None])], "is not 4 numbers|is not finite"),
        (
            [row(bbox=[9, 9, -3, 4])],
            "boxes of negative width or height .1., the first in image 1",
        ),
    ],
)
def test_wrong_coco_files(tmp_path: Path, rows: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, rows)
    assert "\n" not in str(caught.value)


def test_regions_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 0 has no segmentation"):
        read(tmp_path, [row()], "masks")
    with pytest.raises(DataError, match="the data set holds no keypoints"):
        read(tmp_path, [row(keypoints=[1, 2, 3])], "keypoints")


def comp4(tmp_path: Path, **files: str) -> Path:
    for name, text in files.items():
        (tmp_path / f"{name}.txt").write_text(text)
    return tmp_path


def test_comp4(tmp_path: Path) -> None:
    folder = comp4(
        tmp_path,
        comp4_det_test_class1="1 0.9 1 1 10 10\n\n2 .5 3 4 5 6\n",
        comp4_det_test_class2="2 0.7 6.0 6.0 50.0 50.0\n",
        readme="not a result file",
    )
    assert is_comp4_folder(folder)
    found = read_comp4_results(folder, made())
    np.testing.assert_array_equal(found.labels, [1, 1, 2])
    np.testing.assert_array_equal(found.images, [0, 1, 1])
    np.testing.assert_array_equal(found.scores, [0.9, 0.5, 0.7])
    # One-based inclusive pixels 1..10 are the edges 0..10
    np.testing.assert_array_equal(found.boxes, [[0, 0, 10, 10], [2, 3, 5, 6], [5, 5, 50, 50]])
    assert found.notes == ()


def test_comp4_class_names_with_underscores(tmp_path: Path) -> None:
    one = made()
    named = Truth(**{**vars(one), "classes": ("background", "table", "dining_table")})
    folder = comp4(
        tmp_path, comp3_det_val_table="1 1 1 1 2 2", comp3_det_val_dining_table="2 1 1 1 2 2"
    )
    found = read_comp4_results(folder, named)
    np.testing.assert_array_equal(found.labels, [1, 2])


def test_comp4_notes_and_splits(tmp_path: Path) -> None:
    folder = comp4(
        tmp_path,
        comp4_det_val_class1="1 1 1 1 2 2",
        comp4_det_test_class1="2 1 1 1 2 2",
        comp4_det_val_sofa="1 1 1 1 2 2",
    )
    with pytest.raises(DataError, match="two files of one class; name the split"):
        read_comp4_results(folder, made())
    found = read_comp4_results(folder, made(), "val")
    np.testing.assert_array_equal(found.images, [0])
    assert found.notes == (
        "no result file of class class2: taken as no detections",
        "comp4_det_val_sofa.txt is of no class of the data set and left out",
    )


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"other": "x"}, "holds no comp4_det_SPLIT_CLASS.txt"),
        ({"comp4_det_test_sofa": ""}, "no file in .* is of a class of the data set: .* class1"),
        ({"comp4_det_test_class1": "\n"}, "hold no detections"),
        ({"comp4_det_test_class1": "1 0.9 1 1 10"}, "line 1: not 'id score x1 y1 x2 y2'"),
        ({"comp4_det_test_class1": "1 0.9 1 1 10 ten"}, "line 1: not 'id score x1 y1 x2 y2'"),
        ({"comp4_det_test_class1": "7 0.9 1 1 10 10"}, "images the data set does not have.*'7'"),
        (
            {"comp4_det_test_class1": "1 nan 1 1 10 10"},
            r"not a finite number \(1\), the first in image 1",
        ),
    ],
)
def test_wrong_comp4_folders(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_comp4_results(comp4(tmp_path, **files), made())
    assert "\n" not in str(caught.value)
