"""What comparing two artifacts shows."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rcnnpipe.report.comparison import as_json, compare
from rcnnpipe.report.text import comparison_text
from tests import artifacts_made as made


def test_copies_have_the_same_bytes(tmp_path: Path) -> None:
    path = made.make_features(tmp_path / "a.h5")
    copy = shutil.copy(path, tmp_path / "b.h5")
    found = compare(path, Path(copy))
    assert found.same_bytes
    assert comparison_text(found).endswith("same bytes")


@pytest.mark.parametrize("kind", made.MAKERS)
def test_equal_runs_are_equal(kind: str, tmp_path: Path) -> None:
    maker = made.MAKERS[kind]
    assert compare(maker(tmp_path / "a.h5"), maker(tmp_path / "b.h5")).same_bytes


def test_the_largest_difference_and_its_row(tmp_path: Path) -> None:
    boxes = made.boxes_inside(made.SIZES, made.COUNTS, np.random.default_rng(0))
    moved = boxes.copy()
    moved[3, 1] += 0.25
    moved[7, 2] -= 1.5
    first = made.make_proposals(tmp_path / "a.h5", boxes=boxes)
    second = made.make_proposals(tmp_path / "b.h5", boxes=moved)
    found = compare(first, second)
    assert not found.same_bytes
    assert not found.same_values
    assert not found.header
    by_name = {column.name: column for column in found.columns}
    assert by_name["boxes"].differing == 2
    assert by_name["boxes"].largest == 1.5
    assert by_name["boxes"].where == 7
    assert by_name["scores"].is_equal
    assert "2 of 40" in comparison_text(found)


def test_nan_equals_nan_and_infinity_is_no_distance(tmp_path: Path) -> None:
    weight: Any = np.array([[np.nan, 1, np.inf]], np.float32)
    other: Any = np.array([[np.nan, 2, 5]], np.float32)
    first = made.make_model(tmp_path / "a.h5", **{"classifier.weight": weight})
    second = made.make_model(tmp_path / "b.h5", **{"classifier.weight": other})
    column = next(one for one in compare(first, second).columns if "classifier" in one.name)
    assert (column.differing, column.largest) == (2, 1)


def test_settings_lineage_and_classes(tmp_path: Path) -> None:
    source = made.header("proposals", settings={"method": "sliding"})
    first = made.make_detections(
        tmp_path / "a.h5",
        header=made.header("detections", settings={"nms-iou": 0.3, "cap": 100, "size": None}),
    )
    second = made.make_detections(
        tmp_path / "b.h5",
        header=made.header(
            "detections", ("background", "cat", "cow"), {"nms-iou": 0.5}, {"proposals": source}
        ),
    )
    found = compare(first, second)
    assert found.settings == {
        "nms-iou": (0.3, 0.5),
        "cap": (100, "absent"),
        "size": (None, "absent"),
    }
    assert found.inputs == {"proposals": ("absent", source.id)}
    assert found.lineage == ([], [source.id])
    assert set(found.header) == {"id", "classes"}
    assert found.same_values
    words = comparison_text(found)
    for expected in ("nms-iou", "0.3", "0.5", "cow", source.id, "same values, different bytes"):
        assert expected in words
    json.dumps(as_json(found), allow_nan=False)


def test_other_kinds_and_shapes(tmp_path: Path) -> None:
    first = made.make_proposals(tmp_path / "a.h5", counts=(4, 0, 6))
    second = made.make_features(tmp_path / "b.h5", counts=(5, 0, 6))
    found = compare(first, second)
    by_name = {column.name: column for column in found.columns}
    assert found.header["schema"] == ("rcnnpipe.proposals/1", "rcnnpipe.features/1")
    assert (by_name["scores"].second, by_name["overlap"].first) == (None, None)
    assert (by_name["boxes"].first, by_name["boxes"].second) == ("float32 10 x 4", "float32 11 x 4")
    assert by_name["boxes"].largest is None
    assert "absent" in comparison_text(found)
