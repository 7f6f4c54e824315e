"""RoI pooling and RoIAlign of one region at a time, by loops over bins, cells and points.

After Caffe's ``roi_pooling_layer.cpp``, whose bins are computed in float32, and Detectron's
``roi_align_op.cc``.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def round_half_away(value: float) -> int:
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


def cells_of(roi: Sequence[float], stride: int) -> tuple[int, ...]:
    """The corners x1 y1 x2 y2 in cells, inclusive."""
    scale = np.float32(1 / stride)
    return tuple(round_half_away(float(np.float32(corner) * scale)) for corner in roi)


def bins_of(first: int, last: int, bins: int, limit: int) -> list[range]:
    """The cells of each bin along one side of a map of ``limit`` cells."""
    length = max(last - first + 1, 1)
    size = np.float32(length) / np.float32(bins)
    spans = []
    for number in range(bins):
        start = math.floor(np.float32(number) * size) + first
        end = math.ceil(np.float32(number + 1) * size) + first
        spans.append(range(min(max(start, 0), limit), min(max(end, 0), limit)))
    return spans


def pool(single: Array, roi: Sequence[float], stride: int, bins: int) -> tuple[Array, Array]:
    """Maxima (C, P, P) of one map (C, H, W), and where they are: y * W + x, -1 in empty bins."""
    channels, height, width = single.shape
    x1, y1, x2, y2 = cells_of(roi, stride)
    columns, rows = bins_of(x1, x2, bins, width), bins_of(y1, y2, bins, height)
    values = np.zeros((channels, bins, bins))
    places = np.full((channels, bins, bins), -1)
    for c in range(channels):
        for i in range(bins):
            for j in range(bins):
                for y in rows[i]:
                    for x in columns[j]:
                        if places[c, i, j] < 0 or single[c, y, x] > values[c, i, j]:
                            values[c, i, j] = single[c, y, x]
                            places[c, i, j] = y * width + x
    return values, places


def pool_gradient(shape: tuple[int, ...], places: Array, upward: Array) -> Array:
    """The gradient (C, H, W) that one region's (C, P, P) sends to the cells of its maxima."""
    gradient = np.zeros((shape[0], shape[1] * shape[2]))
    for c in range(shape[0]):
        for place, value in zip(places[c].ravel(), upward[c].ravel(), strict=True):
            if place >= 0:
                gradient[c, place] += value
    return gradient.reshape(shape)


def _point(single: Array, y: float, x: float) -> Array:
    """All channels between the cells, constant beyond the border, 0 a cell outside of it."""
    _, height, width = single.shape
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(len(single))
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = math.floor(y), math.floor(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, across = y - top, x - left
    result: Array = (
        single[:, top, left] * (1 - down) * (1 - across)
        + single[:, top, right] * (1 - down) * across
        + single[:, bottom, left] * down * (1 - across)
        + single[:, bottom, right] * down * across
    )
    return result


def align(
    single: Array, roi: Sequence[float], stride: int, bins: int, sampling: int, aligned: bool
) -> Array:
    """Means (C, P, P) of points of one map (C, H, W)."""
    shift = 0.5 if aligned else 0.0
    x1, y1, x2, y2 = (corner / stride - shift for corner in roi)
    width, height = x2 - x1, y2 - y1
    if not aligned:
        width, height = max(width, 1.0), max(height, 1.0)
    across = sampling or math.ceil(width / bins)
    down = sampling or math.ceil(height / bins)
    values = np.zeros((len(single), bins, bins))
    for i in range(bins):
        for j in range(bins):
            for p in range(down):
                for q in range(across):
                    y = y1 + (i + (p + 0.5) / down) * height / bins
                    x = x1 + (j + (q + 0.5) / across) * width / bins
                    values[:, i, j] += _point(single, y, x) / (down * across)
    return values
