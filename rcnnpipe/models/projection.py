"""From regions in pixels to cells of a map: which scale, where on it, which cells.

He et al. 2014, section 4.1 and appendix A, and the authors' code (``spm_expected_scale.m``,
``spm_response_boxes.m``).

Vocabulary: R regions, S stride of a map, windows (R, 4) x1 y1 x2 y2 in pixels of a scaled image,
1-based and inclusive as in the authors' code, cells (R, 4) 0-based and inclusive.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from rcnnpipe.errors import SettingError
from rcnnpipe.models.backbones import Network
from rcnnpipe.models.map_view import PROJECTIONS, SCALE_CHOICES
from rcnnpipe.models.pyramid import PyramidPooling

_SHRINK = 6.5 / 16  # of a stride: the authors' offset for ZF-5, whose receptive fields see less
_NO_MAP = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, PyramidPooling, nn.Linear, nn.Flatten)


class MapGeometry(NamedTuple):
    """Where the cells of a map look.

    Attributes:
        stride: S, pixels from one cell to the next.
        centre: 1-based pixel in the middle of what the first cell sees: 21 for ZF-5, 1 where every
            layer is padded by half of its kernel.
    """

    stride: int
    centre: float


def geometry_of(network: Network, layer: str) -> MapGeometry:
    """The geometry of one of a network's maps, from its kernels, strides and paddings.

    Raises:
        SettingError: the network has no such layer, or it is no map.
    """
    table = network.architecture.layers
    if layer not in table:
        raise SettingError(f"{network.name} has no layer '{layer}'; there are {', '.join(table)}")
    chain: list[nn.Module] = []
    while layer != "image":
        chain = [network.get_submodule(path) for path in table[layer].modules] + chain
        layer = table[layer].source
    geometry = MapGeometry(1, 1.0)
    for module in chain:
        geometry = _behind(module, geometry)
    return geometry


def _behind(module: nn.Module, before: MapGeometry) -> MapGeometry:
    """The geometry of a module's output, given that of its input."""
    if isinstance(module, SqueezeExcitation):  # only scales whole channels
        return before
    if isinstance(module, _NO_MAP):
        raise SettingError("what follows a pooling of the whole map is no map any more")
    if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        kernel, stride, padding, dilation = (
            _side(getattr(module, name, 1))
            for name in ("kernel_size", "stride", "padding", "dilation")
        )
        shift = (kernel - 1) * dilation / 2 - padding
        return MapGeometry(before.stride * stride, before.centre + shift * before.stride)
    for name, child in module.named_children():
        if name != "downsample":  # the shortcut of a block lies over its main path
            before = _behind(child, before)
    return before


def _side(value: Any) -> int:
    return int(value[0]) if isinstance(value, tuple) else int(value)


def resized_size(size: tuple[int, int], scale: int) -> tuple[int, int]:
    """(height, width) of an image whose shorter side becomes ``scale``, the ratio kept.

    The authors hand their resizer a fraction for the longer side; it is rounded here.
    """
    shorter = min(size)
    height, width = (max(1, round(side * scale / shorter)) for side in size)
    return height, width


def scaled(boxes: Tensor, min_side: int, scale: float | Tensor) -> Tensor:
    """Windows (R, 4) float64 of continuous 0-based boxes (R, 4), not rounded.

    The authors map the first pixel to the first and the last to the last:
    b' = (b - 1)(s - 1) / (min_side - 1) + 1.

    Args:
        boxes: on the image as it is.
        min_side: its shorter side; one of a single pixel is taken as if it had two.
        scale: what that becomes, one number or (R,).
    """
    inclusive = boxes.double() + torch.tensor([1, 1, 0, 0])
    factor = (torch.as_tensor(scale, dtype=torch.float64) - 1) / max(min_side - 1, 1)
    return (inclusive - 1) * factor.reshape(-1, 1) + 1


def choose_scales(
    boxes: Tensor, min_side: int, scales: Sequence[float], reference: float, rule: str
) -> Tensor:
    """Which of some scales brings each region nearest to a reference size; the first of equals.

    Args:
        boxes: (R, 4) continuous, on the image as it is.
        min_side: its shorter side.
        scales: what that may become.
        reference: side of a square.
        rule: "nearest-area": the scaled area is nearest to that of the square (section 4.1);
            "nearest-scale": the scale is nearest to the one that makes the areas equal (the
            authors' code, with a reference of 208).

    Returns:
        (R,) int64, indices of ``scales``.
    """
    _require(rule, SCALE_CHOICES)
    areas = (boxes[:, 2:] - boxes[:, :2]).double().prod(1).clamp(min=1e-9)  # (R,)
    candidates = torch.tensor(scales, dtype=torch.float64)
    if rule == "nearest-area":
        distance = (areas[:, None] * (candidates / min_side) ** 2 - reference**2).abs()
    else:
        target = (reference * min_side / areas.sqrt() + 0.5).floor()  # rounded as MATLAB does
        distance = (candidates - target[:, None]).abs()
    smallest = distance.amin(1, keepdim=True)
    return (distance == smallest).int().argmax(1)  # argmax gives the first of equals


def project(
    windows: Tensor,
    geometry: MapGeometry,
    map_size: tuple[int, int],
    rule: str,
    shrink: float | None = None,
) -> Tensor:
    """Cells (R, 4) of windows (R, 4), at least one cell each, within a map of (height, width).

    A window of no cell gets the one between its ends; what leaves the map moves to its border.
    ``rule`` and ``shrink`` are those of :func:`unclamped`.
    """
    cells = _repaired(unclamped(windows, geometry, rule, shrink))
    most = torch.tensor([map_size[1], map_size[0]] * 2)
    return cells.clamp(min=1).minimum(most) - 1


def unclamped(
    windows: Tensor, geometry: MapGeometry, rule: str, shrink: float | None = None
) -> Tensor:
    """1-based inclusive cells (R, 4) as the formulas give them: inverted for small windows.

    Args:
        windows: (R, 4).
        geometry: of the map.
        rule: "paper": the cells whose centres lie within the window, floor(x / S) + 1 to
            ceil(x / S) - 1 (appendix A, there for layers padded by half of their kernels), with x
            counted from the first cell's centre, which makes it right for other paddings;
            "authors": from the cell whose centre is nearest to the left edge to that nearest to the
            right edge of the window without its outermost pixels.
        shrink: so many pixels a side, for "authors"; None takes ZF-5's 6.5 of a stride of 16.
    """
    _require(rule, PROJECTIONS)
    stride, centre = geometry
    low, high = windows[:, :2], windows[:, 2:]
    if rule == "paper":
        # The paper counts cells from 0, as its x' = x / S says: one more here.
        first = ((low - centre) / stride).floor() + 2
        last = ((high - centre) / stride).ceil()
    else:
        shrink = _SHRINK * stride if shrink is None else shrink
        first = ((low - centre + shrink) / stride + 0.5).floor() + 1
        last = ((high - centre - shrink) / stride - 0.5).ceil() + 1
    return torch.cat((first, last), dim=1).long()


def _repaired(cells: Tensor) -> Tensor:
    """Where the first cell lies behind the last, both become the one between (``fix`` of both)."""
    first, last = cells[:, :2], cells[:, 2:]
    middle = ((first + last) / 2).trunc().long()
    inverted = first > last
    return torch.cat((first.where(~inverted, middle), last.where(~inverted, middle)), dim=1)


def _require(rule: str, rules: Sequence[str]) -> None:
    if rule not in rules:
        raise SettingError(f"'{rule}' is none of {', '.join(rules)}")
