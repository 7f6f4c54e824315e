"""Greedy and soft suppression, one pair at a time."""

import math
from typing import Any

import numpy as np

from tests.reference.regions import iou


def suppress(boxes: Any, scores: Any, labels: Any, overlap: float) -> list[int]:
    kept: list[int] = []
    for row in np.argsort(-scores, kind="stable"):
        rivals = (other for other in kept if labels[other] == labels[row])
        if all(iou(boxes[row], boxes[other]) <= overlap for other in rivals):
            kept.append(int(row))
    return kept


def soften(
    boxes: Any, scores: Any, labels: Any, kind: str, overlap: float, sigma: float, floor: float
) -> list[tuple[int, float]]:
    """Rows and new scores by falling score: Bodla et al. 2017, figure 2, for each class."""
    taken: list[tuple[int, float]] = []
    for label in sorted(set(labels.tolist())):
        left = {row: float(scores[row]) for row in range(len(boxes)) if labels[row] == label}
        while left:
            best = max(left, key=lambda row: (left[row], -row))
            taken.append((best, left.pop(best)))
            for row in left:
                shared = iou(boxes[best].astype(float), boxes[row].astype(float))
                if kind == "gaussian":
                    left[row] *= math.exp(-(shared**2) / sigma)
                elif shared > overlap:
                    left[row] *= 1 - shared
    return sorted([one for one in taken if one[1] >= floor], key=lambda one: -one[1])
