import numpy as np
import pytest

from rcnnpipe.proposals import grouping, histograms, segmentation
from rcnnpipe.proposals.grouping import Similarity
from rcnnpipe.proposals.smoothing import smooth
from tests.proposals.test_segmentation import random_planes
from tests.reference import selective_search as reference

SIMILARITIES = {
    "all": Similarity(colour=True, texture=True, size=True, fill=True),
    "no colour": Similarity(colour=False, texture=True, size=True, fill=True),
    "colour": Similarity(colour=True, texture=False, size=False, fill=False),
    "fill": Similarity(colour=False, texture=False, size=False, fill=True),
    "size": Similarity(colour=False, texture=False, size=True, fill=False),
}


@pytest.mark.parametrize("name", SIMILARITIES)
@pytest.mark.parametrize("seed", range(4))
def test_merges_equal_the_reference(seed: int, name: str) -> None:
    planes = random_planes(seed, 1 if seed == 3 else 3)
    smoothed = smooth(planes, 0.8)
    segments = segmentation.segment(segmentation.sorted_edges(smoothed), 8, 2)
    number = len(segments.sizes)
    assert number > 15
    counts = histograms.count(histograms.code(planes, smoothed), segments.labels, number)
    before = counts.copy()
    found = grouping.group(
        *(counts, segments.sizes, segments.boxes, segments.neighbours),
        SIMILARITIES[name],
        segments.labels.size,
    )
    expected = reference.group(counts, segments.labels, SIMILARITIES[name])
    assert [tuple(box) for box in found.tolist()] == expected
    np.testing.assert_array_equal(counts, before)  # other measures read them afterwards


def test_small_neighbours_merge_first_by_size() -> None:
    # Four columns of 1, 1, 3 and 5 pixels: 1+1 first (2), then 2+3 (5), then all.
    sizes = np.array([1, 1, 3, 5], np.int32)
    boxes = np.array([[0, 0, 1, 1], [1, 0, 2, 1], [2, 0, 5, 1], [5, 0, 10, 1]], np.int32)
    pairs = np.array([[0, 1], [1, 2], [2, 3]], np.int32)
    counts = np.zeros((4, 105), np.int32)
    merged = grouping.group(counts, sizes, boxes, pairs, SIMILARITIES["size"], 10)
    assert merged.tolist() == [[0, 0, 2, 1], [0, 0, 5, 1], [0, 0, 10, 1]]


def test_one_segment_has_nothing_to_merge() -> None:
    merged = grouping.group(
        np.ones((1, 105), np.int32),
        np.array([6], np.int32),
        np.array([[0, 0, 3, 2]], np.int32),
        np.empty((0, 2), np.int32),
        SIMILARITIES["all"],
        6,
    )
    assert merged.shape == (0, 4)
