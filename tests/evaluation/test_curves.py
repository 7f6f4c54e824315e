import numpy as np
import pytest

from rcnnpipe.evaluation.curves import (
    Kind,
    average_precision,
    best_f1,
    precision_recall,
    thin,
)

# Sheet 10.1: five to be found, detections by score
TRUE = np.array([True, False, True, True, False, False, True, False])
SCORES = np.arange(8, 0, -1) / 10


@pytest.mark.parametrize(
    ("kind", "arange", "expected"),
    [
        ("11-point", False, 0.649351),
        ("11-point", True, 0.633117),
        ("area", False, 0.614286),
        ("101-point", False, 0.618105),
    ],
)
def test_worked_example(kind: Kind, arange: bool, expected: float) -> None:
    value = average_precision(SCORES, TRUE, 5, kind, arange=arange)
    assert value == pytest.approx(expected, abs=5e-7)
    order = np.random.default_rng(0).permutation(8)
    assert average_precision(SCORES[order], TRUE[order], 5, kind, arange=arange) == value


def test_curve_of_worked_example() -> None:
    curve = precision_recall(SCORES, TRUE, 5)
    np.testing.assert_allclose(curve.recall, [0.2, 0.2, 0.4, 0.6, 0.6, 0.6, 0.8, 0.8])
    precision = [1, 0.5, 2 / 3, 0.75, 0.6, 0.5, 4 / 7, 0.5]
    np.testing.assert_allclose(curve.precision, precision)


@pytest.mark.parametrize("kind", ["11-point", "area", "101-point"])
def test_edges(kind: Kind) -> None:
    nothing = np.zeros(0)
    assert average_precision(nothing, nothing.astype(bool), 3, kind) == 0
    assert np.isnan(average_precision(SCORES, TRUE, 0, kind))
    assert average_precision(SCORES, np.ones(8, bool), 8, kind) == pytest.approx(1)
    assert average_precision(SCORES, np.zeros(8, bool), 8, kind) == 0


def test_best_f1() -> None:
    # F1 = 2 TP / (detections + 5): 2/6 2/7 4/8 6/9 6/10 6/11 8/12 8/13; 6/9 = 8/12, higher score
    best = best_f1(precision_recall(SCORES, TRUE, 5))
    assert best is not None
    assert best.f1 == pytest.approx(2 / 3)
    assert (best.score, best.precision, best.recall) == (0.5, 0.75, 0.6)


def test_best_f1_does_not_split_equal_scores() -> None:
    # A threshold of .5 keeps all three, so F1 is 2/4, not the 1 of the first alone.
    best = best_f1(precision_recall(np.full(3, 0.5), np.array([True, False, False]), 1))
    assert best is not None
    assert best.f1 == pytest.approx(0.5)


def test_best_f1_without_a_true_detection() -> None:
    assert best_f1(precision_recall(SCORES, np.zeros(8, bool), 5)) is None
    assert best_f1(precision_recall(np.zeros(0), np.zeros(0, bool), 5)) is None


def test_thin_keeps_ends_and_shape() -> None:
    rng = np.random.default_rng(0)
    curve = precision_recall(np.arange(5000, 0, -1) / 5000, rng.uniform(size=5000) < 0.3, 2000)
    thinned = thin(curve, 100)
    assert 50 <= len(thinned.scores) <= 100
    assert thinned.scores[0] == curve.scores[0]
    assert thinned.recall[-1] == curve.recall[-1]
    assert thinned.scores[-1] == curve.scores[-1]
    assert np.isin(thinned.precision, curve.precision).all()
    assert thin(thinned, 100) is thinned
