"""Greedy suppression, one pair at a time."""

from typing import Any

import numpy as np


def iou(a: Any, b: Any) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    return float(shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared))


def suppress(boxes: Any, scores: Any, labels: Any, overlap: float) -> list[int]:
    kept: list[int] = []
    for row in np.argsort(-scores, kind="stable"):
        rivals = (other for other in kept if labels[other] == labels[row])
        if all(iou(boxes[row], boxes[other]) <= overlap for other in rivals):
            kept.append(int(row))
    return kept
