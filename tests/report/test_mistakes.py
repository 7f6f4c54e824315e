"""Detections judged one by one, and the thresholds of best F1."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rcnnpipe.artifacts.detections import read_detections
from rcnnpipe.datasets.records import Dataset, Record
from rcnnpipe.report.mistakes import best_thresholds, judge
from tests import artifacts_made as made


def record(boxes: Any, labels: Any, image_id: str = "x", **flags: Any) -> Record:
    count = len(labels)
    columns: dict[str, Any] = {
        name: np.asarray(flags.get(name, [False] * count), np.bool_)
        for name in ("difficult", "truncated", "crowd")
    }
    array = np.asarray(boxes, np.float64).reshape(-1, 4)
    areas = (array[:, 2:] - array[:, :2]).prod(axis=1)
    size = flags.get("size", (100, 100))
    labels = np.asarray(labels, np.int64)
    return Record(image_id, Path("x.jpg"), size, array, labels, **columns, areas=areas)


CAT, DOG = 1, 2
OBJECTS = record([[0, 0, 10, 10], [50, 50, 70, 60]], [CAT, DOG])


@pytest.mark.parametrize(
    ("box", "label", "kind", "overlap"),
    [
        ([0, 0, 10, 10], CAT, "found", 1),
        ([0, 0, 10, 5], CAT, "found", 0.5),  # 50 / 100: reaching is enough
        ([0, 0, 10, 4.9], CAT, "localisation", 0.49),
        ([0, 0, 10, 1], CAT, "localisation", 0.1),
        ([0, 0, 10, 0.9], CAT, "background", 0),
        ([0, 0, 10, 10], DOG, "confusion", 1),
        ([0, 0, 10, 4.9], DOG, "background", 0),
        ([20, 20, 30, 30], CAT, "background", 0),
    ],
)
def test_one_detection(box: Any, label: int, kind: str, overlap: float) -> None:
    judged = judge(OBJECTS, np.array([box]), np.array([label]))
    assert judged.kinds == (kind,)
    assert judged.overlap[0] == pytest.approx(overlap)
    assert judged.missed == ((1,) if kind == "found" else (0, 1))


def test_the_second_on_an_object_is_a_duplicate() -> None:
    boxes = np.array([[0, 0, 10, 9], [0, 0, 10, 10], [50, 50, 70, 60]])
    judged = judge(OBJECTS, boxes, np.array([CAT, CAT, DOG]))
    assert judged.kinds == ("found", "duplicate", "found")
    assert judged.missed == ()


def test_the_best_object_decides_though_another_is_free() -> None:
    # VOC's rule: the second overlaps the taken object more, so the free one does not help it.
    objects = record([[0, 0, 10, 10], [0, 4, 10, 14]], [CAT, CAT])
    boxes = np.array([[0, 0, 10, 10], [0, 1, 10, 11]])
    judged = judge(objects, boxes, np.array([CAT, CAT]))
    assert judged.kinds == ("found", "duplicate")
    assert judged.missed == (1,)


def test_difficult_objects_and_crowds_cost_nothing() -> None:
    objects = record(
        [[0, 0, 10, 10], [40, 40, 90, 90]], [CAT, CAT],
        difficult=[True, False], crowd=[False, True],
    )  # fmt: skip
    inside, partly = [50, 50, 60, 60], [85, 50, 97, 60]  # all of it, 5 of 12, in the crowd
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10], inside, inside, partly])
    judged = judge(objects, boxes, np.array([CAT] * 5))
    assert judged.kinds == ("ignored", "ignored", "ignored", "ignored", "background")
    assert judged.overlap[2] == pytest.approx(1)
    assert judged.missed == ()


def test_nothing_at_all() -> None:
    empty = record([], [])
    assert judge(empty, np.zeros((0, 4)), np.zeros(0, np.int64)).kinds == ()
    assert judge(empty, np.array([[0, 0, 1, 1]]), np.array([CAT])).kinds == ("background",)
    assert judge(OBJECTS, np.zeros((0, 4)), np.zeros(0, np.int64)).missed == (0, 1)


def test_thresholds_are_those_of_best_f1(tmp_path: Path) -> None:
    # Cats: right at .9 and .6, wrong at .7 and .3: F1 is best, 2 of 3 and 2 of 2, from .6 on.
    boxes = np.array([[0, 0, 10, 10], [80, 80, 90, 90], [60, 0, 70, 10], [5, 50, 20, 70],
                      [70, 70, 80, 75]], np.float32)  # fmt: skip
    path = made.make_detections(
        tmp_path / "d.h5", counts=(3, 0, 2), boxes=boxes,
        sizes=np.full((3, 2), 100), labels=np.array([CAT, CAT, CAT, DOG, CAT]),
        scores=np.array([0.9, 0.7, 0.6, 0.8, 0.3], np.float32),
    )  # fmt: skip
    records = (
        record([[0, 0, 10, 10], [60, 0, 70, 10]], [CAT, CAT], "first"),
        record([], [], "empty"),
        record([[50, 50, 60, 60]], [DOG], "third"),
        record([[50, 50, 60, 60]] * 9, [CAT] * 9, "undetected"),  # not among the detections' images
    )
    data = Dataset("some", made.CLASSES, records)
    found = best_thresholds(data, read_detections(path))
    assert found[CAT] == pytest.approx(0.6)
    assert found[DOG] == found[CAT]  # nothing right: the median of the others


def test_without_any_right_detection_nothing_is_shown(tmp_path: Path) -> None:
    path = made.make_detections(tmp_path / "d.h5", sizes=np.full((3, 2), 100))
    records = [record([], [], "first"), record([], [], "empty")]
    records.append(record([[98, 98, 99, 99]], [CAT], "third"))
    found = best_thresholds(Dataset("some", made.CLASSES, tuple(records)), read_detections(path))
    assert set(found.values()) == {np.inf}
