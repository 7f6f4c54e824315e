"""RoI pooling and RoIAlign: a grid of values for each region, out of maps of whole images.

Girshick 2015, section 2.1, and Caffe's ``roi_pooling_layer.cpp``; He et al. 2017, section 3; the
choice of the map by a region's size: Lin et al. 2017, section 4.2.

Vocabulary: N images, R regions, C channels, H x W cells of a map, P x P bins of a region. RoIs are
regions in pixels of the images as the network sees them, after resizing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchvision.ops import roi_align, roi_pool

from rcnnpipe.errors import SettingError

KINDS = ("pool", "align")


@dataclass(frozen=True)
class RegionPooling:
    """How regions are pooled, and from which map.

    Attributes:
        kind: "pool" takes maxima over whole cells, corners and bins rounded to them; "align" takes
            means of points between the cells, nothing rounded.
        size: P, bins a side: 7 for VGG16, 6 for CaffeNet.
        sampling: points a side of each bin of "align"; 0 takes as many as a bin has cells.
        strides: pixels from one cell to the next of each map, finest first. Several double from
            each to the next, and each region is pooled from one of the maps by its size.
        reference: side of the square that belongs to ``level_of_reference``, in pixels.
        level_of_reference: the level of that square; the stride of level k is 2^k.
        aligned: shift "align" by half a cell, for cells to stand for their middles (Detectron2).
            The authors' and torchvision's do not, and widen regions to one cell at least.
    """

    kind: str = "pool"
    size: int = 7
    sampling: int = 2
    strides: tuple[int, ...] = (16,)
    reference: float = 224  # Lin et al. 2017, equation 1, as is the level
    level_of_reference: int = 4
    aligned: bool = False

    def __post_init__(self) -> None:
        """The kind is known, numbers are in range, and strides are those of levels."""
        if self.kind not in KINDS:
            raise SettingError(f"region pooling '{self.kind}' is none of {', '.join(KINDS)}")
        if self.size < 1 or self.sampling < 0:
            raise SettingError(
                f"region pooling to {self.size} bins a side with {self.sampling} points a side in "
                "each: give at least 1 bin and no negative number of points"
            )
        if not 0 < self.reference < math.inf:
            raise SettingError(
                f"a reference of {self.reference} pixels for regions: give a number above 0"
            )
        first = self.strides[0] if self.strides else 0
        doubling = tuple(first << level for level in range(len(self.strides)))
        several = len(self.strides) > 1
        if first < 1 or self.strides != doubling or (several and first & (first - 1)):
            raise SettingError(
                f"maps of strides '{', '.join(map(str, self.strides))}': give one number above 0, "
                "or several powers of 2 that double"
            )

    @property
    def pixel(self) -> int:
        """What the right and lower edge of a box lose before they are scaled to RoIs.

        1 for "pool": the authors' RoIs are inclusive corners, ``(box - (0, 0, 1, 1)) * scale``.
        0 for "align": ``box * scale``.
        """
        return 1 if self.kind == "pool" else 0

    def settings(self) -> dict[str, Any]:
        """JSON for the model file."""
        return asdict(self) | {"strides": list(self.strides)}

    def __call__(self, maps: Sequence[Tensor], rois: Sequence[Tensor]) -> Tensor:
        """The grids of all regions of a batch; differentiable in the maps.

        Bins of "pool" that hold no cell of the map are 0, as are points of "align" more than a
        cell outside of it. Maps of 16 bits are pooled in 32.

        Args:
            maps: (N, C, H, W) for each stride, of one dtype; further ones (P6) are not looked at.
            rois: for each of the N images (R_n, 4) x1 y1 x2 y2 float on the maps' device, see
                :attr:`pixel`; those with x2 < x1 count as of one cell for "pool".

        Returns:
            (R, C, P, P) of the maps' dtype, image by image in the order of ``rois``.
        """
        # The kernels read whatever memory an image's number leads to.
        if len(maps) < len(self.strides) or len(maps[0]) != len(rois):
            raise ValueError(
                f"{len(maps)} maps for {len(self.strides)} strides, regions of {len(rois)} images"
            )
        single = [pad(own, (1, 0), value=image) for image, own in enumerate(rois)]
        rows = torch.cat([maps[0].new_zeros((0, 5)), *single])  # (R, 5), the image's number first
        if len(self.strides) == 1:
            return self._pooled(maps[0], rows, self.strides[0])

        levels = assign_levels(
            rows[:, 1:],
            len(self.strides),
            finest=self.strides[0].bit_length() - 1,
            reference=self.reference,
            level_of_reference=self.level_of_reference,
            pixel=self.pixel,
        )
        order = levels.argsort(stable=True)
        # One wait for the device, where a question for each level would be one wait each.
        counts = levels.bincount(minlength=len(self.strides)).tolist()
        grids = maps[0].new_empty((len(rows), maps[0].shape[1], self.size, self.size))
        chosen = torch.split(order, counts)
        for level_map, own, stride in zip(maps, chosen, self.strides, strict=False):
            grids.index_copy_(0, own, self._pooled(level_map, rows[own], stride))
        return grids

    def _pooled(self, level_map: Tensor, rows: Tensor, stride: int) -> Tensor:
        """(N, C, H, W) and (R, 5) to (R, C, P, P)."""
        # Regions have the map's dtype in the kernels, and 16 bits do not hold their corners.
        values = level_map.to(torch.promote_types(level_map.dtype, torch.float32))
        values = _channel_after_channel(values)
        rows = rows.to(values.dtype)
        pooled: Tensor
        if self.kind == "pool":
            pooled = roi_pool(values, rows, self.size, 1 / stride)
        else:
            pooled = roi_align(
                values, rows, self.size, 1 / stride, self.sampling, aligned=self.aligned
            )
        return pooled.to(level_map.dtype)


def _channel_after_channel(maps: Tensor) -> Tensor:
    """Maps (N, C, H, W) as they lie in memory where the kernels read them.

    The kernels would copy them too, but on the CPU PyTorch transposes matrices block by block and
    everything of more dimensions number by number.
    """
    if maps.is_contiguous() or maps.is_cuda:
        return maps
    return torch.stack([own.flatten(1).contiguous() for own in maps]).view(maps.shape)


def build_region_pooling(settings: Mapping[str, Any]) -> RegionPooling:
    """The inverse of :meth:`RegionPooling.settings`."""
    return RegionPooling(**{**settings, "strides": tuple(settings["strides"])})


def assign_levels(
    rois: Tensor,
    count: int,
    *,
    finest: int = 2,
    reference: float = 224,
    level_of_reference: int = 4,
    pixel: float = 0,
) -> Tensor:
    """Which map each region is pooled from: k = floor(k0 + log2(sqrt(w h) / 224)), within the maps.

    Lin et al. 2017, equation 1, with the 1e-6 that torchvision adds to the logarithm, so that the
    square of exactly 224 is not rounded out of its level.

    Args:
        rois: (R, 4) float x1 y1 x2 y2 in pixels of the resized image, as k is about what the
            network sees.
        count: number of maps.
        finest: k of the first of them, log2 of its stride.
        reference: side of the square of level k0, in pixels.
        level_of_reference: k0.
        pixel: 1 measures widths of inclusive corners, x2 - x1 + 1, as Detectron does.

    Returns:
        (R,) int64, indices of the maps; the finest where a region has no extent or is no number.
    """
    width, height = (rois[:, 2:] - rois[:, :2] + pixel).clamp(min=0).unbind(1)
    ratio = (width * height).sqrt() / reference
    level = (level_of_reference + ratio.log2() + 1e-6).floor() - finest
    return level.clamp(0, count - 1).nan_to_num(0).to(torch.int64)
