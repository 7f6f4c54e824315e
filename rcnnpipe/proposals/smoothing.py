"""Gaussian smoothing of colour planes, before edges and derivatives are taken."""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit


def gaussian_taps(sigma: float) -> npt.NDArray[np.float32]:
    """Centre and one side of a normalised Gaussian, 4 sigma long as in the authors' code."""
    taps = np.exp(-0.5 * (np.arange(int(np.ceil(4 * sigma)) + 1) / sigma) ** 2)
    normalised: npt.NDArray[np.float32] = (taps / (2 * taps.sum() - taps[0])).astype(np.float32)
    return normalised


@njit(cache=True, nogil=True)
def _smooth(planes: Any, taps: Any) -> Any:
    channels, height, width = planes.shape
    radius = taps.shape[0] - 1
    smoothed = np.empty((channels, height, width), np.float32)
    row = np.empty(width + 2 * radius, np.float32)
    for c in range(channels):
        for y in range(height):
            line = row[radius : radius + width]
            line[:] = taps[0] * planes[c, y]
            for i in range(1, radius + 1):
                above = planes[c, max(y - i, 0)]
                below = planes[c, min(y + i, height - 1)]
                weight = taps[i]
                for x in range(width):
                    line[x] += weight * (np.float32(above[x]) + np.float32(below[x]))
            row[:radius] = line[0]
            row[radius + width :] = line[width - 1]
            out = smoothed[c, y]
            out[:] = taps[0] * line
            for i in range(1, radius + 1):
                left = row[radius - i : radius - i + width]
                right = row[radius + i : radius + i + width]
                weight = taps[i]
                for x in range(width):
                    out[x] += weight * (left[x] + right[x])
    return smoothed


def smooth(planes: npt.NDArray[np.uint8], sigma: float) -> npt.NDArray[np.float32]:
    """(C, H, W) planes after a Gaussian, the border pixels repeated outwards."""
    smoothed: npt.NDArray[np.float32] = _smooth(planes, gaussian_taps(sigma))
    return smoothed
