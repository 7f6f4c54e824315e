"""Precision against recall: the curve, the areas under it by three rules, the best operating point.

D detections in order of falling score; P of them true positives.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from rcnnpipe.evaluation.columns import Flags, Floats

Kind = Literal["11-point", "area", "101-point"]
KINDS: tuple[Kind, ...] = ("11-point", "area", "101-point")


@dataclass(frozen=True)
class Curve:
    """Precision and recall after each detection, best score first.

    Attributes:
        recall, precision, scores: (D,) float64.
        positives: number of objects to be found.
    """

    recall: Floats
    precision: Floats
    scores: Floats
    positives: int


@dataclass(frozen=True)
class OperatingPoint:
    """The score threshold with the best F1: detections with at least this score are kept."""

    score: float
    f1: float
    precision: float
    recall: float


def precision_recall(scores: npt.NDArray[np.floating], is_true: Flags, positives: int) -> Curve:
    """The curve of detections (D,) already in order of falling score.

    Args:
        scores: falling.
        is_true: whether each detection is a true positive; detections that are not judged (matched
            to a difficult object) have been left out before.
        positives: objects to be found, at least 1.
    """
    found = np.cumsum(is_true, dtype=np.int64)
    return Curve(
        recall=found / positives,
        precision=found / np.arange(1, len(found) + 1),
        scores=np.asarray(scores, np.float64),
        positives=positives,
    )


def average_precision(
    scores: npt.NDArray[np.floating],
    is_positive: Flags,
    n_positives: int,
    kind: Kind = "area",
    *,
    arange: bool = False,
) -> float:
    """Average precision of detections in any order; equal scores keep their order.

    Args:
        scores: (D,) higher is surer.
        is_positive: (D,) true positives.
        n_positives: how many there are to be found, those never detected included.
        kind: ``11-point`` (VOC 2007 to 2009), ``area`` (VOC 2010 on), ``101-point`` (COCO).
        arange: see ``area_under``.

    Returns:
        A value in [0, 1], NaN when there is nothing to be found.
    """
    if n_positives == 0:
        return float("nan")
    order = np.argsort(-np.asarray(scores), kind="stable")
    curve = precision_recall(np.asarray(scores)[order], np.asarray(is_positive)[order], n_positives)
    return area_under(curve, kind, arange=arange)


def area_under(curve: Curve, kind: Kind, *, arange: bool = False) -> float:
    """Average precision of a curve.

    ``11-point`` takes the recalls k/10. ``arange`` takes those of py-faster-rcnn's
    ``arange(0, 1.1, .1)`` instead, two of which lie a rounding above .3 and .6, so that a recall of
    exactly 3/5 fails .6.
    """
    envelope = np.maximum.accumulate(curve.precision[::-1])[::-1]
    if kind == "area":
        steps = np.diff(curve.recall, prepend=0.0)
        return float(np.sum(steps * envelope))
    if kind == "101-point":
        points = np.linspace(0, 1, 101)
    else:
        points = np.arange(0, 1.1, 0.1) if arange else np.arange(11) / 10
    first = np.searchsorted(curve.recall, points, side="left")
    return float(np.append(envelope, 0.0)[first].sum() / len(points))


def best_f1(curve: Curve) -> OperatingPoint | None:
    """The threshold with the highest F1, the highest such score; None where nothing true was found.

    A threshold cannot separate equal scores, so only the last detection of each score counts.
    """
    last = np.append(np.diff(curve.scores) != 0, True)[: len(curve.scores)]
    where = np.flatnonzero(last & (curve.recall > 0))
    if not len(where):
        return None
    precision, recall = curve.precision[where], curve.recall[where]
    # 2 TP / (detections + positives): whole numbers, so that equal values compare equal
    f1 = 2 * np.rint(recall * curve.positives) / (where + 1 + curve.positives)
    best = int(np.argmax(f1))
    return OperatingPoint(
        score=float(curve.scores[where[best]]),
        f1=float(f1[best]),
        precision=float(precision[best]),
        recall=float(recall[best]),
    )


def thin(curve: Curve, points: int = 200) -> Curve:
    """The curve at no more than ``points`` detections, by equal steps of rank and of recall.

    The first and the last detection are kept. For tables and plots; never for a metric.
    """
    total = len(curve.scores)
    if total <= points:
        return curve
    by_rank = np.linspace(0, total - 1, points // 2).astype(np.int64)
    levels = np.linspace(0, curve.recall[-1], points // 2)
    by_recall = np.searchsorted(curve.recall, levels, side="left")
    keep = np.unique(np.concatenate([by_rank, by_recall]))
    return Curve(curve.recall[keep], curve.precision[keep], curve.scores[keep], curve.positives)
