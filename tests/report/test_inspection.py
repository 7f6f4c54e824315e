"""What inspections say, and what they warn of."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rcnnpipe.errors import ArtifactError
from rcnnpipe.report.inspection import as_json, inspect
from rcnnpipe.report.text import inspection_text
from tests import artifacts_made as made


@pytest.mark.parametrize("kind", made.MAKERS)
def test_every_kind_can_be_inspected(kind: str, tmp_path: Path) -> None:
    path = made.MAKERS[kind](tmp_path / "made.h5")
    found = inspect(path)
    assert found.header.kind == kind
    plain = json.loads(json.dumps(as_json(found), allow_nan=False))
    assert plain["schema"] == f"rcnnpipe.{kind}/1"
    words = inspection_text(found)
    assert plain["id"] in words
    for column in found.columns:
        assert column.name in words


def test_rows_classes_and_sizes_are_counted(tmp_path: Path) -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 40, 40], [0, 0, 100, 100], [0, 0, 20, 5]], np.float32)
    labels = np.array([1, 2, 2, 2])
    path = made.make_detections(
        tmp_path / "d.h5", boxes=boxes, labels=labels, scores=np.array([0.9, 0.8, 0.7, 0.6]),
        counts=(3, 0, 1),
    )  # fmt: skip
    found = inspect(path, rows=2)
    assert found.images is not None
    assert (found.images.least, found.images.median, found.images.most) == (0, 1, 3)
    assert found.images.without_rows == 1
    assert found.by_class == {"cat": {"rows": 1}, "dog": {"rows": 3}}
    assert found.boxes is not None
    assert (found.boxes.small, found.boxes.medium, found.boxes.large) == (2, 1, 1)
    assert found.boxes.side == (10, 10, 25, 55, 100)  # 10, 10, 40, 100
    assert found.boxes.aspect[-1] == 4
    assert [row["image"] for row in found.first_rows] == ["first", "first"]
    assert found.first_rows[1]["class"] == "dog"
    assert found.first_rows[1]["boxes"] == [0, 0, 40, 40]


def test_features_count_objects_and_regions_above_half(tmp_path: Path) -> None:
    overlap = np.array([1, 0.6, 0.5, 0.4, 1, 0.9, 0, 0, 0.49, 0.51], np.float32)
    labels = np.array([1, 1, 2, 2, 2, 2, 0, 0, 1, 1])
    path = made.make_features(tmp_path / "f.h5", overlap=overlap, labels=labels)
    assert inspect(path).by_class == {
        "cat": {"objects": 1, "regions_above_half": 2},
        "dog": {"objects": 1, "regions_above_half": 2},
    }


def test_an_svm_has_a_row_for_each_class(tmp_path: Path) -> None:
    weights = np.zeros((2, made.DEPTH))
    weights[0, :2] = [3, 4]
    path = made.make_svm(tmp_path / "svm.h5", weights=weights, bias=np.array([0.5, -1]))
    cat, dog = inspect(path, rows=1).first_rows
    assert cat == {"class": "cat", "bias": 0.5, "positives": 5, "norm of weights": 5}
    assert (dog["class"], dog["norm of weights"]) == ("dog", 0)


def faulty_boxes() -> Any:
    boxes = made.boxes_inside(made.SIZES, made.COUNTS, np.random.default_rng(0))
    boxes[1] = [5, 5, 5, 20]  # no width
    boxes[4] = [150, 10, 200.5, 20]  # in the third image, 200 wide
    boxes[9] = np.nan
    return boxes


def dead_layer() -> Any:
    layer = np.ones((10, made.DEPTH))
    layer[:, :3] = 0
    layer[4] = 0
    return layer


@pytest.mark.parametrize(
    ("maker", "replaced", "warnings"),
    [
        (made.make_proposals, {"boxes": faulty_boxes()}, [
            "boxes holds 4 NaN and 0 infinite values",
            "1 boxes have no area, the first in image 'first'",
            "1 boxes leave their image, the first in image 'third'",
            "1 of 3 images have no rows, the first is 'empty'",
        ]),
        (made.make_proposals, {"image_ids": ("a", "b", "a"), "counts": (4, 1, 5)},
            ["1 image ids occur more than once, the first is 'a'"]),
        (made.make_proposals, {"scores": np.full(10, 0.5, np.float32), "counts": (4, 1, 5)},
            ["all 10 scores read are 0.5"]),
        (made.make_detections,
            {"scores": np.array([4, 3, 2, 1, 9, 5, 4, 4, 6, 1]), "counts": (4, 1, 5)},
            ["1 rows score higher than the row before them, the first in image 'third'"]),
        (made.make_detections,
            {"labels": np.array([1, 2, 3, 1, 2, 0, -1, 1, 1, 1]), "counts": (4, 1, 5)},
            ["3 labels stand for no class"]),
        (made.make_features, {"layers/fc7": dead_layer(), "counts": (4, 1, 5)}, [
            "layers/fc7: 3 of 32 columns are dead, 0 in all rows",
            "layers/fc7: 1 rows are 0 throughout",
        ]),
        (made.make_svm,
            {"weights": np.eye(2, made.DEPTH) * [[0], [1]], "bias": np.array([-np.inf, 0])},
            ["class cat was not trained: its weights are 0"]),
        (made.make_model, {"classifier.weight": np.array([[np.nan, np.inf, 1]])},
            ["tensors/classifier.weight holds 1 NaN and 1 infinite values"]),
    ],
)  # fmt: skip
def test_what_looks_wrong_is_told(
    maker: Any, replaced: dict[str, Any], warnings: list[str], tmp_path: Path
) -> None:
    found = inspect(maker(tmp_path / "made.h5", **replaced))
    assert list(found.warnings) == warnings
    for warning in warnings:
        assert warning in inspection_text(found)
    json.dumps(as_json(found), allow_nan=False)


def test_a_clean_file_has_no_warnings(tmp_path: Path) -> None:
    for number, maker in enumerate((made.make_proposals, made.make_features, made.make_detections)):
        assert inspect(maker(tmp_path / f"{number}.h5", counts=(4, 1, 5))).warnings == ()


def test_files_without_any_row_are_told_about(tmp_path: Path) -> None:
    found = inspect(made.make_detections(tmp_path / "d.h5", counts=(0, 0, 0)))
    assert found.warnings == ("3 of 3 images have no rows, the first is 'first'",)
    assert found.boxes is None
    assert "0 to 0" in inspection_text(found)


def test_a_sample_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rcnnpipe.report.statistics.BLOCK_BYTES", 1)
    boxes = np.tile(np.array([0, 0, 10, 10], np.float32), (20_000, 1))
    path = made.make_proposals(
        tmp_path / "p.h5", boxes=boxes, scores=np.arange(20_000)[::-1], counts=(20_000, 0, 0)
    )
    found = inspect(path, budget=1)
    column = next(column for column in found.columns if column.name == "boxes")
    assert column.rows_read < column.rows
    words = inspection_text(found)
    assert f"boxes: statistics of {column.rows_read} of 20000 rows, evenly spaced" in words


def test_offsets_that_do_not_fit_are_damage(tmp_path: Path) -> None:
    import h5py

    path = made.make_proposals(tmp_path / "p.h5")
    with h5py.File(path, "r+") as file:
        file["offsets"][-1] = 11
    with pytest.raises(ArtifactError, match="damaged"):
        inspect(path)
