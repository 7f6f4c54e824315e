"""Scale and cells of one region, in the order of the authors' MATLAB files and of the paper.

``spm_expected_scale.m``, ``spm_response_boxes.m``; He et al. 2014, section 4.1 and appendix A.
"""

import math
from collections.abc import Sequence

Box = Sequence[float]  # continuous x1 y1 x2 y2, counted from 0


def scale_of(box: Box, min_side: int, scales: Sequence[int], reference: float, rule: str) -> int:
    """The number of the scale a region is taken from."""
    area = (box[2] - box[0]) * (box[3] - box[1])
    target = math.floor(reference * min_side / math.sqrt(area) + 0.5)
    best, least = 0, math.inf
    for number, scale in enumerate(scales):
        if rule == "nearest-area":
            distance = abs(area * (scale / min_side) ** 2 - reference**2)
        else:
            distance = float(abs(scale - target))
        if distance < least:
            best, least = number, distance
    return best


def window_of(box: Box, min_side: int, scale: int) -> list[float]:
    """The region on the scaled image, pixels counted from 1 and inclusive."""
    inclusive = (box[0] + 1, box[1] + 1, box[2], box[3])
    return [(edge - 1) * (scale - 1) / (min_side - 1) + 1 for edge in inclusive]


def cells_of(
    window: Sequence[float], stride: int, centre: float, size: tuple[int, int], rule: str
) -> list[int]:
    """Its cells on a map of (height, width), counted from 0 and inclusive."""
    found = [0, 0, 0, 0]
    for axis, side in enumerate(reversed(size)):
        low, high = window[axis], window[axis + 2]
        if rule == "authors":
            shrink = 6.5 * stride / 16
            first = math.floor((low - centre + shrink) / stride + 0.5) + 1
            last = math.ceil((high - centre - shrink) / stride - 0.5) + 1
        else:
            # The paper's cells and pixels count from 0; these count from 1.
            first = math.floor((low - centre) / stride) + 1 + 1
            last = math.ceil((high - centre) / stride) - 1 + 1
        if first > last:
            first = last = math.trunc((first + last) / 2)
        found[axis] = min(max(first, 1), side) - 1
        found[axis + 2] = min(max(last, 1), side) - 1
    return found
