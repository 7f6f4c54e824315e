from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from rcnnpipe.linear.rows import linear_scores, products_of, stored, weights_from
from rcnnpipe.linear.svm import Costs, Examples, loss, penalty, solve_dual, solve_liblinear
from tests.reference import svm as reference

COSTS = Costs()


def drawn(
    positives: int, negatives: int, width: int = 24, seed: int = 0, shift: float = 0.4
) -> Examples:
    """Rectified noise of mean norm about 20, positives shifted; float16 as in a features file."""
    random = np.random.default_rng(seed)
    count = positives + negatives
    signs = np.where(np.arange(count) < positives, 1.0, -1.0)
    rows = random.standard_normal((count, width)) + shift * (signs[:, None] > 0)
    rows = np.maximum(rows, 0).astype(np.float16)
    norm = np.linalg.norm(rows.astype(np.float64), axis=1).mean()
    places = random.permutation(count)
    shuffled = np.empty_like(rows)
    shuffled[places] = rows
    return Examples(shuffled, places, signs, 20 / norm)


def value(examples: Examples, weights: npt.NDArray[Any], bias: float) -> float:
    return reference.objective(
        weights.astype(np.float64), bias, examples.dense().astype(np.float64), examples.signs
    )


def test_every_half_precision_number_is_read_as_it_is() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    numbers = bits.view(np.float16)
    finite = np.isfinite(numbers)
    column = stored(numbers[finite][:, None])
    places = np.arange(finite.sum())
    found = products_of(column, places, np.ones(1, np.float32))
    np.testing.assert_array_equal(found, numbers[finite].astype(np.float64))


def test_products_and_sums_agree_with_numpy_for_both_precisions() -> None:
    random = np.random.default_rng(0)
    # Magnitudes from subnormal halves to nearly the largest: scaling must not be reordered.
    rows = random.standard_normal((11, 37)) * 10.0 ** random.uniform(-7, 4.5, (11, 37))
    places = np.array([3, 0, 10, 3])
    weights = random.standard_normal(37).astype(np.float32)
    for dtype in (np.float16, np.float32):
        values = rows.astype(dtype)
        exact = values.astype(np.float64)
        found = products_of(stored(values), places, weights)
        scale = np.abs(exact[places]) @ np.abs(weights)
        assert (np.abs(found - exact[places] @ weights) <= 1e-6 * scale).all()
        signed = random.standard_normal(4)
        summed = weights_from(stored(values), places, signed)
        np.testing.assert_allclose(summed, signed @ exact[places], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("count", [0, 1, 4, 7])
def test_scores_of_all_classes_are_one_matrix_product(count: int) -> None:
    random = np.random.default_rng(count)
    rows = random.standard_normal((count, 19)).astype(np.float16)
    weights = random.standard_normal((3, 19)).astype(np.float32)
    biases = np.array([0.5, -np.inf, 2], np.float32)
    found = linear_scores(stored(rows), weights, biases)
    np.testing.assert_allclose(found, rows.astype(np.float64) @ weights.T + biases, rtol=1e-5)


def test_objective_by_hand() -> None:
    # w = (1, 0), b = 2: 0.5 + 0.5 * 0.2^2 = 0.52. Scores 1.5 (positive: no loss), -0.5 -> 1.5 for
    # the second positive at weight 2, and 2.5 for a negative: loss 3.5.
    weights = np.array([1.0, 0.0], np.float32)
    scores = np.array([1.5, -0.5, 2.5])
    signs = np.array([1, 1, -1])
    assert penalty(weights, 2.0, COSTS) == pytest.approx(0.52)
    assert loss(scores, signs, COSTS) == pytest.approx(1e-3 * (2 * 1.5 + 3.5))


@pytest.mark.parametrize(("positives", "negatives"), [(5, 60), (30, 30), (1, 12), (20, 0), (0, 9)])
def test_dual_solver_reaches_the_minimum(positives: int, negatives: int) -> None:
    examples = drawn(positives, negatives, seed=positives)
    found = solve_dual(examples, COSTS, tolerance=1e-6)
    exact = reference.minimise(examples.dense(), examples.signs)
    least = value(examples, *exact)
    assert value(examples, found.weights, found.bias) == pytest.approx(least, rel=2e-6)
    assert found.objective == pytest.approx(least, rel=2e-6)
    # The problem is strictly convex in the weights, so they agree too.
    np.testing.assert_allclose(found.weights, exact[0], atol=1e-3 * np.abs(exact[0]).max() + 1e-9)
    np.testing.assert_allclose(
        found.scores, examples.dense() @ found.weights + found.bias, atol=1e-5
    )


def test_the_gap_bounds_what_is_missing() -> None:
    examples = drawn(10, 200, seed=3)
    least = value(examples, *reference.minimise(examples.dense(), examples.signs))
    for tolerance in (1e-2, 1e-4):
        found = solve_dual(examples, COSTS, tolerance=tolerance)
        missing = found.objective - least
        assert -1e-7 * least <= missing <= found.gap * found.objective + 1e-7 * least
        assert found.gap <= tolerance


@pytest.mark.parametrize("shift", [0.2, 1.0])
def test_both_solvers_reach_the_same_objective(shift: float) -> None:
    examples = drawn(15, 400, width=64, seed=7, shift=shift)
    ours = solve_dual(examples, COSTS)
    theirs = solve_liblinear(examples, COSTS)
    assert ours.objective == pytest.approx(theirs.objective, rel=1e-4)
    assert theirs.objective == pytest.approx(value(examples, theirs.weights, theirs.bias), rel=1e-6)


def test_other_constants_reach_the_solvers() -> None:
    examples = drawn(10, 60, seed=1)
    costs = Costs(cost=0.05, positive_weight=5.0, bias_feature=1.0)
    exact = reference.minimise(examples.dense(), examples.signs, 0.05, 5.0, 1.0)
    least = reference.objective(*exact, examples.dense(), examples.signs, 0.05, 5.0, 1.0)
    assert solve_dual(examples, costs).objective == pytest.approx(least, rel=2e-5)
    assert solve_liblinear(examples, costs).objective == pytest.approx(least, rel=1e-3)


def test_a_warm_start_has_nothing_left_to_do() -> None:
    examples = drawn(10, 300, seed=2)
    cold = solve_dual(examples, COSTS)
    warm = solve_dual(examples, COSTS, alphas=cold.alphas)
    assert cold.epochs > 0
    assert warm.epochs == 0
    np.testing.assert_array_equal(warm.weights, cold.weights)


def test_equal_seeds_give_equal_bytes_and_the_scale_is_that_of_the_rows() -> None:
    examples = drawn(10, 100, seed=4)
    first, second = (solve_dual(examples, COSTS, seed=5) for _ in range(2))
    np.testing.assert_array_equal(first.weights, second.weights)
    dense = examples.dense()
    places = np.arange(len(dense))
    again = solve_dual(Examples(dense, places, examples.signs), COSTS)
    assert again.objective == pytest.approx(first.objective, rel=3e-5)
