"""Linear SVMs of all classes with hard-negative mining, in one reading of the features.

Girshick et al. 2014, section 2.3 and the authors' ``rcnn_train``. Positives of a class are its
ground truth; negatives are regions that overlap every object of the class by less than 0.3. The
positives and all negatives of the first image give the first SVM; then each image's negatives that
the SVM does not yet keep clearly outside the margin join the class's cache, the SVM is fitted again
whenever more than 2000 have joined, and after a fit those that have become easy leave the cache.

Vocabulary: R regions of an image, D features, K classes, P positives and M cached negatives of a
class.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from rcnnpipe.errors import ArtifactError
from rcnnpipe.evaluation.curves import average_precision
from rcnnpipe.linear.cache import ImageRows
from rcnnpipe.linear.rows import finite_rows, linear_scores, stored
from rcnnpipe.linear.store import RowStore
from rcnnpipe.linear.svm import Examples, Solution

Array = np.ndarray[Any, Any]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
# n examples; alphas (n,) of the last fit, with zeros for what is new; whether this fit is the last
# and must be exact (LIBLINEAR's default, which the authors used, is rough) -> the minimum
Solver = Callable[[Examples, Doubles, bool], Solution]

# Bias of a class that could not be trained, whose weights are zero: no threshold lets it through.
UNTRAINED_BIAS = float("-inf")


@dataclass(frozen=True)
class Mining:
    """The thresholds of mining (``rcnn_train.m``).

    Attributes:
        overlap: a negative's IoU with every object of the class is below this (section 2.3).
        hard: a negative with a higher score joins the cache. It is below zero, so that before the
            first fit, when every score is 0, all negatives join.
        easy: a cached negative with a lower score leaves it after a fit.
        retrain_after: fit again when more than this many have joined since the last fit.
        passes: readings of the features; mining ends early when one brings nothing new.
    """

    overlap: float = 0.3
    hard: float = -1.0001
    easy: float = -1.2
    retrain_after: int = 2000
    passes: int = 1


@dataclass(frozen=True)
class Detector:
    """The SVM of one class and how it came about.

    Attributes:
        weights: (D,) float32, for scaled features; zeros where there was no fit, because the class
            has no positives or no negatives.
        bias: added to ``x @ weights``; :data:`UNTRAINED_BIAS` where there was no fit.
        positives: P.
        negatives_seen: regions that were looked at as negatives, in all passes.
        negatives_cached: M, in the last fit.
        fits: how often the SVM was fitted.
        objective: of the last fit, NaN where there was none.
        gap: its duality gap relative to it, NaN where unknown.
        average_precision: of ranking the P positives against the M cached negatives, in [0, 1].
            A region that is not cached scored below the margin, so the ranking of all training
            regions differs from it only far down. NaN where there was no fit.
    """

    weights: Floats
    bias: float
    positives: int
    negatives_seen: int = 0
    negatives_cached: int = 0
    fits: int = 0
    objective: float = float("nan")
    gap: float = float("nan")
    average_precision: float = float("nan")


class _Class:
    """One class's cache and SVM between images."""

    def __init__(self, positives: Integers) -> None:
        self.positives = len(positives)
        self.places = positives  # (P + M,) of the examples in the store, positives first
        self.keys = np.full(len(positives), -1, np.int64)  # (P + M,) row numbers of the negatives
        self.alphas = np.zeros(len(positives))  # (P + M,)
        self.added = self.seen = self.fits = 0
        self.solution: Solution | None = None

    def uncached(self, keys: Integers) -> npt.NDArray[np.bool_]:
        """Which of some rows, in rising order, are not in the cache; in the first pass all."""
        if len(keys) == 0 or keys[0] > self.keys.max(initial=-1):
            return np.ones(len(keys), bool)
        return ~np.isin(keys, self.keys)

    def join(self, keys: Integers, places: Integers) -> None:
        """Cache negatives."""
        self.keys = np.concatenate((self.keys, keys))
        self.places = np.concatenate((self.places, places))
        self.alphas = np.concatenate((self.alphas, np.zeros(len(keys))))
        self.added += len(keys)

    def is_due(self, retrain_after: int) -> bool:
        return self.added > (retrain_after if self.fits else 0)

    def signs(self) -> Doubles:
        """+1 for the positives, -1 for the negatives (P + M,)."""
        return np.where(np.arange(len(self.places)) < self.positives, 1.0, -1.0)

    def fit(self, solve: Solver, rows: Array, scale: float, last: bool) -> Solution:
        """Fit the SVM to the cache."""
        examples = Examples(rows, self.places, self.signs(), scale)
        self.solution = solve(examples, self.alphas, last)
        if self.solution.alphas is not None:
            self.alphas = self.solution.alphas
        self.added, self.fits = 0, self.fits + 1
        return self.solution

    def evict(self, below: float) -> Integers:
        """Forget easy negatives, whose alphas are 0 at the minimum; return their places."""
        assert self.solution is not None
        easy = (self.solution.scores < below) & (self.signs() < 0)
        places = self.places[easy]
        self.keys, self.places, self.alphas = (
            self.keys[~easy],
            self.places[~easy],
            self.alphas[~easy],
        )
        self.solution = replace(self.solution, scores=self.solution.scores[~easy])
        return places

    def _average_precision(self) -> float:
        assert self.solution is not None
        # Negatives first, so that a positive with an equal score counts below them.
        scores, positive = self.solution.scores[::-1], self.signs()[::-1] > 0
        return average_precision(scores, positive, self.positives)

    def detector(self, width: int) -> Detector:
        """The result, as it is now."""
        if self.solution is None:
            weights = np.zeros(width, np.float32)
            return Detector(weights, UNTRAINED_BIAS, self.positives, self.seen)
        return Detector(
            weights=self.solution.weights,
            bias=self.solution.bias,
            positives=self.positives,
            negatives_seen=self.seen,
            negatives_cached=len(self.keys) - self.positives,
            fits=self.fits,
            objective=self.solution.objective,
            gap=self.solution.gap,
            average_precision=self._average_precision(),
        )


