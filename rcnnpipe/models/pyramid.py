"""Spatial pyramid pooling: the maxima of a map, or of windows of it, over grids of bins.

He et al. 2014, section 2.2 and appendix A, and the authors' ``spm_pool_caffe_mex.cpp``.

Vocabulary: R windows, C channels, H x W cells of a map, n bins a side of a level, D = C times the
bins of all levels. Values stand level by level in the given order, within a level at
``(c * n + y) * n + x``. Maxima start from 0, as the authors': maps come from a rectifier.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d, max_pool2d

from rcnnpipe.errors import SettingError

TRAINING = ("windows", "bins")
# Of blocks gathered at once: what stays in a processor's cache, and what keeps a GPU busy.
_CACHED_BYTES, _GPU_BYTES = 2**22, 2**26


@dataclass(frozen=True)
class Pyramid:
    """The levels, and how whole maps are pooled in training.

    Attributes:
        levels: bins a side of each level. The authors' training network puts them together in this
            order; ports of their code take 6, 3, 2, 1.
        training: "windows" of ceil(a / n) cells at every floor(a / n) of a cells (section 2.3), the
            first n of them, so that the last cells of a map may go unseen; or "bins", as at test.
        scale: factor of all maxima. On convolutions that were trained without the pyramid it brings
            them to a mean square of 1, for which the new layers behind it are initialised.
    """

    levels: tuple[int, ...] = (1, 2, 3, 6)  # section 4.1: 50 bins
    training: str = "windows"
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Levels are different positive numbers."""
        levels = ", ".join(map(str, self.levels))
        if not self.levels or min(self.levels) < 1 or len(set(self.levels)) < len(self.levels):
            raise SettingError(
                f"a pyramid of '{levels}' bins a side: give different numbers above 0"
            )
        if self.training not in TRAINING:
            raise SettingError(f"pyramid training '{self.training}' is none of {TRAINING}")
        if not 0 < self.scale < float("inf"):
            raise SettingError(f"a pyramid's scale of {self.scale} is no number above 0")

    @property
    def bins(self) -> int:
        """Bins of all levels."""
        return sum(level * level for level in self.levels)

    def settings(self) -> dict[str, Any]:
        """JSON for the model file."""
        return asdict(self) | {"levels": list(self.levels)}


def build_pyramid(settings: Mapping[str, Any]) -> Pyramid:
    """The inverse of :meth:`Pyramid.settings`."""
    return Pyramid(tuple(settings["levels"]), settings["training"], settings.get("scale", 1.0))


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
        pooled = torch.cat(
            [pool(maps, level).flatten(1) for level in self.pyramid.levels], dim=1
        ).clamp(min=0)
        return pooled if self.pyramid.scale == 1 else pooled * self.pyramid.scale


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

    Each maximum is that of four blocks out of a table of the maxima of all blocks of 2^a x 2^b
    cells, so that large windows cost no more than small ones.

    Args:
        maps: (C, H, W) float.
        cells: (R, 4) int64 x1 y1 x2 y2, 0-based and inclusive, within the map, on its device.
        levels: bins a side of each level, all different.

    Returns:
        (R, D) of the maps' dtype.
    """
    lengths = [len(maps) * n * n for n in levels]
    pooled = maps.new_empty((len(cells), sum(lengths)))
    if len(cells) == 0:
        return pooled
    parts = {
        n: part.view(-1, len(maps), n * n)  # (R, C, n * n)
        for n, part in zip(levels, torch.split(pooled, lengths, dim=1), strict=True)
    }
    single = maps.permute(1, 2, 0).clamp(min=0).contiguous()  # (H, W, C)
    for level in levels:
        if any(other > level and other % level == 0 for other in levels):
            continue  # i w / n = k i w / (k n): k x k bins of the other are one of this
        for rows, maxima in _maxima(single, cells, level):
            for coarse in (n for n in levels if level % n == 0):
                bins = _joined(maxima, level // coarse)
                parts[coarse][rows] = bins.flatten(1, 2).transpose(1, 2)
    return pooled


def _maxima(single: Tensor, cells: Tensor, level: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Some rows (r,) of ``cells`` at a time, and the maxima (r, n, n, C) of their bins."""
    index = torch.arange(level, device=cells.device)
    low, extent = cells[:, :2, None], cells[:, 2:, None] - cells[:, :2, None] + 1  # (R, 2, 1)
    first, end = low + index * extent // level, low - (-(index + 1) * extent // level)  # (R, 2, n)
    # Bins of one window differ by no more than a cell, so that the largest power of two that fits
    # into the least of them covers each of them in two steps.
    power = torch.frexp((end - first).amin(2).float()).exponent.long() - 1  # (R, 2)
    places = torch.stack((first, end - 2 ** power[:, :, None]), dim=3).flatten(2)  # (R, 2, 2 n)

    wide, high = power.amax(0).tolist()
    kind = power[:, 0] * (high + 1) + power[:, 1]
    counts = kind.bincount(minlength=(wide + 1) * (high + 1)).tolist()
    window_bytes = places.shape[2] ** 2 * single.shape[2] * single.element_size()
    together = max(1, (_GPU_BYTES if single.is_cuda else _CACHED_BYTES) // window_bytes)
    kinds = torch.split(kind.argsort(), counts)
    for table, own in zip(_tables(single, wide, high), kinds, strict=True):
        for rows in torch.split(own, together) if len(own) else ():
            x, y = places[rows].unbind(1)
            cell = y[:, :, None] * table.shape[1] + x[:, None, :]  # (r, 2 n, 2 n)
            blocks = table.flatten(0, 1).index_select(0, cell.flatten())
            yield rows, _joined(blocks.view(*cell.shape, -1), 2)


def _tables(single: Tensor, wide: int, high: int) -> Iterator[Tensor]:
    """Maxima of blocks of 2^a columns x 2^b rows at the cells where they begin; b runs faster.

    Each is (H - 2^b + 1, W - 2^a + 1, C), for a up to ``wide`` and b up to ``high``.
    """
    columns = single
    for a in range(wide + 1):
        columns = _doubled(columns, 2 ** (a - 1), dim=1) if a else columns
        blocks = columns
        for b in range(high + 1):
            blocks = _doubled(blocks, 2 ** (b - 1), dim=0) if b else blocks
            yield blocks


def _doubled(blocks: Tensor, side: int, dim: int) -> Tensor:
    """Blocks of ``side`` cells along one dimension to blocks of twice that."""
    length = blocks.shape[dim] - side
    return torch.maximum(blocks.narrow(dim, 0, length), blocks.narrow(dim, side, length))


def _joined(bins: Tensor, side: int) -> Tensor:
    """(r, n, n, C) to (r, n / k, n / k, C): the maximum of every k x k bins."""
    # One amax over both sides takes 20 times as long on a processor.
    r, n, _, channels = bins.shape
    bins = reduce(torch.maximum, bins.view(r, n, -1, side, channels).unbind(3))
    return reduce(torch.maximum, bins.view(r, -1, side, n // side, channels).unbind(2))
