"""What a network with a pyramid makes of a window: its scale, its cells, its bins and their maxima.

He et al. 2014, sections 2.2 and 4.1 and appendix A. The numbers come from the functions that
extract features; only the way back, from cells to pixels, is for the eye alone.

Vocabulary: R windows, C channels, H' x W' cells of a map, n bins a side of a level, cells x1 y1 x2
y2 0-based and inclusive, min_side the shorter side of the image in pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rcnnpipe.datasets.records import Record
from rcnnpipe.models.map_view import MapView
from rcnnpipe.models.projection import MapGeometry, choose_scales, project, scaled
from rcnnpipe.models.pyramid import pool_windows

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Corners = tuple[float, float, float, float]


@dataclass(frozen=True)
class Window:
    """What is looked at.

    Attributes:
        box: x1 y1 x2 y2, continuous, on the image as it is.
        words: where it comes from.
    """

    box: Corners
    words: str


@dataclass(frozen=True)
class Mapped:
    """A window on its map and in its pyramid.

    Attributes:
        window: what is looked at.
        scale: the shorter side of the image on the map, in pixels.
        sides: the root of the window's area on each of the view's scales, in pixels.
        channels: C of the map.
        mean: (H', W') over the channels.
        cells: x1 y1 x2 y2 of the map.
        outline: what the cells stand for: x1 y1 x2 y2 in pixels of the image as it is.
        place: the window itself on the map, in cells; cell i reaches from i to i + 1.
        channel: the one with the largest value in the cells.
        values: (h, w) of that channel in the cells, those below 0 as 0.
        maxima: of that channel, (n, n) for each level.
    """

    window: Window
    scale: int
    sides: tuple[float, ...]
    channels: int
    mean: Floats
    cells: tuple[int, int, int, int]
    outline: Corners
    place: Corners
    channel: int
    values: Floats
    maxima: tuple[Floats, ...]


@dataclass(frozen=True)
class Mapper:
    """A network with a pyramid, as far as windows go.

    Attributes:
        map_of: image record, its pixels (H, W, 3) and a scale -> map (C, H', W') on the CPU.
        layer: the name of that map.
        view: which scales, and by which rules.
        geometry: of the map.
        levels: bins a side.
    """

    map_of: Callable[[Record, Pixels, int], Tensor]
    layer: str
    view: MapView
    geometry: MapGeometry
    levels: tuple[int, ...]

    def __call__(self, record: Record, pixels: Pixels, windows: Sequence[Window]) -> list[Mapped]:
        """All windows (R) of one image (H, W, 3), each on the map of its scale."""
        boxes = torch.tensor([window.box for window in windows], dtype=torch.float32)  # (R, 4)
        shorter, view = min(record.size), self.view
        chosen = choose_scales(boxes, shorter, view.scales, view.reference, view.choice).tolist()
        maps = {
            number: self.map_of(record, pixels, view.scales[number]).float()
            for number in sorted(set(chosen))
        }
        return [
            self._mapped(window, box, shorter, view.scales[number], maps[number])
            for window, box, number in zip(windows, boxes[:, None], chosen, strict=True)
        ]

    def _mapped(
        self, window: Window, box: Tensor, shorter: int, scale: int, maps: Tensor
    ) -> Mapped:
        """One window (1, 4) on its map (C, H', W')."""
        _, height, width = maps.shape
        on_scale = scaled(box, shorter, scale)
        cells = project(on_scale, self.geometry, (height, width), self.view.projection)  # (1, 4)
        pooled = pool_windows(maps, cells, self.levels)[0]  # (D,)
        x1, y1, x2, y2 = cells[0].tolist()
        inside = maps[:, y1 : y2 + 1, x1 : x2 + 1].clamp(min=0)
        channel = int(inside.amax((1, 2)).argmax())
        of_levels = torch.split(pooled, [len(maps) * n * n for n in self.levels])
        root = float((box[0, 2:] - box[0, :2]).double().prod().sqrt())
        return Mapped(
            window=window,
            scale=scale,
            sides=tuple(root * other / shorter for other in self.view.scales),
            channels=len(maps),
            mean=maps.mean(0).numpy(),
            cells=(x1, y1, x2, y2),
            outline=box_of((x1, y1, x2 + 1, y2 + 1), self.geometry, shorter, scale),
            place=place_of(window.box, self.geometry, shorter, scale),
            channel=channel,
            values=inside[channel].numpy(),
            maxima=tuple(
                part.reshape(-1, n, n)[channel].numpy()
                for n, part in zip(self.levels, of_levels, strict=True)
            ),
        )


def place_of(box: Corners, geometry: MapGeometry, min_side: int, scale: int) -> Corners:
    """Where a box lies among the cells of a map, not rounded: cell i reaches from i to i + 1.

    A cell reaches half a stride around its centre. That is less than its receptive field, and these
    overlap, but side by side the cells show what rounding does to a window.

    Args:
        box: x1 y1 x2 y2, continuous, on the image as it is.
        geometry: of the map.
        min_side: of the image.
        scale: what that becomes on the map.
    """
    stride, centre = geometry
    factor = _factor(min_side, scale)
    # The middle of 1-based pixel p is at p - 0.5; the authors scale middles, as in ``scaled``.
    x1, y1, x2, y2 = (((edge - 0.5) * factor + 1 - centre) / stride + 0.5 for edge in box)
    return x1, y1, x2, y2


def box_of(place: Corners, geometry: MapGeometry, min_side: int, scale: int) -> Corners:
    """What a place among the cells stands for in pixels: the inverse of :func:`place_of`.

    The border cells of a map may reach out of the image.
    """
    stride, centre = geometry
    factor = _factor(min_side, scale)
    x1, y1, x2, y2 = ((centre + stride * (edge - 0.5) - 1) / factor + 0.5 for edge in place)
    return x1, y1, x2, y2


def _factor(min_side: int, scale: int) -> float:
    return max(scale - 1, 1) / max(min_side - 1, 1)


def bins_along(cells: int, level: int) -> list[tuple[int, int]]:
    """First and last of ``cells`` cells, inclusive, in each of ``level`` bins of one direction.

    Bin i covers [floor(i cells / n), ceil((i + 1) cells / n)): appendix A.
    """
    return [(i * cells // level, -(-(i + 1) * cells // level) - 1) for i in range(level)]
