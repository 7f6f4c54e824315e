from pathlib import Path

import numpy as np
import pytest

from rcnnpipe.datasets.records import Dataset, Record
from rcnnpipe.errors import DataError
from rcnnpipe.evaluation.columns import results_of, truth_of
from tests.evaluation.made import truth


def record(image_id: str, boxes: int, difficult: int = 0, crowd: int = 0) -> Record:
    rows = np.arange(boxes)
    corners = np.stack([rows, rows, rows + 10, rows + 20], axis=1).astype(np.float64)
    none = np.zeros(boxes, np.bool_)
    return Record(
        image_id=image_id,
        path=Path(image_id),
        size=(100, 200),
        boxes=corners.reshape(-1, 4),
        labels=np.ones(boxes, np.int64),
        difficult=rows < difficult,
        truncated=none,
        crowd=rows >= boxes - crowd,
        areas=np.full(boxes, 7.0),
    )


def dataset(*records: Record, source: str = "voc") -> Dataset:
    return Dataset("made", ("background", "thing"), records, source=source)


def test_columns_of_records() -> None:
    made = truth_of(dataset(record("b", 2), record("a", 0), record("c", 1)))
    assert made.image_ids == ("b", "a", "c")
    np.testing.assert_array_equal(made.images, [0, 0, 2])
    np.testing.assert_array_equal(made.extents, [200, 200, 200])
    np.testing.assert_array_equal(made.areas, [7, 7, 7])
    np.testing.assert_array_equal(made.sizes, [(100, 200)] * 3)
    assert made.segments is None
    assert made.keypoints is None


def test_difficult_and_crowd() -> None:
    made = dataset(record("a", 4, difficult=1, crowd=1))
    np.testing.assert_array_equal(truth_of(made).ignored, [True, False, False, True])
    counted = truth_of(made, count_difficult=True)
    np.testing.assert_array_equal(counted.ignored, [False, False, False, True])
    np.testing.assert_array_equal(counted.crowd, [False, False, False, True])


def test_images_of_coco_go_by_their_number() -> None:
    records = (record("10", 1), record("9", 2))
    assert truth_of(dataset(*records, source="coco")).image_ids == ("9", "10")
    assert truth_of(dataset(*records)).image_ids == ("10", "9")


def test_nothing_to_evaluate() -> None:
    with pytest.raises(DataError, match="made has no images to evaluate on"):
        truth_of(dataset())
    with pytest.raises(DataError, match="no annotated objects in its 2 images"):
        truth_of(dataset(record("a", 0), record("b", 0)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite(bad: float) -> None:
    made = truth([(0, 1, (0, 0, 10, 10))], images=2)
    boxes = np.array([(0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0)])
    scores = np.array([0.5, bad])
    with pytest.raises(DataError, match=r"not a finite number \(1\), the first in image 2"):
        results_of(made, np.array([0, 1]), np.array([1, 1]), scores, boxes)
    boxes[0, 2] = bad
    with pytest.raises(DataError, match=r"\(1\), the first in image 1"):
        results_of(made, np.array([0, 1]), np.array([1, 1]), np.ones(2), boxes)
