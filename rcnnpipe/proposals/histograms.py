"""What a segment looks like: counts of its colours and of its texture.

C planes (1 or 3), H height, W width, S segments. Each plane gives 25 colour bins and 8 x 10 texture
bins (Uijlings et al. 2013, section 3.2): in each of eight directions, 45 degrees apart, the
derivative of a Gaussian of sigma 0.8 where it rises, in 10 bins.

Columns: plane by plane 25 colour bins, then plane by plane, direction by direction 10 texture bins.
Every group of 25 or 10 columns sums to the segment's pixels.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

COLOUR_BINS = 25
DIRECTIONS = 8
TEXTURE_BINS = 10
TEXTURE_COLUMNS = DIRECTIONS * TEXTURE_BINS
# The authors' code spreads nine bins over derivatives of 0..0.43 (of an image in 0..1): about what
# a full step from black to white gives under sigma 0.8.
_BINS_PER_LEVEL = (TEXTURE_BINS - 1) / (0.43 * 255)


@njit(cache=True, nogil=True)
def _row_codes(rows: Any, scale: Any, codes: Any) -> None:
    """Fills codes (4, W) from three smoothed rows (3, W + 2): bins along 0, 45, 90, 135 degrees.

    Plus 10 where the plane falls that way, that is where it rises the opposite way.
    """
    width = codes.shape[1]
    left, right = rows[1, :width], rows[1, 2:]
    above, below = rows[0, 1 : width + 1], rows[2, 1 : width + 1]
    half, diagonal = np.float32(0.5), np.float32(np.sqrt(0.125))
    top = np.float32(TEXTURE_BINS - 1)
    for d in range(4):
        out = codes[d]
        along_x = (half, diagonal, np.float32(0), -diagonal)[d]
        along_y = (np.float32(0), diagonal, half, diagonal)[d]
        for x in range(width):
            slope = (along_x * (right[x] - left[x]) + along_y * (below[x] - above[x])) * scale
            level = np.int32(min(abs(slope) + half, top))
            out[x] = level + (TEXTURE_BINS if slope < 0 and level > 0 else 0)


@njit(cache=True, nogil=True)
def _code(planes: Any, smoothed: Any, scale: Any) -> Any:
    channels, height, width = planes.shape
    codes = np.empty((height, channels, 5, width), np.uint8)
    rows = np.empty((3, width + 2), np.float32)
    for y in range(height):
        for c in range(channels):
            for i in range(3):
                row = smoothed[c, min(max(y + i - 1, 0), height - 1)]
                rows[i, 1 : width + 1] = row
                rows[i, 0], rows[i, width + 1] = row[0], row[width - 1]
            _row_codes(rows, scale, codes[y, c, 1:])
            colours, plane = codes[y, c, 0], planes[c, y]
            for x in range(width):
                colours[x] = np.int32(plane[x]) * COLOUR_BINS >> 8
    return codes


@njit(cache=True, nogil=True)
def _count(codes: Any, labels: Any, segments: int) -> Any:
    height, channels, _, width = codes.shape
    columns = (COLOUR_BINS + TEXTURE_COLUMNS) * channels
    counts = np.zeros(segments * columns, np.int32)
    pair = np.uint32(2 * TEXTURE_BINS)
    for y in range(height):
        here = labels[y]
        for c in range(channels):
            bins, first, second, third, fourth = codes[y, c]
            colour = np.uint32(COLOUR_BINS * c)
            texture = np.uint32(COLOUR_BINS * channels + TEXTURE_COLUMNS * c)
            for x in range(width):
                row = np.uint32(here[x] * columns)
                counts[row + colour + bins[x]] += 1
                row += texture
                counts[row + first[x]] += 1
                counts[row + pair + second[x]] += 1
                counts[row + 2 * pair + third[x]] += 1
                counts[row + 3 * pair + fourth[x]] += 1
    return counts.reshape(segments, columns)


@njit(cache=True, nogil=True)
def _complete(counts: Any, channels: int) -> None:
    """Where a plane rises in one direction, bin 0 counts in the opposite one."""
    for s in range(counts.shape[0]):
        for pair in range(4 * channels):
            start = COLOUR_BINS * channels + 2 * TEXTURE_BINS * pair
            rises = counts[s, start : start + TEXTURE_BINS]
            falls = counts[s, start + TEXTURE_BINS : start + 2 * TEXTURE_BINS]
            flat = rises[0]
            rises[0] += falls[1:].sum()
            falls[0] = flat + rises[1:].sum()


def code(planes: npt.NDArray[np.uint8], smoothed: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """(H, C, 5, W) bins of every pixel: its colour, then its derivative along four lines.

    The derivative of a Gaussian is taken as the central difference of the planes smoothed for the
    segmentation, which has the same sigma; each plane has its own (the authors' code repeats the
    first plane's). 10 is added to the bin of a derivative that is negative.
    """
    codes: npt.NDArray[np.uint8] = _code(planes, smoothed, np.float32(_BINS_PER_LEVEL))
    return codes


def count(
    codes: npt.NDArray[np.uint8], labels: npt.NDArray[np.int32], segments: int
) -> npt.NDArray[np.int32]:
    """(S, 105 C) counts of each segment's colours and rising derivatives."""
    counts: npt.NDArray[np.int32] = _count(codes, labels, segments)
    _complete(counts, codes.shape[1])
    return counts
