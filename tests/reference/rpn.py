"""A Region Proposal Network's parts, one anchor, one cell and one pair at a time.

Written after py-faster-rcnn's ``generate_anchors.py``, ``anchor_target_layer.py`` and
``proposal_layer.py``, with continuous boxes. What decides ties is computed in float32, as the
library's overlaps are: whole numbers are exact there, and equal fractions stay equal.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.reference.regions import Box, area, encode, shared
from tests.reference.suppression import suppress

LARGEST = math.log(1000 / 16)


def authors_base(stride: int, sizes: Sequence[float], ratios: Sequence[float]) -> list[list[float]]:
    """Inclusive corners, in the steps of ``generate_anchors.py``."""
    boxes = []
    centre = 0 + 0.5 * (stride - 1)  # of the inclusive square 0, 0, stride - 1, stride - 1
    for ratio in ratios:
        width = float(np.round(np.sqrt(stride * stride / ratio)))
        height = float(np.round(width * ratio))
        for size in sizes:
            wide, high = width * (size / stride), height * (size / stride)
            boxes.append(
                [
                    centre - 0.5 * (wide - 1),
                    centre - 0.5 * (high - 1),
                    centre + 0.5 * (wide - 1),
                    centre + 0.5 * (high - 1),
                ]
            )
    return boxes


def all_anchors(
    base: Sequence[Box], size: tuple[int, int], stride: tuple[float, float]
) -> list[list[float]]:
    """Row by row, cell by cell, anchor by anchor."""
    found = []
    for row in range(size[0]):
        for column in range(size[1]):
            for x1, y1, x2, y2 in base:
                dy, dx = row * stride[0], column * stride[1]
                found.append([x1 + dx, y1 + dy, x2 + dx, y2 + dy])
    return found


def overlap(a: Box, b: Box) -> float:
    both = shared(a, b)
    return float(np.float32(both) / np.float32(area(a) + area(b) - both))


def label(
    anchors: Sequence[Box],
    truth: Sequence[Box],
    ignored: Sequence[Box],
    size: tuple[int, int],
    thresholds: tuple[float, float],
    drop: bool,
) -> tuple[list[int], list[int]]:
    """Labels and own best objects; ``thresholds`` are those of positives and of negatives."""
    positive, negative = thresholds
    inside = [
        row
        for row, (x1, y1, x2, y2) in enumerate(anchors)
        if not drop or (x1 >= 0 and y1 >= 0 and x2 <= size[1] and y2 <= size[0])
    ]
    labels, matched = [-1] * len(anchors), [0] * len(anchors)
    for row in inside:
        best = 0.0
        for number, box in enumerate(truth):
            if overlap(anchors[row], box) > best:
                best, matched[row] = overlap(anchors[row], box), number
        if best < negative:
            labels[row] = 0
        if best >= positive:
            labels[row] = 1
    for box in truth:
        best = max((overlap(anchors[row], box) for row in inside), default=0.0)
        for row in inside:
            if best > 0 and overlap(anchors[row], box) == best:
                labels[row] = 1
    for row in inside:
        share = max((shared(anchors[row], box) for box in ignored), default=0.0)
        if labels[row] == 0 and share / area(anchors[row]) > 0.5:
            labels[row] = -1
    return labels, matched


def moved(anchor: Box, deltas: Box, size: tuple[int, int]) -> list[float]:
    """An anchor moved by its deltas and cut at an image of (height, width)."""
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    x = (anchor[0] + anchor[2]) / 2 + deltas[0] * width
    y = (anchor[1] + anchor[3]) / 2 + deltas[1] * height
    wide = width * math.exp(min(deltas[2], LARGEST))
    high = height * math.exp(min(deltas[3], LARGEST))
    corners = (x - wide / 2, y - high / 2, x + wide / 2, y + high / 2)
    return [
        min(max(corner, 0.0), side) for corner, side in zip(corners, size[::-1] * 2, strict=True)
    ]


def proposals(
    logits: Sequence[Sequence[float]],
    deltas: Sequence[Sequence[Box]],
    anchors: Sequence[Sequence[Box]],
    size: tuple[int, int],
    smallest: float,
    rules: Any,
) -> tuple[list[list[float]], list[float]]:
    """Boxes and scores of one image; lists of maps go in. ``smallest`` is in resized pixels."""
    boxes, scores, levels = [], [], []
    for level, (own_logits, own_deltas, own_anchors) in enumerate(
        zip(logits, deltas, anchors, strict=True)
    ):
        rows = sorted(range(len(own_logits)), key=lambda row: -own_logits[row])
        placed = [moved(own_anchors[row], own_deltas[row], size) for row in rows]
        large = [min(box[2] - box[0], box[3] - box[1]) >= smallest for box in placed]
        order = list(range(len(rows)))
        if rules.drop_first:
            order = [place for place in order if large[place]]
        order = order[: rules.before or None]
        for place in order:
            if large[place]:
                boxes.append(placed[place])
                scores.append(1 / (1 + math.exp(-own_logits[rows[place]])))
                levels.append(level if rules.per_level else 0)
    if not boxes:
        return [], []
    kept = suppress(np.array(boxes), np.array(scores), levels, rules.overlap)[: rules.keep]
    return [boxes[row] for row in kept], [scores[row] for row in kept]


def smooth_l1(x: float, sigma: float) -> float:
    """As the authors count it: by sigma."""
    if abs(x) < 1 / sigma**2:
        return 0.5 * sigma**2 * x**2
    return abs(x) - 0.5 / sigma**2


def loss(
    logits: Sequence[float],
    deltas: Sequence[Box],
    anchors: Sequence[Box],
    targets: Sequence[Box],
    positives: Sequence[int],
    negatives: Sequence[int],
    sigma: float,
) -> tuple[float, float]:
    """Of objectness and of boxes; ``targets`` are the object of each anchor."""
    total = boxes = 0.0
    for row in positives:
        total -= math.log(1 / (1 + math.exp(-logits[row])))
        for found, wanted in zip(deltas[row], encode(anchors[row], targets[row]), strict=True):
            boxes += smooth_l1(found - wanted, sigma)
    for row in negatives:
        total -= math.log(1 - 1 / (1 + math.exp(-logits[row])))
    number = len(positives) + len(negatives)
    return total / number, boxes / number
