"""Caps and suppression, greedy and soft, against slow references and by hand."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from rcnnpipe.errors import SettingError
from rcnnpipe.suppression import Suppression, class_thresholds, select, suppress
from tests.reference import suppression as slow

NO_LIMIT = 0


def scattered(random: np.random.Generator, count: int) -> npt.NDArray[np.float32]:
    corners = random.integers(0, 30, (count, 2))
    return np.hstack((corners, corners + random.integers(1, 30, (count, 2)))).astype(np.float32)


def shifted(*places: float) -> npt.NDArray[np.float32]:
    """Boxes of 10 x 10, each moved to the right: two that are 5 apart overlap by 1 / 3."""
    return np.array([[x, 0, x + 10, 10] for x in places], np.float32).reshape(-1, 4)


@pytest.mark.parametrize("seed", range(20))
def test_suppress_equals_the_reference(seed: int) -> None:
    random = np.random.default_rng(seed)
    count = int(random.integers(0, 60))
    boxes = scattered(random, count)
    scores = random.integers(0, 10, count).astype(np.float32)  # with ties
    labels = random.integers(1, 4, count)
    overlap = float(random.choice([0.0, 0.3, 0.5]))
    found = suppress(boxes, scores, labels, overlap)
    expected = slow.suppress(boxes, scores, labels, overlap)
    assert sorted(found.tolist()) == sorted(expected)
    assert (np.diff(scores[found]) <= 0).all()


def test_exactly_the_overlap_survives() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5]], np.float32)  # IoU exactly 1 / 2
    scores, labels = np.array([1, 0.5], np.float32), np.array([1, 1])
    assert suppress(boxes, scores, labels, 0.5).tolist() == [0, 1]
    assert suppress(boxes, scores, labels, 0.49).tolist() == [0]
    assert suppress(boxes[[0, 0]], scores, labels, 1).tolist() == [0, 1]


def softened(
    scores: Any, *places: float, labels: Any = None, **how: Any
) -> tuple[list[int], list[float]]:
    """Rows and scores that remain of boxes of 10 x 10 at these places."""
    numbers = np.ones(len(places), np.int64) if labels is None else np.array(labels)
    values = np.array(scores, np.float32)
    rows, left = Suppression(**how)(shifted(*places), values, numbers)
    assert left.dtype == np.float32
    assert values.tolist() == np.array(scores, np.float32).tolist()  # as it was
    return rows.tolist(), left.tolist()


def test_soft_suppression_by_hand() -> None:
    boxes = (0.0, 5.0, 50.0)
    rows, scores = softened([0.9, 0.6, 0.5], *boxes, kind="linear", overlap=0.3)
    assert rows == [0, 2, 1]  # the second is now behind the third
    np.testing.assert_allclose(scores, [0.9, 0.5, 0.6 * (1 - 1 / 3)], rtol=1e-6)
    rows, scores = softened([0.9, 0.6, 0.5], *boxes, kind="linear", overlap=0.34)
    assert rows == [0, 1, 2]
    np.testing.assert_allclose(scores, [0.9, 0.6, 0.5], rtol=1e-6)
    # The Gaussian knows no overlap.
    rows, scores = softened([0.9, 0.8, 0.5], *boxes, kind="gaussian", overlap=0.9)
    assert rows == [0, 1, 2]
    np.testing.assert_allclose(scores, [0.9, 0.8 * math.exp(-2 / 9), 0.5], rtol=1e-6)
    rows, scores = softened([0.9, 0.8, 0.5], *boxes, kind="gaussian", sigma=0.1)
    assert rows == [0, 2, 1]
    np.testing.assert_allclose(scores[2], 0.8 * math.exp(-10 / 9), rtol=1e-6)


def test_exactly_the_overlap_does_not_soften() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5]], np.float32)  # IoU exactly 1 / 2
    scores, labels = np.array([1, 0.5], np.float32), np.array([1, 1])
    for overlap, second in ((0.5, 0.5), (0.49, 0.25)):
        _, left = Suppression(overlap, "linear")(boxes, scores, labels)
        assert left.tolist() == [1, second]


def test_the_third_falls_by_both_and_by_what_the_second_has_become() -> None:
    # 0 and 2 are 4 from 1, 8 apart: 60 / 140 and 20 / 180. 2 is taken before 1.
    rows, scores = softened([0.9, 0.5, 0.45], 0, 4, 8, kind="linear", overlap=0)
    assert rows == [0, 2, 1]
    expected = [0.9, 0.45 * (1 - 1 / 9), 0.5 * (1 - 3 / 7) ** 2]
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_what_falls_below_the_floor_goes() -> None:
    how: dict[str, Any] = {"kind": "linear", "overlap": 0.3}
    assert softened([0.9, 0.6, 0.5], 0, 5, 50, **how, floor=0.45)[0] == [0, 2]
    assert softened([0.9, 0.6, 0.0005], 0, 5, 50, **how)[0] == [0, 1]
    assert softened([0.5, 0.5], 0, 0, **how) == ([0], [0.5])  # a box in the same place: 0
    assert softened([0.5, 0.5], 0, 0, **how, floor=0) == ([0, 1], [0.5, 0])
    assert softened([0.5], 0, **how, floor=0.6) == ([], [])


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("kind", ["linear", "gaussian"])
@pytest.mark.parametrize("seed", range(8))
def test_soft_suppression_equals_the_reference(seed: int, kind: str, agnostic: bool) -> None:
    random = np.random.default_rng(seed)
    count = (0, 1, 300)[seed] if seed < 3 else int(random.integers(2, 60))
    boxes, labels = scattered(random, count), random.integers(1, 4, count)
    scores = (random.integers(1, 10, count) / 10).astype(np.float32)  # with ties
    rules = (float(random.choice([0.0, 0.3, 0.5])), float(random.choice([0.1, 0.5])), 0.01)
    found = Suppression(rules[0], kind, *rules[1:], class_agnostic=agnostic)
    rows, left = found(boxes, scores, labels)
    rivals = np.ones_like(labels) if agnostic else labels
    expected = slow.soften(boxes, scores, rivals, kind, *rules)
    assert sorted(rows.tolist()) == sorted(row for row, _ in expected)
    by_row = dict(expected)
    np.testing.assert_allclose(left, [by_row[row] for row in rows.tolist()], rtol=1e-5)
    assert (np.diff(left) <= 0).all()


def test_the_better_box_of_any_class_wins() -> None:
    scores, places, labels = [0.9, 0.8, 0.7, 0.6], (0.0, 4.0, 50.0, 54.0), [1, 2, 2, 2]
    assert softened(scores, *places, labels=labels)[0] == [0, 1, 2]
    assert softened(scores, *places, labels=labels, class_agnostic=True)[0] == [0, 2]
    how: dict[str, Any] = {"kind": "linear", "class_agnostic": True}
    rows, left = softened(scores, *places, labels=labels, **how)
    assert rows == [0, 2, 1, 3]
    np.testing.assert_allclose(left, [0.9, 0.7, 0.8 * 4 / 7, 0.6 * 4 / 7], rtol=1e-6)


def test_margins_are_no_probabilities() -> None:
    for kind in ("linear", "gaussian"):
        with pytest.raises(SettingError, match="lowers probabilities, and some scores are below 0"):
            softened([0.5, -0.1], 0, 50, kind=kind)
    assert softened([0.5, -0.1], 0, 50)[0] == [0, 1]


def test_thresholds_of_the_whole_set() -> None:
    scores = np.array([5, 4, 3, 2, 1, 9], np.float32)
    labels = np.array([1, 1, 1, 1, 1, 2])
    assert class_thresholds(scores, labels, 2, most=2).tolist() == [-np.inf, 4, -np.inf]
    assert class_thresholds(scores, labels, 2, NO_LIMIT).tolist() == [-np.inf] * 3


def test_the_best_of_an_image_over_all_classes() -> None:
    places = np.arange(8)[:, None] * 30 + np.array([0, 0, 20, 20])
    candidates = {
        "boxes": places.astype(np.float32),
        "scores": np.array([0.9, 0.2, 0.8, 0.7, 0.3, 0.6, 0.5, 0.4], np.float32),
        "labels": np.array([1, 1, 2, 2, 1, 1, 2, 2]),
    }
    found, counts = select(candidates, np.array([0, 5, 8]), 2, 0, Suppression(0.5), 2)
    assert counts == [2, 2]
    np.testing.assert_allclose(found["scores"], [0.9, 0.8, 0.6, 0.5])
    assert select(candidates, np.array([0, 5, 8]), 2, 0, Suppression(0.5))[1] == [5, 3]


def test_softened_scores_of_a_whole_set() -> None:
    # Two images with two boxes of a class that overlap by 1 / 3; caps come first, then the best.
    candidates = {
        "boxes": shifted(0, 5, 0, 5, 50),
        "scores": np.array([0.9, 0.6, 0.8, 0.75, 0.1], np.float32),
        "labels": np.array([1, 1, 1, 1, 1]),
    }
    before = candidates["scores"].copy()
    soft, offsets = Suppression(kind="linear"), np.array([0, 2, 5])
    found, counts = select(candidates, offsets, 1, 2, soft)
    assert counts == [2, 2]  # the best 4 of the set
    np.testing.assert_allclose(found["scores"], [0.9, 0.4, 0.8, 0.5], rtol=1e-6)
    np.testing.assert_array_equal(found["boxes"], shifted(0, 5, 0, 5))
    np.testing.assert_array_equal(candidates["scores"], before)
    found, counts = select(candidates, offsets, 1, NO_LIMIT, soft, 1)
    assert (counts, found["labels"].tolist()) == ([1, 1], [1, 1])
    np.testing.assert_allclose(found["scores"], [0.9, 0.8], rtol=1e-6)
