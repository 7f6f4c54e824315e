"""The feature pyramid by sums over shifted maps, one output at a time, in float64.

``values`` are the parameters by torchvision's names, ``inner_blocks.I.0.weight`` and so on; a level
is made from scratch for each output, without the others.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def convolve(maps: Tensor, values: Mapping[str, Tensor], name: str) -> Tensor:
    """A k x k convolution (k odd) that keeps the size: (N, A, H, W) to (N, B, H, W)."""
    weight, bias = values[f"{name}.0.weight"].double(), values[f"{name}.0.bias"].double()
    border = weight.shape[2] // 2
    images, _, height, width = maps.shape
    padded = torch.zeros(images, maps.shape[1], height + 2 * border, width + 2 * border).double()
    padded[:, :, border : border + height, border : border + width] = maps
    result = bias.view(1, -1, 1, 1).repeat(images, 1, height, width)
    for dy in range(weight.shape[2]):
        for dx in range(weight.shape[3]):
            shifted = padded[:, :, dy : dy + height, dx : dx + width]
            result += torch.einsum("ba,nahw->nbhw", weight[:, :, dy, dx], shifted)
    return result


def enlarge(maps: Tensor, height: int, width: int) -> Tensor:
    """Cell (y, x) is cell (floor(y h / H), floor(x w / W)) of the h x w cells given."""
    result = torch.zeros(*maps.shape[:2], height, width).double()
    for y in range(height):
        for x in range(width):
            row, column = y * maps.shape[2] // height, x * maps.shape[3] // width
            result[:, :, y, x] = maps[:, :, row, column]
    return result


def merged(
    maps: Sequence[Tensor],
    values: Mapping[str, Tensor],
    level: int,
    lateral: bool,
    top_down: bool,
) -> Tensor:
    """What goes into the 3 x 3 convolution of one level."""
    last = level == len(maps) - 1
    result = torch.zeros(1, dtype=torch.float64)
    if lateral or last:
        result = result + convolve(maps[level].double(), values, f"inner_blocks.{level}")
    if top_down and not last:
        above = merged(maps, values, level + 1, lateral, top_down)
        result = result + enlarge(above, *maps[level].shape[2:])
    return result


def pyramid(
    maps: Sequence[Tensor],
    values: Mapping[str, Tensor],
    lateral: bool = True,
    top_down: bool = True,
    finest_only: bool = False,
    extra: bool = True,
) -> list[Tensor]:
    """All maps of the pyramid, finest first."""
    result = [
        convolve(merged(maps, values, level, lateral, top_down), values, f"layer_blocks.{level}")
        for level in range(1 if finest_only else len(maps))
    ]
    if extra and not finest_only:
        result.append(result[-1][:, :, ::2, ::2])
    return result
