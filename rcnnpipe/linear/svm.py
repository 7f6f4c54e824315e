"""One linear SVM: its objective, and two solvers that reach the same minimum of it.

The problem is R-CNN's (LIBLINEAR ``-s 3 -c 0.001 -w1 2 -B 10``): L2 penalty, hinge loss, positives
weigh double, and the bias is the weight of one more feature that is 10 everywhere, so that it is
penalised (a hundred times less than as a feature of 1):

    0.5 |w|^2 + 0.5 (b / 10)^2 + C (2 sum_pos max(0, 1 - f) + sum_neg max(0, 1 + f)),  f = x w + b

Vocabulary: S stored rows, n examples, D features; signs +1 and -1; alphas are the dual variables,
one an example, between 0 and the weight of the example's loss.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rcnnpipe.linear.dual import descend
from rcnnpipe.linear.rows import products_of, stored, weights_from

Array = np.ndarray[Any, Any]
Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

# Enough for fits between which negatives are mined; LIBLINEAR's default leaves about 1e-2.
ROUGH = 1e-3
_ROUNDS = 30  # of the dual solver; three or four are usual


@dataclass(frozen=True)
class Costs:
    """The constants of the objective (the authors' ``rcnn_train.m``).

    Attributes:
        cost: C, weight of the loss against the penalty; it supposes features of mean norm 20.
        positive_weight: how much more a positive's loss counts.
        bias_feature: the constant feature whose weight, times itself, is the bias.
    """

    cost: float = 1e-3
    positive_weight: float = 2.0
    bias_feature: float = 10.0

    def limits(self, signs: Array) -> Doubles:
        """Weight of each example's loss (n,), which is its largest alpha."""
        return np.where(signs > 0, self.cost * self.positive_weight, self.cost)


@dataclass(frozen=True)
class Examples:
    """What an SVM learns from; the rows may be shared with other classes.

    Attributes:
        rows: (S, D) float16 or float32, finite, unscaled.
        places: (n,) int64, the row of each example.
        signs: (n,) +1 or -1.
        scale: factor of all rows; the SVM is one for scaled rows.
    """

    rows: Array
    places: npt.NDArray[np.int64]
    signs: Array
    scale: float = 1.0

    def dense(self) -> Floats:
        """A copy (n, D) of the scaled rows, as float32."""
        return self.rows[self.places].astype(np.float32) * np.float32(self.scale)


@dataclass(frozen=True)
class Solution:
    """A minimum of the objective.

    Attributes:
        weights: (D,) float32, for scaled rows.
        bias: added to ``x @ weights``.
        scores: (n,) float64 of the examples.
        objective: at weights and bias.
        gap: objective minus the dual objective, relative to the objective: no other weights are
            better by more than this. NaN where the solver does not know.
        alphas: (n,) float64, where the next fit may start; None where the solver does not tell.
        epochs: rounds over examples.
    """

    weights: Floats
    bias: float
    scores: Doubles
    objective: float
    gap: float
    alphas: Doubles | None
    epochs: int


def penalty(weights: Array, bias: float, costs: Costs) -> float:
    """The objective without the loss, of weights (D,) and a bias."""
    exact = weights.astype(np.float64)
    return 0.5 * float(exact @ exact) + 0.5 * (bias / costs.bias_feature) ** 2


def loss(scores: Array, signs: Array, costs: Costs) -> float:
    """The objective without the penalty, of scores (n,) of examples with signs (n,)."""
    return float((costs.limits(signs) * np.maximum(0.0, 1.0 - signs * scores)).sum())


def scores_of(examples: Examples, weights: Floats, bias: float) -> Doubles:
    """Scores (n,) of the examples, on the calling thread alone."""
    products: Doubles = products_of(stored(examples.rows), examples.places, weights)
    return examples.scale * products + bias


def solve_dual(
    examples: Examples,
    costs: Costs,
    *,
    alphas: Doubles | None = None,
    tolerance: float = 1e-5,
    seed: int = 0,
) -> Solution:
    """Minimise by dual coordinate descent, from given alphas or from zero.

    The algorithm is LIBLINEAR's (Hsieh et al. 2008, algorithm 3), but it starts where the last fit
    ended, works in each round on the examples that matter to the weights of now, and stops by the
    duality gap: the result is within ``tolerance`` of the minimum, relatively, whatever the data.

    Args:
        examples: n examples; one side may be absent.
        costs: the constants.
        alphas: (n,) to start from.
        tolerance: relative duality gap at which to stop. float32 carries to about 1e-6.
        seed: of the order in which examples are visited.
    """
    signs, rows = examples.signs.astype(np.float64), stored(examples.rows)
    limits = costs.limits(signs)
    alphas = np.zeros(len(signs)) if alphas is None else np.clip(alphas, 0.0, limits)
    violation, epochs = 1e-3, 0
    for turn in range(_ROUNDS + 1):
        signed = alphas * signs
        summed = weights_from(rows, examples.places, signed)
        weights = (examples.scale * summed).astype(np.float32)
        last = float(signed.sum()) * costs.bias_feature
        bias = last * costs.bias_feature
        scores = scores_of(examples, weights, bias)
        size = penalty(weights, bias, costs)
        value = size + loss(scores, signs, costs)
        gap = (value - (float(alphas.sum()) - size)) / value
        if gap <= tolerance or turn == _ROUNDS:
            break
        matter = np.flatnonzero((alphas > 0.0) | (signs * scores < 1.0))
        epochs += descend(
            *(rows, examples.places, signs, limits, examples.scale, costs.bias_feature),
            *(alphas, weights, last, matter, seed + turn, violation),
        )
        violation = max(0.1 * violation, 1e-6)
    return Solution(weights, bias, scores, value, gap, alphas, epochs)


def solve_liblinear(examples: Examples, costs: Costs, *, seed: int = 0) -> Solution:
    """Minimise by LIBLINEAR through scikit-learn: the reference, in float64 and always from zero.

    Args:
        examples: n examples, both signs present.
        costs: the constants.
        seed: of the order in which examples are visited.
    """
    from sklearn.svm import LinearSVC

    machine = LinearSVC(
        penalty="l2",
        loss="hinge",
        dual=True,
        C=costs.cost,
        class_weight={1: costs.positive_weight},
        intercept_scaling=costs.bias_feature,
        tol=1e-4,
        max_iter=1_000_000,
        random_state=seed,
    )
    machine.fit(examples.dense(), np.where(examples.signs > 0, 1, -1))
    weights, bias = machine.coef_[0].astype(np.float32), float(machine.intercept_[0])
    scores = scores_of(examples, weights, bias)
    value = penalty(weights, bias, costs) + loss(scores, examples.signs, costs)
    return Solution(weights, bias, scores, value, float("nan"), None, int(machine.n_iter_))
