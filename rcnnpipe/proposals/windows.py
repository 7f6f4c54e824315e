"""Sliding windows: the proposals everybody used before, and the baseline to compare with.

S levels of scale, A aspect ratios, B windows.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rcnnpipe.proposals.ranking import Proposed, take_best


def windows_of(
    size: tuple[int, int],
    *,
    min_size: int = 20,
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    levels_per_octave: int = 2,
    overlap: float = 0.75,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """All windows (B, 4) x1 y1 x2 y2 of an image, and the level (B,) of each: 1 for the largest.

    Args:
        size: (height, width) of the image.
        min_size: no window is narrower or lower, unless the image is.
        aspect_ratios: width over height; the area is the same for all of a level.
        levels_per_octave: levels from one side to half of it. The first level's area is the
            image's; a window that does not fit is cut to the image.
        overlap: of a window with the next one, as a share of its side.
    """
    height, width = size
    side = float(np.sqrt(height * width))
    boxes, levels = [np.array([[0, 0, width, height]])], [np.array([1])]
    level = 1
    while side >= max(min_size, 1):
        for ratio in aspect_ratios:
            window_width = min(width, round(side * np.sqrt(ratio)))
            window_height = min(height, round(side / np.sqrt(ratio)))
            if min(window_width, window_height) < max(min_size, 1):
                continue
            x, y = np.meshgrid(
                _positions(width, window_width, overlap), _positions(height, window_height, overlap)
            )
            corners = np.stack((x.ravel(), y.ravel()), axis=1)  # (n, 2)
            boxes.append(np.hstack((corners, corners + np.array((window_width, window_height)))))
            levels.append(np.full(len(corners), level))
        side /= 2 ** (1 / levels_per_octave)
        level += 1
    return np.concatenate(boxes), np.concatenate(levels)


def _positions(length: int, side: int, overlap: float) -> npt.NDArray[np.int64]:
    """Starts of windows spread evenly over a length, both ends touched."""
    steps = int(np.ceil((length - side) / max(1.0, side * (1 - overlap))))
    return np.rint(np.linspace(0, length - side, steps + 1)).astype(np.int64)


def propose(
    image: npt.NDArray[np.uint8],
    generator: np.random.Generator,
    *,
    max_boxes: int = 2000,
    min_size: int = 20,
    overlap: float = 0.75,
) -> Proposed:
    """Windows (R, 4) of an image (H, W, 3), drawn by the ranking of selective search.

    A window's priority is its level, so that large windows, of which there are few, come early.
    """
    height, width = image.shape[:2]
    boxes, levels = windows_of((height, width), min_size=min_size, overlap=overlap)
    return take_best(boxes, levels, generator, max_boxes, min_size)
