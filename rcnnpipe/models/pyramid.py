"""Spatial pyramid pooling: the maxima of a map, or of windows of it, over grids of bins.

He et al. 2014, section 2.2 and appendix A, and the authors' ``spm_pool_caffe_mex.cpp``.

Vocabulary: R windows, C channels, H x W cells of a map, n bins a side of a level, D = C times the
bins of all levels. Values stand level by level in the given order, within a level at
``(c * n + y) * n + x``. Maxima start from 0, as the authors': maps come from a rectifier.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d, max_pool2d

from rcnnpipe.errors import SettingError

TRAINING = ("windows", "bins")
_BLOCK_BYTES = 2**25  # of maxima that are gathered at once


@dataclass(frozen=True)
class Pyramid:
    """The levels, and how whole maps are pooled in training.

    Attributes:
        levels: bins a side of each level. The authors' training network puts them together in this
            order; ports of their code take 6, 3, 2, 1.
        training: "windows" of ceil(a / n) cells at every floor(a / n) of a cells (section 2.3), the
            first n of them, so that the last cells of a map may go unseen; or "bins", as at test.
    """

    levels: tuple[int, ...] = (1, 2, 3, 6)  # section 4.1: 50 bins
    training: str = "windows"

    def __post_init__(self) -> None:
        """Levels are different positive numbers."""
        levels = ", ".join(map(str, self.levels))
        if not self.levels or min(self.levels) < 1 or len(set(self.levels)) < len(self.levels):
            raise SettingError(
                f"a pyramid of '{levels}' bins a side: give different numbers above 0"
            )
        if self.training not in TRAINING:
            raise SettingError(f"pyramid training '{self.training}' is none of {TRAINING}")

    @property
    def bins(self) -> int:
        """Bins of all levels."""
        return sum(level * level for level in self.levels)

    def settings(self) -> dict[str, Any]:
        """JSON for the model file."""
        return asdict(self) | {"levels": list(self.levels)}


def build_pyramid(settings: Mapping[str, Any]) -> Pyramid:
    """The inverse of :meth:`Pyramid.settings`."""
    return Pyramid(tuple(settings["levels"]), settings["training"])


class PyramidPooling(nn.Module):
    """Whole maps (R, C, H, W) of any size to vectors (R, D); nothing is learned."""

    def __init__(self, pyramid: Pyramid) -> None:
        """Hold the levels."""
        super().__init__()
        self.pyramid = pyramid

    def forward(self, maps: Tensor) -> Tensor:
        """(R, C, H, W) -> (R, D)."""
        by_windows = self.training and self.pyramid.training == "windows"
        pool = _pool_windows_of_level if by_windows else adaptive_max_pool2d
        return torch.cat(
            [pool(maps, level).flatten(1) for level in self.pyramid.levels], dim=1
        ).clamp(min=0)


def _pool_windows_of_level(maps: Tensor, level: int) -> Tensor:
    """(R, C, H, W) -> (R, C, n, n) by equal windows; by bins where a map is smaller than n."""
    height, width = maps.shape[2:]
    if min(height, width) < level:
        pooled: Tensor = adaptive_max_pool2d(maps, level)
        return pooled
    window = (-(-height // level), -(-width // level))
    # 10 cells and 6 bins: windows of 2 at every cell would be 9.
    return max_pool2d(maps, window, (height // level, width // level))[:, :, :level, :level]


def pool_windows(maps: Tensor, cells: Tensor, levels: Sequence[int]) -> Tensor:
    """Pyramids of many windows of one map at once.

    Bin i of n over w cells covers [floor(i w / n), ceil((i + 1) w / n)): bins overlap, and where a
    window has fewer cells than bins they repeat cells, so none is empty.

    Each maximum is that of four blocks out of tables of the maxima of all blocks of 2^a x 2^b
    cells, so that large windows cost no more than small ones.

    Args:
        maps: (C, H, W) float.
        cells: (R, 4) int64 x1 y1 x2 y2, 0-based and inclusive, within the map, on its device.
        levels: bins a side of each level.

    Returns:
        (R, D) of the maps' dtype.
    """
    channels = len(maps)
    first, last = _bins(cells, levels)  # (R, bins, 2)
    pooled = maps.new_empty((len(cells), first.shape[1], channels))
    flat, first, last = pooled.flatten(0, 1), first.flatten(0, 1), last.flatten(0, 1)
    power = torch.frexp((last - first + 1).float()).exponent.long() - 1  # 2^power <= cells
    for x_power, blocks in _tables(maps, power):
        own = (power[:, 0] == x_power).nonzero().flatten()
        for rows in torch.split(own, max(1, _BLOCK_BYTES // (channels * maps.element_size()))):
            flat[rows] = _maxima(blocks, first[rows], last[rows], power[rows])
    ends = torch.tensor([n * n for n in levels]).cumsum(0).tolist()
    parts = [
        pooled[:, end - n * n : end].transpose(1, 2).flatten(1)  # (R, n * n, C) -> (R, C * n * n)
        for n, end in zip(levels, ends, strict=True)
    ]
    return torch.cat(parts, dim=1)


def _bins(cells: Tensor, levels: Sequence[int]) -> tuple[Tensor, Tensor]:
    """First and last cells of all bins, inclusive: two (R, bins, 2), x then y."""
    low, extent = cells[:, None, :2], cells[:, None, 2:] - cells[:, None, :2] + 1  # (R, 1, 2)
    first, last = [], []
    for level in levels:
        index = torch.arange(level, device=cells.device)
        place = torch.cartesian_prod(index, index).flip(1)[None]  # (1, n * n, 2), rows of bins
        first.append(low + place * extent // level)
        last.append(low - (-(place + 1) * extent // level) - 1)
    return torch.cat(first, dim=1), torch.cat(last, dim=1)


def _tables(maps: Tensor, power: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Powers of two of columns, and for each (B, H, W, C): maxima of 2^b rows of so many columns.

    The block that begins at a cell stands in its place; what would leave the map is not used.
    """
    x_most, y_most = power.amax(0).tolist() if len(power) else (-1, -1)
    wide = maps.permute(1, 2, 0).clamp(min=0).contiguous()  # (H, W, C)
    for x_power in range(x_most + 1):
        blocks = [wide]
        for y_power in range(y_most):
            blocks.append(_joined(blocks[-1], 2**y_power, dim=0))
        yield x_power, torch.stack(blocks)
        wide = _joined(wide, 2**x_power, dim=1)


def _joined(blocks: Tensor, distance: int, dim: int) -> Tensor:
    """Blocks twice as large along one side: the maximum with the block so far on."""
    joined = blocks.clone()
    length = blocks.shape[dim] - distance
    if length > 0:
        ahead = blocks.narrow(dim, distance, length)
        joined.narrow(dim, 0, length).copy_(torch.maximum(blocks.narrow(dim, 0, length), ahead))
    return joined


def _maxima(blocks: Tensor, first: Tensor, last: Tensor, power: Tensor) -> Tensor:
    """Maxima (r, C) over cells first..last (r, 2) of four blocks each, out of (B, H, W, C)."""
    _, height, width, _ = blocks.shape
    rows = blocks.flatten(0, 2)
    end = last + 1 - 2**power  # where the blocks begin that reach to the last cell

    def block(x: Tensor, y: Tensor) -> Tensor:
        return rows[(power[:, 1] * height + y) * width + x]

    upper = torch.maximum(block(first[:, 0], first[:, 1]), block(end[:, 0], first[:, 1]))
    lower = torch.maximum(block(first[:, 0], end[:, 1]), block(end[:, 0], end[:, 1]))
    return torch.maximum(upper, lower)
