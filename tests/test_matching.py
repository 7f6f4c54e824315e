"""Matching by hand-computed overlaps."""

import numpy as np

from rcnnpipe.matching import match

TRUTH = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 60, 20]], np.float64)
LABELS = np.array([2, 1, -1])


def test_labels_truth_and_overlaps_per_class() -> None:
    regions = np.array(
        [
            [0, 0, 10, 5],  # half of the first: IoU 50 / 100
            [20, 0, 30, 10],  # the second itself
            [5, 0, 25, 10],  # 50 of each: IoU 50 / 250 = .2 with both, the first one wins
            [100, 100, 110, 110],  # nothing
            [45, 5, 50, 10],  # inside what is to be ignored
        ],
        np.float32,
    )
    found = match(regions, TRUTH, LABELS, classes=2)
    np.testing.assert_allclose(found.overlap, np.array([0.5, 1, 0.2, 0, 0]))
    assert found.truth.tolist() == [0, 1, 0, -1, -1]
    assert found.labels.tolist() == [2, 1, 2, 0, -1]
    expected = np.array([[0, 0.5], [1, 0], [0.2, 0.2], [0, 0], [0, 0]])
    np.testing.assert_allclose(found.overlaps, expected)


def test_an_object_inside_a_crowd_stays_an_object() -> None:
    truth = np.array([[0, 0, 10, 10], [0, 0, 100, 100]], np.float64)
    found = match(truth[:1], truth, np.array([1, -1]), classes=1)
    assert found.labels.tolist() == [1]


def test_an_image_without_objects_is_all_background() -> None:
    found = match(TRUTH, np.empty((0, 4)), np.empty(0, np.int64), classes=3)
    assert found.labels.tolist() == [0, 0, 0]
    assert found.truth.tolist() == [-1, -1, -1]
    assert found.overlaps.shape == (3, 3)


def test_no_regions() -> None:
    found = match(np.empty((0, 4)), TRUTH, LABELS, classes=2)
    assert found.overlaps.shape == (0, 2)
    assert found.labels.shape == (0,)
