"""The boxes that a Region Proposal Network starts from: the same few at every cell of every map.

Ren et al. 2015, section 3.1.1; Lin et al. 2017, section 4.1.

Vocabulary: A anchors a cell, H x W cells of a map. Boxes are continuous x1 y1 x2 y2 in pixels of
the resized image: the authors' inclusive -84, -40, 99, 55 is -84, -40, 100, 56 here. A ratio is
height over width. The anchors of a cell stand ratio by ratio, within a ratio size by size; those
of a map row by row, cell by cell.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from rcnnpipe.errors import SettingError

PLACEMENTS = ("authors", "torchvision")


@dataclass(frozen=True)
class Anchors:
    """Sides and shapes, and how they are rounded and placed.

    Attributes:
        sizes: for each map, the sides of squares whose areas its anchors have, in pixels:
            ((128, 256, 512),) for the one map of Faster R-CNN, ((32,), (64,), (128,), (256,),
            (512,)) for the five of a feature pyramid. One head serves all maps, so that each has
            the same number.
        ratios: height over width.
        placement: "authors" for py-faster-rcnn's and Detectron's boxes: a square of the stride's
            side is reshaped, rounded and enlarged about the middle of the cell, so that areas are
            coarse where strides are small (48 x 24 for 32 at stride 4); "torchvision" for boxes of
            the exact area about the cell's upper left corner, rounded at last, which torchvision's
            weights need.
        spread: cells of every map share the padded image evenly, as torchvision has it: their
            stride is its side over their number, rounded down. It differs from the map's own where
            a map of an odd side was halved: 61 pixels and not 64 for the 13 cells of 800.
    """

    sizes: tuple[tuple[float, ...], ...]
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    placement: str = "authors"
    spread: bool = False

    def __post_init__(self) -> None:
        """There are as many anchors at every map, and none without area."""
        numbers = [*self.ratios, *(size for level in self.sizes for size in level)]
        if not all(0 < number < math.inf for number in numbers):
            raise SettingError(
                f"anchors of sides {self.sizes} and ratios {self.ratios}: not all > 0"
            )
        if not self.ratios or {len(level) for level in self.sizes} in (set(), {0}):
            raise SettingError("anchors need at least one map, one side and one ratio")
        if len({len(level) for level in self.sizes}) > 1:
            raise SettingError(
                f"anchors of sides {self.sizes}: one head serves all maps, give each as many sides"
            )
        if self.placement not in PLACEMENTS:
            raise SettingError(f"'{self.placement}' is none of {', '.join(PLACEMENTS)}")
        if self.spread and self.placement == "authors":
            raise SettingError("anchors of the authors' placement have the strides of their maps")

    @property
    def per_cell(self) -> int:
        """A."""
        return len(self.sizes[0]) * len(self.ratios)

    def settings(self) -> dict[str, Any]:
        """JSON for the model file."""
        return asdict(self) | {
            "sizes": [list(level) for level in self.sizes],
            "ratios": list(self.ratios),
        }

    def base(self, level: int, stride: float) -> Tensor:
        """The anchors (A, 4) float32 of the first cell of a map, whose corner is (0, 0).

        Args:
            level: number of the map.
            stride: pixels from one cell to the next; without effect on torchvision's anchors.

        Raises:
            SettingError: rounding leaves an anchor without area.
        """
        sizes = self.sizes[level]
        if self.placement == "authors":
            boxes = _in_the_middle(sizes, self.ratios, stride)
        else:
            boxes = _about_the_corner(sizes, self.ratios)
        if not (boxes[:, 2:] > boxes[:, :2]).all():
            raise SettingError(
                f"anchors of sides {sizes} and ratios {self.ratios} at a stride of {stride:g}: "
                "rounding leaves some without area; give larger sides or ratios closer to 1"
            )
        return boxes

    def boxes(
        self,
        map_sizes: Sequence[tuple[int, int]],
        strides: Sequence[tuple[float, float]],
        device: torch.device | str = "cpu",
    ) -> list[Tensor]:
        """All anchors (H * W * A, 4) float32 of each map, in the order of the maps.

        They may reach over the image's border, or lie outside where maps are padded.

        Args:
            map_sizes: (height, width) of each map, in cells.
            strides: (down, across) from one cell to the next, in pixels of the resized image.
            device: where they are made.

        Raises:
            SettingError: the strides of a map differ and the placement is the authors', whose
                squares have the stride's side.
        """
        return [
            _at_every_cell(self.base(level, self._stride(*stride)), size, stride, device)
            for level, size, stride in zip(range(len(self.sizes)), map_sizes, strides, strict=True)
        ]

    def _stride(self, down: float, across: float) -> float:
        if self.placement == "authors" and down != across:
            raise SettingError(
                f"a map with strides of {down:g} down and {across:g} across has no anchors of the "
                "authors' placement: take 'torchvision'"
            )
        return across


def build_anchors(settings: Mapping[str, Any]) -> Anchors:
    """The inverse of :meth:`Anchors.settings`."""
    sizes = tuple(tuple(level) for level in settings["sizes"])
    return Anchors(
        sizes, tuple(settings["ratios"]), settings["placement"], settings.get("spread", False)
    )


def _in_the_middle(sizes: Sequence[float], ratios: Sequence[float], stride: float) -> Tensor:
    """py-faster-rcnn's ``generate_anchors.py``, with scales of size / stride as in Detectron."""
    boxes = []
    for ratio in ratios:
        # Halves go to the even number, here as in numpy: 22.5 to 22 at stride 32.
        width = round(math.sqrt(stride * stride / ratio))
        height = round(width * ratio)
        for size in sizes:
            x, y = (side * size / stride / 2 for side in (width, height))
            # Inclusive corners (s - 1) / 2 -+ (w - 1) / 2: 1 more on the right is s / 2 + w / 2.
            boxes.append((stride / 2 - x, stride / 2 - y, stride / 2 + x, stride / 2 + y))
    return torch.tensor(boxes, dtype=torch.float32)


def _about_the_corner(sizes: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """torchvision's ``anchor_utils.py``, in float32 as there."""
    heights = torch.tensor(ratios, dtype=torch.float32).sqrt()
    sides = torch.tensor(sizes, dtype=torch.float32)
    x = ((1 / heights)[:, None] * sides).flatten() / 2  # (A,)
    y = (heights[:, None] * sides).flatten() / 2
    return torch.stack((-x, -y, x, y), dim=1).round()


def _at_every_cell(
    base: Tensor,
    size: tuple[int, int],
    stride: tuple[float, float],
    device: torch.device | str,
) -> Tensor:
    """(A, 4) to (H * W * A, 4)."""
    down, across = (
        torch.arange(cells, dtype=torch.float32, device=device) * step
        for cells, step in zip(size, stride, strict=True)
    )
    y, x = torch.meshgrid(down, across, indexing="ij")
    shifts = torch.stack((x, y, x, y), dim=2).view(-1, 1, 4)  # (H * W, 1, 4)
    return (shifts + base.to(device)).view(-1, 4)
