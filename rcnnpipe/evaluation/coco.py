"""COCO average precision and recall (cocodataset/cocoapi, cocoeval.py), compiled.

T overlap thresholds, R recall thresholds, K classes, A area ranges, M caps on detections per image.
"""

from dataclasses import dataclass

import numba
import numpy as np

from rcnnpipe.evaluation.columns import Floats, Results, Truth
from rcnnpipe.evaluation.groups import Groups, group
from rcnnpipe.evaluation.matching import IGNORED, TRUE, Matches, Rule, match

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
# cocoeval.py Params: square pixels, both ends inclusive
AREAS = {
    "all": (0.0, 1e10),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}


@dataclass(frozen=True)
class CocoRules:
    """COCO's parameters, ``caps`` rising; the defaults are those of boxes and masks."""

    thresholds: tuple[float, ...] = tuple(IOU_THRESHOLDS.tolist())
    areas: tuple[str, ...] = ("all", "small", "medium", "large")
    caps: tuple[int, ...] = (1, 10, 100)


KEYPOINT_RULES = CocoRules(areas=("all", "medium", "large"), caps=(20,))


@dataclass(frozen=True)
class CocoScores:
    """COCO's two tables, NaN where a class has no object of that size.

    Attributes:
        precision: (T, R, K, A, M), class k is label k + 1.
        recall: (T, K, A, M).
    """

    rules: CocoRules
    precision: Floats
    recall: Floats

    def average_precision(self, iou: float | None = None, area: str = "all") -> float:
        """Mean precision at the largest cap over classes that have objects; NaN when none has."""
        values = self.precision[self._thresholds(iou), :, :, self.rules.areas.index(area), -1]
        values = values[~np.isnan(values)]
        return float(np.mean(values)) if len(values) else np.nan

    def average_recall(
        self, iou: float | None = None, area: str = "all", cap: int | None = None
    ) -> float:
        """Mean recall at ``cap`` (the largest) over thresholds and classes; NaN without objects."""
        at = self.rules.caps.index(cap) if cap is not None else -1
        values = self.recall[self._thresholds(iou), :, self.rules.areas.index(area), at]
        values = values[~np.isnan(values)]
        return float(np.mean(values)) if len(values) else np.nan

    def per_class(self, iou: float | None = None, area: str = "all") -> Floats:
        """Average precision of each class (K,), NaN for a class without objects."""
        at = self.rules.areas.index(area)
        values: Floats = self.precision[self._thresholds(iou), :, :, at, -1].mean(axis=(0, 1))
        return values

    def stats(self) -> Floats:
        """The numbers of pycocotools' ``summarize``, in its order: 12, or 10 for keypoints."""
        ap, ar = self.average_precision, self.average_recall
        if "small" not in self.rules.areas:
            precision = [ap(), ap(0.5), ap(0.75), ap(area="medium"), ap(area="large")]
            recall = [ar(), ar(0.5), ar(0.75), ar(area="medium"), ar(area="large")]
        else:
            sizes = ("small", "medium", "large")
            precision = [ap(), ap(0.5), ap(0.75), *(ap(area=size) for size in sizes)]
            recall = [ar(cap=cap) for cap in self.rules.caps]
            recall += [ar(area=size) for size in sizes]
        return np.array(precision + recall)

    def _thresholds(self, iou: float | None) -> list[int]:
        if iou is None:
            return list(range(len(self.rules.thresholds)))
        return [int(np.argmin(np.abs(np.array(self.rules.thresholds) - iou)))]


def evaluate_coco(
    truth: Truth,
    results: Results,
    rules: CocoRules | None = None,
    *,
    groups: Groups | None = None,
    overlaps: Floats | None = None,
) -> CocoScores:
    """COCO's precision and recall of boxes, or of anything whose ``overlaps`` are given.

    Args:
        truth: ``truth.areas`` decides sizes, ``truth.ignored`` what is neither needed nor false.
        results: ``results.areas`` decides whether an unmatched detection is of a size.
        rules: thresholds, sizes, caps.
        groups: as the overlaps were computed for, with the largest cap.
        overlaps: see ``matching.match`` and ``regions``.
    """
    rules = rules or CocoRules()
    if groups is None:
        groups = group(truth, results, max(rules.caps))
    rule = Rule(rules.thresholds, tuple(AREAS[name] for name in rules.areas))
    return accumulate(match(truth, results, rule, groups, overlaps), rules)


def accumulate(matches: Matches, rules: CocoRules) -> CocoScores:
    """Precision at the recall thresholds and the recall reached, from judged detections."""
    classes = len(matches.positives) - 1
    shape = (len(rules.thresholds), classes, len(rules.areas), len(rules.caps))
    precision = np.full((shape[0], len(RECALLS), *shape[1:]), np.nan)
    recall = np.full(shape, np.nan)
    # The first cap that lets each detection through; one beyond the last was never matched.
    admitted = np.searchsorted(rules.caps, matches.ranks, side="right").astype(np.uint8)
    _accumulate(
        matches.outcomes,
        admitted,
        matches.class_starts,
        matches.positives,
        RECALLS,
        precision,
        recall,
    )
    return CocoScores(rules, precision, recall)


@numba.njit(cache=True, nogil=True)
def _accumulate(outcomes, admitted, class_starts, positives, recalls, precision, recall):  # type: ignore[no-untyped-def]
    """Walk each class's detections by falling score, for every area range and threshold."""
    caps = recall.shape[3]
    longest = 0
    for k in range(1, len(positives)):
        longest = max(longest, class_starts[k + 1] - class_starts[k])
    envelope = np.empty((caps, longest))  # precision at each true positive; between them it falls
    true = np.empty(caps, np.int64)
    for k in range(1, len(positives)):
        first, last = class_starts[k], class_starts[k + 1]
        for a in range(outcomes.shape[1]):
            if positives[k, a] == 0:
                continue
            for t in range(outcomes.shape[2]):
                _true_positives(outcomes[first:last, a, t], admitted[first:last], true, envelope)
                for m in range(caps):
                    recall[t, k - 1, a, m] = true[m] / positives[k, a]
                    _interpolate(
                        envelope[m, : true[m]],
                        positives[k, a],
                        recalls,
                        precision[t, :, k - 1, a, m],
                    )


@numba.njit(cache=True, nogil=True)
def _true_positives(outcome, admitted, true, precision):  # type: ignore[no-untyped-def]
    """Count true positives for each cap, and fill in the best precision from each of them on."""
    judged = np.zeros(len(true) + 1, np.int64)  # detections that each cap is the first to admit
    true[:] = 0
    for d in range(len(outcome)):
        if outcome[d] == IGNORED:
            continue
        judged[admitted[d]] += 1
        if outcome[d] == TRUE:
            so_far = judged[: admitted[d]].sum()
            for m in range(admitted[d], len(true)):
                so_far += judged[m]
                true[m] += 1
                # cocoeval.py adds np.spacing(1)
                precision[m, true[m] - 1] = true[m] / (so_far + 2.0**-52)
    for m in range(len(true)):
        for i in range(true[m] - 2, -1, -1):
            precision[m, i] = max(precision[m, i], precision[m, i + 1])


@numba.njit(cache=True, nogil=True)
def _interpolate(precision, positives, recalls, out):  # type: ignore[no-untyped-def]
    """Precision at the first true positive whose recall reaches each threshold, else 0."""
    i = 0
    for r in range(len(recalls)):
        while i < len(precision) and (i + 1) / positives < recalls[r]:
            i += 1
        out[r] = precision[i] if i < len(precision) else 0.0
