"""Regions that a detector learns from, one at a time: IoU, what each is, deltas, their statistics.

Girshick 2015, section 2.3, and the authors' ``roidb.py`` and ``minibatch.py``. Boxes are tuples x1
y1 x2 y2; labels are 1..K, 0 the background, -1 neither.
"""

import math
from collections.abc import Sequence

Box = Sequence[float]
Objects = Sequence[tuple[Box, int]]  # boxes with labels 1..K, -1 for those to ignore


def area(box: Box) -> float:
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def shared(one: Box, other: Box) -> float:
    corners = [max(a, b) for a, b in zip(one[:2], other[:2], strict=True)]
    corners += [min(a, b) for a, b in zip(one[2:], other[2:], strict=True)]
    return area(corners)


def iou(one: Box, other: Box) -> float:
    both = shared(one, other)
    return float(both / (area(one) + area(other) - both))  # float32 compares as the value it is


def encode(box: Box, target: Box) -> list[float]:
    """The sheet, section 5: tx = (gx - px) / pw with centres x1 + .5 w, tw = log(gw / pw)."""
    width, height = box[2] - box[0], box[3] - box[1]
    wide, high = target[2] - target[0], target[3] - target[1]
    x, y = box[0] + 0.5 * width, box[1] + 0.5 * height
    target_x, target_y = target[0] + 0.5 * wide, target[1] + 0.5 * high
    moves = [(target_x - x) / width, (target_y - y) / height]
    return [*moves, math.log(wide / width), math.log(high / height)]


def what_it_is(
    box: Box, objects: Objects, foreground: float, background: float, least: float
) -> tuple[int, Box | None]:
    """The label of a region, and the object that it stands for.

    Args:
        box: the region.
        objects: of its image.
        foreground: from this IoU on it is an object.
        background: below this IoU it is background ...
        least: ... if it is at least this much, and not half of it lies in one to ignore, where a
            region needs an IoU of a half to be an object.
    """
    best, overlap, label = None, 0.0, -1
    for other, own in objects:
        if own > 0 and iou(box, other) > overlap:  # of equals the first
            best, overlap, label = other, iou(box, other), own
    inside = [shared(box, other) / area(box) for other, own in objects if own < 0]
    ignored = max(inside, default=0) > 0.5
    if ignored and overlap < 0.5:  # what covers an object better than half is that object
        return -1, None
    if best is not None and overlap >= foreground:
        return label, best
    if least <= overlap < background and not ignored:
        return 0, None
    return -1, None


def statistics(
    images: Sequence[tuple[Sequence[Box], Objects]], foreground: float, classes: int
) -> tuple[list[list[float]], list[list[float]]]:
    """Mean and deviation of the deltas of each of the labels 0..K, over all images."""
    found: list[list[list[float]]] = [[] for _ in range(classes)]
    for boxes, objects in images:
        for box, label in objects:
            if label > 0:
                found[label].append(encode(box, box))
        for box in boxes:
            label, target = what_it_is(box, objects, foreground, 0, 0)
            if label > 0 and target is not None:
                found[label].append(encode(box, target))
    means, deviations = [], []
    for own in found:
        columns = list(zip(*own, strict=True)) if own else [(0.0,)] * 4
        mean = [sum(column) / len(column) for column in columns]
        spread = [
            math.sqrt(sum((value - middle) ** 2 for value in column) / len(column))
            for column, middle in zip(columns, mean, strict=True)
        ]
        means.append(mean)
        deviations.append([value if value > 1e-6 else 1.0 for value in spread])
    return means, deviations


def multi_task_loss(
    logits: Sequence[Sequence[float]],
    deltas: Sequence[Sequence[float]],
    labels: Sequence[int],
    targets: Sequence[Sequence[float]],
    mean: Sequence[Sequence[float]],
    deviation: Sequence[Sequence[float]],
    beta: float = 1.0,
) -> tuple[float, float]:
    """The sheet, section 7: of classification and of regression, both over the number of regions.

    Args:
        logits: K + 1 for each region.
        deltas: 4 (K + 1) for each, of which columns 4 c to 4 c + 3 belong to class c.
        labels: of each.
        targets: deltas that move each onto its object, not normalised.
        mean, deviation: 4 of each label.
        beta: where a square becomes a line.
    """
    classes = boxes = 0.0
    for row, label in enumerate(labels):
        total = sum(math.exp(value - max(logits[row])) for value in logits[row])
        classes -= logits[row][label] - max(logits[row]) - math.log(total)
        for column in range(4) if label > 0 else ():
            wanted = (targets[row][column] - mean[label][column]) / deviation[label][column]
            size = abs(deltas[row][4 * label + column] - wanted)
            boxes += 0.5 * size**2 / beta if size < beta else size - 0.5 * beta
    return classes / len(labels), boxes / len(labels)
