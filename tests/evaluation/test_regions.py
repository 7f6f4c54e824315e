from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rcnnpipe.errors import DataError
from rcnnpipe.evaluation.groups import group
from rcnnpipe.evaluation.regions import (
    PERSON_SIGMAS,
    keypoint_overlaps,
    keypoint_truth,
    mask_overlaps,
    mask_results,
)
from tests.evaluation.made import results, truth


def rectangle(x1: int, y1: int, x2: int, y2: int) -> list[list[int]]:
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def masked(segments: tuple[Any, ...], found: tuple[Any, ...], crowd: tuple[int, ...] = ()) -> Any:
    made = truth([(0, 1, (0, 0, 1, 1))] * len(segments), crowd=crowd)
    got = results(made, [(0, 1, 0.9 - number / 10, (0, 0, 1, 1)) for number in range(len(found))])
    made, got = replace(made, segments=segments), mask_results(made, replace(got, segments=found))
    return mask_overlaps(made, got, group(made, got)).reshape(len(found), len(segments)), got


def test_masks_overlap_by_pixels() -> None:
    overlaps, got = masked(
        (rectangle(0, 0, 10, 10), rectangle(0, 0, 40, 40)),
        (rectangle(0, 0, 10, 5), rectangle(5, 0, 15, 10)),
        crowd=(1,),
    )
    np.testing.assert_allclose(overlaps, [[0.5, 1], [50 / 150, 1]])
    np.testing.assert_array_equal(got.areas, [50, 100])


def test_run_lengths_are_masks_too() -> None:
    # Column-major: 500 rows a column, 10 columns of 10 pixels
    counts = [0, 10] + [490, 10] * 9 + [500 * 500 - 10 * 10 - 490 * 9]
    overlaps, _ = masked((rectangle(0, 0, 10, 10),), ({"size": [500, 500], "counts": counts},))
    np.testing.assert_array_equal(overlaps, [[1.0]])


def test_wrong_masks() -> None:
    with pytest.raises(DataError, match="object number 0 has no mask"):
        masked((None,), (rectangle(0, 0, 5, 5),))
    with pytest.raises(DataError, match="is 4 x 5 pixels, its image 500 x 500"):
        masked((rectangle(0, 0, 5, 5),), ({"size": [4, 5], "counts": [0, 20]},))
    with pytest.raises(DataError, match="detection number 0 cannot be read"):
        masked((rectangle(0, 0, 5, 5),), ("what",))


def person(shift: float, visible: int) -> np.ndarray[Any, Any]:
    points = np.zeros((17, 3))
    points[:, 0] = np.arange(17) * 5 + shift
    points[:, 1] = 50
    points[:visible, 2] = 2
    return points


def test_keypoint_similarity() -> None:
    """One labelled keypoint at distance d: exp(-d^2 / (2 area (2 sigma)^2))."""
    made = replace(truth([(0, 1, (0, 0, 100, 100))], areas=[900]), keypoints=person(0, 1)[None])
    found = replace(results(made, [(0, 1, 1, (0, 0, 1, 1))]), keypoints=person(3, 17)[None])
    overlaps = keypoint_overlaps(made, found, group(made, found))
    assert PERSON_SIGMAS[0] == pytest.approx(0.026)
    np.testing.assert_allclose(overlaps, np.exp(-9 / (2 * 900 * 0.052**2)))


def test_object_without_keypoints_takes_what_lies_near() -> None:
    made = replace(truth([(0, 1, (100, 0, 200, 100))]), keypoints=person(0, 0)[None])
    assert keypoint_truth(made).ignored.tolist() == [True]
    found = replace(results(made, [(0, 1, 1, (0, 0, 1, 1))]), keypoints=person(10, 17)[None])
    overlaps = keypoint_overlaps(made, found, group(made, found))
    np.testing.assert_array_equal(overlaps, [1.0])  # all within three times the box
    far = replace(found, keypoints=person(1000, 17)[None])
    assert keypoint_overlaps(made, far, group(made, far))[0] < 1e-3


def test_sigmas_must_fit() -> None:
    made = replace(truth([(0, 1, (0, 0, 100, 100))]), keypoints=np.ones((1, 5, 3)))
    found = replace(results(made, [(0, 1, 1, (0, 0, 1, 1))]), keypoints=np.ones((1, 5, 3)))
    with pytest.raises(DataError, match="objects have 5 keypoints, detections 5, and 17 sigmas"):
        keypoint_overlaps(made, found, group(made, found))
