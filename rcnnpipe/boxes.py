"""The box convention, and the arithmetic on boxes.

Vocabulary: N and M boxes, float32 ``(N, 4)`` x1 y1 x2 y2 in continuous pixel coordinates of the
original image, 0-based, x2 > x1, width = x2 - x1. The inclusive pixel boxes of the papers' code are
converted where a file is read; their "+1" widths are exactly these widths.
"""

import math
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor

Numbers = np.ndarray[Any, Any]

# Of dw and dh: 16 pixels become no more than 1000 (Detectron), so that exp stays finite.
LOG_LIMIT = math.log(1000 / 16)


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of all pairs: (N, 4) and (M, 4) to (N, M) in [0, 1]."""
    overlaps: Tensor = torchvision.ops.box_iou(first, second)
    return overlaps


def share_inside(boxes: Tensor, others: Tensor) -> Tensor:
    """For each box (N,), the largest share of its area that lies in one of the others (M, 4)."""
    if len(others) == 0:
        return boxes.new_zeros(len(boxes))
    low = torch.maximum(boxes[:, None, :2], others[:, :2])
    high = torch.minimum(boxes[:, None, 2:], others[:, 2:])
    inside = (high - low).clamp(min=0).prod(dim=2)  # (N, M)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).clamp(min=1e-9)
    return inside.amax(dim=1) / areas


def mirror(boxes: Numbers, width: float) -> Numbers:
    """Boxes (N, 4) of an array on an image of this width that is mirrored left to right."""
    x1, y1, x2, y2 = boxes.T
    return np.stack((width - x2, y1, width - x1, y2), axis=1)


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (N, 4) cut at an image of ``size`` (height, width), each at least a pixel wide, high.

    The authors clip inclusive corners to [1, W]: a box that lies wholly outside keeps the pixel at
    the border instead of vanishing.
    """
    return clip_at(boxes, _corners(boxes, size))


def clip_at(boxes: Tensor, corners: Tensor) -> Tensor:
    """:func:`clip` with the image's corners (4,) W H W H."""
    boxes = boxes.clamp(min=0).minimum(corners)
    first = boxes[:, :2].minimum((corners[:2] - 1).clamp(min=0))
    return torch.cat((first, boxes[:, 2:].maximum(first + 1)), dim=1)


def cut(
    boxes: Tensor, size: tuple[int, int], smallest: tuple[float, float] = (0, 0)
) -> tuple[Tensor, Tensor]:
    """Boxes (N, 4) cut at an image of ``size`` (height, width), and which of them (N,) are left.

    Those are left that have an area and sides of at least ``smallest``, across and down. Detectron
    and torchvision drop the others, where the authors keep a pixel (:func:`clip`).
    """
    return cut_at(boxes, _corners(boxes, size), boxes.new_tensor(smallest))


def cut_at(boxes: Tensor, corners: Tensor, smallest: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`cut` with tensors: boxes (..., 4), the image's corners (..., 4) W H W H, and the least
    sides (..., 2) across and down."""
    boxes = boxes.clamp(min=0).minimum(corners)
    sides = boxes[..., 2:] - boxes[..., :2]
    # A side that is not a number fails both comparisons.
    return boxes, ((sides >= smallest) & (sides > 0)).all(dim=-1)


def _corners(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = size
    return boxes.new_tensor((width, height, width, height))


def _centres_and_sizes(boxes: Tensor, pixel: float) -> tuple[Tensor, Tensor]:
    sizes = boxes[:, 2:] - boxes[:, :2] - pixel  # (N, 2)
    # A box of one inclusive pixel has no extent by the authors' x2 - x1; they add a tiny amount.
    sizes = sizes.clamp(min=torch.finfo(sizes.dtype).eps)
    return boxes[:, :2] + 0.5 * sizes, sizes


def encode(boxes: Tensor, targets: Tensor, pixel: float = 0.0) -> Tensor:
    """Deltas (N, 4) tx ty tw th that move ``boxes`` onto ``targets``, both (N, 4).

    Girshick et al. 2014, appendix C: tx = (gx - px) / pw, tw = log(gw / pw), x and y of centres.
    ``decode(boxes, encode(boxes, targets)) == targets`` for the same ``pixel``.

    Args:
        boxes: the regions.
        targets: what they should become, row by row.
        pixel: 1 reproduces the authors' R-CNN code, which measures the x2 - x1 of inclusive
            corners, one less than the width of the box.
    """
    centres, sizes = _centres_and_sizes(boxes, pixel)
    target_centres, target_sizes = _centres_and_sizes(targets, pixel)
    shifts = (target_centres - centres) / sizes
    return torch.cat((shifts, torch.log(target_sizes / sizes)), dim=1)


def decode(boxes: Tensor, deltas: Tensor, pixel: float = 0.0, limit: float | None = None) -> Tensor:
    """Boxes (N, 4) moved by deltas (N, 4); the inverse of :func:`encode` for the same ``pixel``.

    ``limit`` is the largest dw and dh: :data:`LOG_LIMIT` for networks, whose deltas may be of any
    size; None leaves them.
    """
    centres, sizes = _centres_and_sizes(boxes, pixel)
    centres = centres + deltas[:, :2] * sizes
    growth = deltas[:, 2:] if limit is None else deltas[:, 2:].clamp(max=limit)
    sizes = sizes * torch.exp(growth)
    return torch.cat((centres - 0.5 * sizes, centres + 0.5 * sizes + pixel), dim=1)