def train_detectors(
    images: Callable[[], Iterable[ImageRows]],
    positives: Sequence[Array],
    solve: Solver,
    *,
    scale: float,
    mining: Mining | None = None,
    workers: int = 1,
) -> list[Detector]:
    """Train the SVMs of all K classes; each image's features are read once for all of them.

    Args:
        images: gives the images in order, anew for each pass.
        positives: for each class (P_k, D) features of its ground truth, unscaled.
        solve: finds the minimum of one SVM's objective.
        scale: factor that brings features to mean norm 20.
        mining: the thresholds.
        workers: classes fitted at once.

    Returns:
        One detector a class. The result does not depend on ``workers``.

    Raises:
        ArtifactError: features that are no finite numbers.
    """
    rule = mining or Mining()
    width = positives[0].shape[1]
    store = RowStore(width, positives[0].dtype)
    classes = [_Class(_held_for_ever(rows, number, store)) for number, rows in enumerate(positives)]
    trainable = np.array([one.positives > 0 for one in classes], bool)
    weights = np.zeros((len(classes), width), np.float32)  # the scale is folded in
    biases = np.zeros(len(classes), np.float32)

    def fit(numbers: Sequence[int], last: bool = False) -> None:
        def one(number: int) -> Solution:
            return classes[number].fit(solve, store.rows, scale, last)

        for number, solution in zip(numbers, list(pool.map(one, numbers)), strict=True):
            weights[number], biases[number] = solution.weights * scale, solution.bias

    with ThreadPoolExecutor(max(1, workers)) as pool:
        for _ in range(rule.passes):
            joined = 0
            for image in images():
                negative = (image.overlaps < rule.overlap) & trainable  # (R, K)
                hard = negative & (_scores(image, weights, biases) > rule.hard)
                joined += _join(classes, image, hard, store)
                for one, count in zip(classes, negative.sum(0).tolist(), strict=True):
                    one.seen += count
                due = [k for k, one in enumerate(classes) if one.is_due(rule.retrain_after)]
                fit(due)
                for number in due:
                    store.release(classes[number].evict(rule.easy))
            if joined == 0:
                break
        # As at the authors' last image, whether or not negatives have joined since the last fit.
        fit([number for number, one in enumerate(classes) if one.added or one.fits], last=True)
    return [one.detector(width) for one in classes]


def _held_for_ever(rows: Array, number: int, store: RowStore) -> Integers:
    """Places of a class's positives; their keys are negative, so no image's rows collide."""
    keys = -1 - np.arange(len(rows)) - number * 2**40
    return store.hold(keys, rows, np.ones(len(rows), np.int64))


def _join(classes: list[_Class], image: ImageRows, hard: Array, store: RowStore) -> int:
    """Cache an image's hard negatives (R, K) that are not cached yet; return how many."""
    keys = image.first + np.arange(len(hard))
    for number, one in enumerate(classes):
        rows = np.flatnonzero(hard[:, number])
        hard[rows, number] = one.uncached(keys[rows])
    holders = hard.sum(1)
    taken = np.flatnonzero(holders)
    places = np.full(len(hard), -1, np.int64)
    places[taken] = store.hold(keys[taken], image.features[taken], holders[taken])
    for number in np.flatnonzero(hard.any(0)).tolist():
        rows = np.flatnonzero(hard[:, number])
        classes[number].join(keys[rows], places[rows])
    return int(holders.sum())


def _scores(image: ImageRows, weights: Floats, biases: Floats) -> Floats:
    """Scores (R, K) of an image's regions by the SVMs as they are now."""
    rows = stored(image.features)
    finite = finite_rows(rows)
    if not finite.all():
        raise ArtifactError(
            f"the features of row {image.first + int(finite.argmin())} hold values that are no "
            "finite numbers; look at the file with rcnnpipe inspect and extract the features again"
        )
    scores: Floats = linear_scores(rows, weights, biases)
    return scores
