"""How every method of proposing ends: rank, drop the small and the repeated, keep the best."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class Proposed(NamedTuple):
    """R boxes of one image, best first.

    Attributes:
        boxes: (R, 4) float32 x1 y1 x2 y2, distinct.
        scores: (R,) float32 falling evenly from 1 to 1 / R: a rank, comparable within an image.
    """

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]


def scored(boxes: npt.NDArray[np.float32]) -> Proposed:
    """Boxes that are in order already, with the scores of their ranks."""
    number = len(boxes)
    return Proposed(boxes, (1 - np.arange(number) / max(number, 1)).astype(np.float32))


def distinct(boxes: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Positions of the first of equal rows (R, 4), ascending."""
    if boxes.size and boxes.dtype.kind in "iu" and 0 <= boxes.min() and boxes.max() < 2**16:
        keys = np.ascontiguousarray(boxes, np.uint16).view(np.uint64)[:, 0]  # ten times faster
        _, first = np.unique(keys, return_index=True)
    else:
        _, first = np.unique(boxes, axis=0, return_index=True)
    return np.sort(first)


def take_best(
    boxes: npt.NDArray[Any],
    priorities: npt.NDArray[Any],
    generator: np.random.Generator,
    max_boxes: int,
    min_size: float,
) -> Proposed:
    """The authors' ranking (`selective_search_boxes.m`).

    Priorities (B,) are multiplied by U(0, 1) and sorted, smallest first; then boxes (B, 4) narrower
    or lower than min_size are dropped, then repeated ones, of which the first stays. Boxes that
    many hierarchies found have many draws and so come early.
    """
    order = np.argsort(priorities * generator.random(len(priorities)), kind="stable")
    ranked = boxes[order]
    sides = ranked[:, 2:] - ranked[:, :2]
    ranked = ranked[(sides >= min_size).all(axis=1)]
    return scored(ranked[distinct(ranked)[:max_boxes]].astype(np.float32))
