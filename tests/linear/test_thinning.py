"""Which of nearly equal regions count as negatives: by hand, and against a slow loop."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rcnnpipe.artifacts.features import open_features
from rcnnpipe.errors import ArtifactError
from rcnnpipe.linear.cache import image_rows
from rcnnpipe.linear.thinning import RULES, all_regions, different_cells, little_overlap
from rcnnpipe.ragged import rows_of
from tests.artifacts_made import boxes_inside, make_features

# Of the first image 4 rows, of the second none, of the third 6
ONE, TWO = (0, 0, 3, 3), (0, 0, 3, 4)
CELLS = np.array([ONE, TWO, ONE, ONE, ONE, ONE, TWO, TWO, ONE, (1, 0, 3, 3)])
SCALE = np.array([0, 0, 0, 1, 0, 1, 0, 1, 1, 0])
# In each image, the first of every scale and place
FIRST = [True, True, False, True, True, True, True, True, False, True]


def kept(path: Path, rule: Any) -> list[bool]:
    with open_features(path) as features:
        parts = [rule(features, rows_of(features.offsets, n)) for n in range(3)]
        assert [len(part) for part in parts] == [4, 0, 6]
        return [bool(one) for part in parts for one in part]


def test_the_rules_by_name() -> None:
    assert RULES == {"none": all_regions, "cells": different_cells, "overlap": little_overlap}


def test_every_region_counts(tmp_path: Path) -> None:
    same = np.tile(np.array([5, 5, 50, 50], np.float32), (10, 1))
    assert kept(make_features(tmp_path / "f.h5", boxes=same), all_regions) == [True] * 10


def test_the_first_of_equal_cells_counts(tmp_path: Path) -> None:
    path = make_features(tmp_path / "f.h5", scale=SCALE, cells=CELLS)
    assert kept(path, different_cells) == FIRST


def test_cells_must_be_there(tmp_path: Path) -> None:
    path = make_features(tmp_path / "f.h5")
    told = f"{path} does not say from which cells .* has no pyramid; use --thin overlap"
    with pytest.raises(ArtifactError, match=told):
        kept(path, different_cells)


def test_no_region_that_counts_overlaps_another_by_more_than_seven_tenths(tmp_path: Path) -> None:
    boxes = np.array(
        [
            [0, 0, 10, 10],
            [0, 0, 10, 8],  # 80 / 100 of the first: out
            [0, 0, 10, 6],  # 60 / 80 of the second, which is out, and 60 / 100 of the first
            [0, 0, 10, 10],  # the first again: out
            [0, 0, 10, 8],  # another image
            [0, 0, 10, 10],  # 80 / 100 of the one before, as small as it is: out
            [20, 0, 30, 10],
            [20, 0, 30, 7],  # exactly 0.7
            [20, 0, 30, 7.5],  # 75 / 100 of the one at 20, and 70 / 75 of the next: out
            [0, 20, 10, 30],
        ],
        np.float32,
    )
    path = make_features(tmp_path / "f.h5", boxes=boxes)
    assert kept(path, little_overlap) == [
        *(True, False, True, False),
        *(True, False, True, True, False, True),
    ]


@pytest.mark.parametrize("seed", range(5))
def test_little_overlap_equals_a_slow_loop(seed: int, tmp_path: Path) -> None:
    random = np.random.default_rng(seed)
    counts = (60, 0, 40)
    sizes = np.full((3, 2), 30)
    boxes = boxes_inside(sizes, counts, random)
    boxes[1::2] = boxes[::2] + random.uniform(0, 1.5, (50, 4)).astype(np.float32)
    path = make_features(tmp_path / "f.h5", boxes=boxes, counts=counts, sizes=sizes)
    with open_features(path) as features:
        dropped = 0
        for number in range(3):
            rows = rows_of(features.offsets, number)
            own = [[float(edge) for edge in box] for box in boxes[rows]]
            taken: list[int] = []
            for place, box in enumerate(own):
                if all(overlap_of(box, own[other]) <= 0.7 for other in taken):
                    taken.append(place)
            found = np.flatnonzero(little_overlap(features, rows)).tolist()
            assert found == taken
            dropped += len(own) - len(taken)
        assert 10 < dropped < 60


def overlap_of(one: list[float], two: list[float]) -> float:
    width = min(one[2], two[2]) - max(one[0], two[0])
    height = min(one[3], two[3]) - max(one[1], two[1])
    inside = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, two)]
    return inside / (sum(areas) - inside)


def test_what_does_not_count_is_nobodys_negative(tmp_path: Path) -> None:
    labels = np.array([1, 2, 0, -1, 1, 2, 0, -1, 1, 2])
    path = make_features(tmp_path / "f.h5", scale=SCALE, cells=CELLS, labels=labels)
    with open_features(path) as features:
        thinned = [one for one in image_rows(features, "fc7", "cells") if len(one.features)]
        whole = [one for one in image_rows(features, "fc7") if len(one.features)]
        assert [one.first for one in thinned] == [one.first for one in whole] == [0, 4]
        for one, other in zip(thinned, whole, strict=True):
            np.testing.assert_array_equal(one.features, other.features)
        overlaps = np.concatenate([one.overlaps for one in thinned])
        out = ~np.array(FIRST) | (labels < 0)
        assert out.sum() == 4
        assert (overlaps[out] == 1).all()
        np.testing.assert_array_equal(overlaps[~out], features.overlaps[~out])
        usual = np.concatenate([one.overlaps for one in whole])
        np.testing.assert_array_equal(usual[labels >= 0], features.overlaps[labels >= 0])
