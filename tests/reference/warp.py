"""Dilate-and-warp one region at a time, in the order of the authors' ``rcnn_im_crop.m``."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from tests.reference.region_pooling import round_half_away


def warp_one(
    image: Tensor,
    box: tuple[float, float, float, float],
    mean: Tensor,
    *,
    size: int = 227,
    padding: int = 16,
    mode: str = "warp",
    context: bool = True,
    flip: bool = False,
) -> Tensor:
    """(3, S, S) float64 of ``image`` (3, H, W); box 1-based inclusive; mean (3, S, S)."""
    height, width = image.shape[1:]
    x1, y1, x2, y2 = box
    half_width, half_height = (x2 - x1 + 1) / 2, (y2 - y1 + 1) / 2
    centre_x, centre_y = x1 + half_width, y1 + half_height
    scale = size / (size - 2 * padding)
    if mode == "square":
        frame_x = frame_y = max(half_width, half_height)
    else:
        frame_x, frame_y = half_width, half_height
    if padding == 0 and mode == "warp":
        fx1, fy1, fx2, fy2 = (round_half_away(edge) for edge in box)
    else:
        fx1 = round_half_away(centre_x - frame_x * scale)
        fy1 = round_half_away(centre_y - frame_y * scale)
        fx2 = round_half_away(centre_x + frame_x * scale)
        fy2 = round_half_away(centre_y + frame_y * scale)
    sx1, sy1, sx2, sy2 = fx1, fy1, fx2, fy2
    if mode == "square" and not context:
        border_x, border_y = frame_x * (scale - 1), frame_y * (scale - 1)
        sx1 = round_half_away(centre_x - (half_width + border_x))
        sy1 = round_half_away(centre_y - (half_height + border_y))
        sx2 = round_half_away(centre_x + (half_width + border_x))
        sy2 = round_half_away(centre_y + (half_height + border_y))
    factor_x, factor_y = size / (fx2 - fx1 + 1), size / (fy2 - fy1 + 1)
    sx1, sy1 = max(1, sx1), max(1, sy1)
    sx2, sy2 = min(width, sx2), min(height, sy2)
    canvas = torch.zeros(3, size, size, dtype=torch.float64)
    if sx2 < sx1 or sy2 < sy1:
        return canvas
    pad_x = round_half_away(((fx2 - sx2) if flip else (sx1 - fx1)) * factor_x)
    pad_y = round_half_away((sy1 - fy1) * factor_y)
    new_width = min(round_half_away((sx2 - sx1 + 1) * factor_x), size - pad_x)
    new_height = min(round_half_away((sy2 - sy1 + 1) * factor_y), size - pad_y)
    if new_width <= 0 or new_height <= 0:
        return canvas
    window = image[:, sy1 - 1 : sy2, sx1 - 1 : sx2].double()[None]
    resized = interpolate(window, size=(new_height, new_width), mode="bilinear")[0]
    if flip:
        resized = resized.flip(2)
    place = (slice(None), slice(pad_y, pad_y + new_height), slice(pad_x, pad_x + new_width))
    canvas[place] = resized - mean[place]
    return canvas
