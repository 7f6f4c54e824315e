"""Many rows per image in one array: flat columns and ``offsets (N + 1,)``, in memory and on disk.

Row ``offsets[i]`` up to, not including, ``offsets[i + 1]`` of every column belongs to image ``i``.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Offsets = npt.NDArray[np.int64]


def offsets_of(counts: Sequence[int] | npt.NDArray[np.integer]) -> Offsets:
    """Offsets (N + 1,) of images that hold ``counts`` (N,) rows each."""
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def rows_of(offsets: Offsets, image: int) -> slice:
    """The rows of one image, as a slice into any column."""
    return slice(int(offsets[image]), int(offsets[image + 1]))


def image_of_rows(offsets: Offsets) -> npt.NDArray[np.int64]:
    """For each row (R,), the index of the image it belongs to."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
