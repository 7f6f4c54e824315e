"""VOC average precision the slow way: one class, lists and loops, as the devkit describes it."""

from collections.abc import Sequence
from dataclasses import dataclass

Box = Sequence[float]


@dataclass
class Thing:
    """An object or a detection of one class; x1 y1 x2 y2, continuous."""

    image: str
    box: Box
    difficult: bool = False
    score: float = 0.0


def inclusive_iou(a: Box, b: Box) -> float:
    """VOCevaldet.m: on 1-based inclusive corners with widths one larger than the difference."""
    ax1, ay1, ax2, ay2 = a[0] + 1, a[1] + 1, a[2], a[3]
    bx1, by1, bx2, by2 = b[0] + 1, b[1] + 1, b[2], b[3]
    width = min(ax2, bx2) - max(ax1, bx1) + 1
    height = min(ay2, by2) - max(ay1, by1) + 1
    if width <= 0 or height <= 0:
        return 0.0
    area = (ax2 - ax1 + 1) * (ay2 - ay1 + 1) + (bx2 - bx1 + 1) * (by2 - by1 + 1)
    return width * height / (area - width * height)


def label(objects: list[Thing], detections: list[Thing], iou: float) -> list[bool | None]:
    """For the detections by falling score: true, false, or None where not judged."""
    found: set[int] = set()
    outcomes: list[bool | None] = []
    for detection in sorted(detections, key=lambda one: -one.score):
        best, chosen = -1.0, -1
        for number, one in enumerate(objects):
            if one.image == detection.image and inclusive_iou(detection.box, one.box) > best:
                best, chosen = inclusive_iou(detection.box, one.box), number
        if best < iou:
            outcomes.append(False)
        elif objects[chosen].difficult:
            outcomes.append(None)
        else:
            outcomes.append(chosen not in found)
            found.add(chosen)
    return outcomes


def average_precision(outcomes: list[bool | None], positives: int, kind: str) -> float:
    """11-point or area, of labelled detections."""
    recall, precision = [], []
    true = false = 0
    for outcome in outcomes:
        true += outcome is True
        false += outcome is False
        recall.append(true / positives)
        precision.append(true / (true + false) if true + false else 0.0)
    if kind == "11-point":
        total = 0.0
        for k in range(11):
            reached = [p for p, r in zip(precision, recall, strict=True) if r >= k / 10]
            total += max(reached, default=0.0)
        return total / 11
    levels = [0.0, *recall, 1.0]
    heights = [0.0, *precision, 0.0]
    for i in range(len(heights) - 2, -1, -1):
        heights[i] = max(heights[i], heights[i + 1])
    return sum((levels[i + 1] - levels[i]) * heights[i + 1] for i in range(len(levels) - 1))
