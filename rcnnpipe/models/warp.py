"""Dilate-and-warp: every region of one decoded image as a window of the network's input size.

Girshick et al. 2014, section 2.1 and appendix A; the arithmetic is that of the authors'
``rcnn_im_crop.m`` and, for mirrored windows, of Caffe's ``window_data_layer.cpp``.

Vocabulary: R regions, S window side, H x W image. The *canvas* is the S x S window. The region
grows until ``padding`` canvas pixels of context surround it on each side; what of it lies inside of
the image is resized (bilinear, half-pixel centres, no antialiasing) and pasted; the rest of the
canvas stays 0, which is the mean after its subtraction.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from rcnnpipe.errors import SettingError
from rcnnpipe.models.preprocessing import Preprocessing
from rcnnpipe.models.warp_kernel import paste

MODES = ("warp", "square")

# Regions whose sampling grid (S * S * 2 floats each) exists at one time where grid_sample is used.
_GRID_REGIONS = 256


@dataclass(frozen=True)
class Crop:
    """How a region becomes a window (appendix A, figure 7).

    Attributes:
        size: S, the side of the window in pixels.
        padding: p, context on each side in *window* pixels; 0 is the tight crop.
        mode: "warp" stretches the region to the window (D in the figure), "square" keeps its aspect
            by the tightest enclosing square.
        context: whether a square shows what surrounds the region (B) or the mean instead (C); of no
            effect on "warp", whose region fills the window.
    """

    size: int = 227
    padding: int = 16  # Girshick et al. 2014, App. A: p = 16
    mode: str = "warp"
    context: bool = True

    def __post_init__(self) -> None:
        """The window has room for the region inside of its padding."""
        if self.mode not in MODES:
            raise SettingError(f"crop mode {self.mode!r} is neither warp nor square")
        if self.padding < 0 or self.size <= 2 * self.padding:
            raise SettingError(
                f"a padding of {self.padding} a side leaves nothing of a window of {self.size}"
            )

    def settings(self) -> dict[str, Any]:
        """JSON for the model file."""
        return asdict(self)


def build_crop(settings: Mapping[str, Any]) -> Crop:
    """The inverse of :meth:`Crop.settings`."""
    return Crop(**settings)


class Geometry(NamedTuple):
    """Where each region's window comes from and goes to; int64 (R, 2), x then y, 0-based.

    ``expanded`` (R, 4) is the dilated region before clipping, 1-based inclusive as in the authors'
    code; ``origin`` and ``extent`` the part of it in the image; ``pasted`` that part's size on the
    canvas and ``offset`` its place there. A region outside of the image has ``extent`` 0.
    """

    expanded: Tensor
    origin: Tensor
    extent: Tensor
    pasted: Tensor
    offset: Tensor


def round_half_away(values: Tensor) -> Tensor:
    """MATLAB's and C's ``round``: halves go away from zero (torch's go to even)."""
    return values.sign() * (values.abs() + 0.5).floor()


def crop_geometry(
    boxes: Tensor, image_size: tuple[int, int], crop: Crop, flip: Tensor | None = None
) -> Geometry:
    """The integer geometry of all windows of one image.

    Args:
        boxes: (R, 4) x1 y1 x2 y2, continuous, 0-based.
        image_size: (height, width).
        crop: the kind of window.
        flip: (R,) bool, windows to mirror: the padding of the right-hand side then comes first,
            as in Caffe.
    """
    edges = boxes.to(torch.float64)
    # Continuous 0-based (x1, x2) is the 1-based inclusive (x1 + 1, x2).
    low, high = edges[:, :2] + 1, edges[:, 2:]
    last = torch.tensor([image_size[1], image_size[0]], dtype=torch.float64, device=boxes.device)
    if crop.padding > 0 or crop.mode == "square":
        half = (high - low + 1) / 2
        centre = low + half  # half a pixel right of the middle: the authors' code, kept
        frame = half.amax(1, keepdim=True).expand(-1, 2) if crop.mode == "square" else half
        scale = crop.size / (crop.size - 2 * crop.padding)
        low, high = centre - frame * scale, centre + frame * scale
        # Without context, p canvas pixels around the region are seen and no more of its square.
        isolated = crop.mode == "square" and not crop.context
        seen = half + frame * (scale - 1) if isolated else frame * scale
        seen_low, seen_high = round_half_away(centre - seen), round_half_away(centre + seen)
    else:
        seen_low, seen_high = round_half_away(low), round_half_away(high)
    low, high = round_half_away(low), round_half_away(high)
    factor = crop.size / (high - low + 1)

    clipped_low = seen_low.clamp(min=1)
    clipped_high = torch.minimum(seen_high, last)
    extent = (clipped_high - clipped_low + 1).clamp(min=0)
    offset = round_half_away((clipped_low - low) * factor)
    if flip is not None:
        mirrored = round_half_away((high - clipped_high)[:, 0] * factor[:, 0])
        offset[:, 0] = torch.where(flip, mirrored, offset[:, 0])
    offset = offset.clamp(max=crop.size)
    pasted = torch.minimum(round_half_away(extent * factor), crop.size - offset)
    return Geometry(
        torch.cat((low, high), 1).long(),
        (clipped_low - 1).long(),
        extent.long(),
        pasted.long(),
        offset.long(),
    )


def warp(
    image: Tensor,
    boxes: Tensor,
    crop: Crop,
    preprocessing: Preprocessing,
    flip: Tensor | None = None,
) -> Tensor:
    """All regions of one image as network input.

    Args:
        image: (3, H, W) uint8 RGB, on the device where the windows are wanted.
        boxes: (R, 4) x1 y1 x2 y2, continuous, 0-based, on any device.
        crop: the kind of window.
        preprocessing: of the network's weights; whatever is outside of the image is 0 after it.
        flip: (R,) bool, windows to mirror left to right, on any device; None for no window.

    Returns:
        (R, 3, S, S) float32 on the image's device; in channels-last memory on the CPU, where
        convolutions then run about twice as fast.
    """
    pixels = preprocessing.apply(image)
    size = (image.shape[1], image.shape[2])
    geometry = crop_geometry(boxes, size, crop, flip)
    if image.device.type == "cpu":
        windows = _paste_compiled(pixels, geometry, flip, crop.size)
    else:
        windows = paste_by_grid(pixels, geometry, flip, crop.size)
    if preprocessing.mean_image is not None:
        _subtract_mean_image(windows, geometry, preprocessing)
    return windows


def _paste_compiled(pixels: Tensor, geometry: Geometry, flip: Tensor | None, size: int) -> Tensor:
    regions = len(geometry.origin)
    windows = torch.empty((regions, size, size, 3))  # height, width, channel: channels last
    mirrored = torch.zeros(regions, dtype=torch.bool) if flip is None else flip.cpu()
    image = pixels.permute(1, 2, 0).flatten(1).contiguous()  # (H, 3 W)
    origin, extent, pasted, offset = (column.cpu().numpy() for column in geometry[1:])
    paste(
        image.numpy(), origin, extent, pasted, offset, mirrored.numpy(), windows.flatten(2).numpy()
    )
    return windows.permute(0, 3, 1, 2)


def paste_by_grid(pixels: Tensor, geometry: Geometry, flip: Tensor | None, size: int) -> Tensor:
    """The same windows by ``grid_sample``, on any device.

    Args:
        pixels: (3, H, W) float32, preprocessed.
        geometry: of R regions.
        flip: (R,) bool or None.
        size: S.

    Returns:
        (R, 3, S, S) float32.
    """
    regions = len(geometry.origin)
    windows = pixels.new_empty((regions, 3, size, size))
    extents = torch.tensor([pixels.shape[2], pixels.shape[1]], device=pixels.device)
    for first in range(0, regions, _GRID_REGIONS):
        rows = slice(first, first + _GRID_REGIONS)
        part = Geometry(*(column[rows].to(pixels.device) for column in geometry))
        mirrored = None if flip is None else flip[rows].to(pixels.device)
        place = _source_places(part, mirrored, size)  # (r, 2, S)
        # grid_sample has -1 at the left edge of the first pixel, 1 at the right edge of the last
        places = ((2 * place + 1) / extents[:, None] - 1).float()
        outside = torch.full_like(places, -3.0)  # far outside: exactly 0 by zero padding
        places = torch.where(_on_paste(part, size), places, outside)
        grid = pixels.new_empty((len(places), size, size, 2))
        grid[..., 0] = places[:, 0, None, :]
        grid[..., 1] = places[:, 1, :, None]
        source = pixels[None].expand(len(places), -1, -1, -1)
        windows[rows] = grid_sample(source, grid, padding_mode="zeros", align_corners=False)
    return windows


def _source_places(geometry: Geometry, flip: Tensor | None, size: int) -> Tensor:
    """(R, 2, S) float64: where in the image each canvas column, row is; pixel centres whole."""
    index = torch.arange(size, device=geometry.offset.device) - geometry.offset[..., None]
    pasted = geometry.pasted[..., None].clamp(min=1)
    if flip is not None:
        index[:, 0] = torch.where(flip[:, None], pasted[:, 0] - 1 - index[:, 0], index[:, 0])
    extent = geometry.extent[..., None]
    place = (index + 0.5) * extent / pasted.double() - 0.5
    # Only the clipped region is resized: its border pixels repeat, its neighbours are not mixed in.
    return torch.minimum(place.clamp(min=0), extent - 1.0) + geometry.origin[..., None]


def _on_paste(geometry: Geometry, size: int) -> Tensor:
    """(R, 2, S) bool: which canvas columns and rows hold image."""
    index = torch.arange(size, device=geometry.offset.device) - geometry.offset[..., None]
    filled = (geometry.pasted > 0).all(1)[:, None, None]
    return (index >= 0) & (index < geometry.pasted[..., None]) & filled


def _subtract_mean_image(windows: Tensor, geometry: Geometry, preprocessing: Preprocessing) -> None:
    """Subtract the mean at the same place of the canvas, under the image alone; in place."""
    size = windows.shape[-1]
    if preprocessing.mean.shape[-1] != size:
        raise SettingError(
            f"the mean image is {preprocessing.mean.shape[-1]} pixels wide, the window {size}"
        )
    mean = (preprocessing.mean / preprocessing.std.view(3, 1, 1)).to(windows.device)
    held = _on_paste(geometry, size).to(windows.device)
    windows -= mean * (held[:, 0, None, None, :] & held[:, 1, None, :, None])
