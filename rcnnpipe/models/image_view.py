"""How whole images become network input: their size, and batches of several.

Girshick 2015, section 3, and the authors' ``lib/utils/blob.py`` and ``lib/fast_rcnn/test.py``.
Pixels are preprocessed before they are resized, so that the zeros around smaller images of a batch
are the mean.

Vocabulary: N images, H x W pixels, sizes (height, width).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import floor
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from rcnnpipe.devices import is_lack_of_memory
from rcnnpipe.errors import SettingError

ROUNDINGS = ("round", "floor")


@dataclass(frozen=True)
class ImageView:
    """What belongs to the weights of a network that sees whole images.

    Attributes:
        scales: what the shorter side may become, in pixels. Of several, training draws one.
        longest: what the longer side may become at most; it then decides instead.
        multiple: a batch's height and width are padded to multiples of it: 32 for the maps of a
            feature pyramid to halve without a rest.
        rounding: of sizes to pixels, "round" (the authors' code) or "floor" (torchvision's).
    """

    scales: tuple[int, ...] = (600,)
    longest: int = 1000
    multiple: int = 1
    rounding: str = "round"

    def __post_init__(self) -> None:
        """There are scales within the limit, and the rule is known."""
        scales = ", ".join(map(str, self.scales))
        if not self.scales or min(self.scales) < 1:
            raise SettingError(f"shorter sides of '{scales}' pixels: give one or more above 0")
        if self.longest < max(self.scales):
            raise SettingError(
                f"a longest side of {self.longest} pixels is below a shorter side of {scales}; "
                "raise --longest or lower --scales"
            )
        if self.multiple < 1:
            raise SettingError(f"padding to multiples of {self.multiple} pixels: give 1 or more")
        if self.rounding not in ROUNDINGS:
            raise SettingError(f"rounding '{self.rounding}' is none of {', '.join(ROUNDINGS)}")

    def at(self, scales: tuple[int, ...] | None) -> "ImageView":
        """The view at other scales, the longest side in the same proportion to the largest.

        None, as of an option that is not given, leaves it.
        """
        if not scales:
            return self
        longest = round(max(scales) * self.longest / max(self.scales))
        return replace(self, scales=scales, longest=longest)

    def single(self) -> "ImageView":
        """The view at the first of its scales, for what looks at an image once."""
        return replace(self, scales=self.scales[:1])

    def scale_of(self, size: tuple[int, int], shorter: int) -> float:
        """The factor that brings an image of ``size`` to a shorter side, within the longest.

        The authors compare the rounded longer side with the limit; torchvision takes the smaller
        factor, which differs where the longer side is less than half a pixel too long.
        """
        scale, limit = shorter / min(size), self.longest / max(size)
        if self.rounding == "floor":
            return min(scale, limit)
        return limit if round(scale * max(size)) > self.longest else scale

    def resized_size(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        """(height, width) of an image of ``size`` resized by ``scale``, a pixel at least."""
        # Python's round takes halves to even, as OpenCV's does.
        whole = floor if self.rounding == "floor" else round
        height, width = (max(1, whole(side * scale)) for side in size)
        return height, width

    def factors(self, size: tuple[int, int], scale: float) -> tuple[float, float]:
        """(x, y) by which boxes on an image of ``size`` become boxes on the resized one.

        The authors take the one factor for both; torchvision the ratio of the rounded sizes, which
        is where :func:`resize` brings corners to.
        """
        if self.rounding == "round":
            return scale, scale
        resized = self.resized_size(size, scale)
        return resized[1] / size[1], resized[0] / size[0]

    def settings(self) -> dict[str, Any]:
        """JSON for the model file."""
        return asdict(self) | {"scales": list(self.scales)}


def build_image_view(settings: Mapping[str, Any]) -> ImageView:
    """The inverse of :meth:`ImageView.settings`."""
    return ImageView(**{**settings, "scales": tuple(settings["scales"])})


def corner_factors(factors: tuple[float, float], device: torch.device | str = "cpu") -> Tensor:
    """(4,) float32 that multiply x1 y1 x2 y2, of :meth:`ImageView.factors` (x, y)."""
    return torch.tensor(factors * 2, dtype=torch.float32, device=device)


def resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """(3, H, W) float to (3, height, width) by bilinear interpolation, without antialiasing.

    Half-pixel centres, as OpenCV and torchvision; corners of the image stay corners, so that x
    becomes x * width / W, which differs from x * scale by the rounding of the size.

    Raises:
        SettingError: the result does not fit into the memory.
    """
    if tuple(pixels.shape[1:]) == size:
        return pixels
    try:
        return interpolate(pixels[None], size=size, mode="bilinear", align_corners=False)[0]
    except (RuntimeError, MemoryError, TypeError) as error:
        if not is_lack_of_memory(error):
            raise
        raise SettingError(
            f"an image scaled to {size[1]} x {size[0]} pixels does not fit into the memory; lower "
            "--scales"
        ) from error


def to_batch(images: Sequence[Tensor], multiple: int = 1) -> Tensor:
    """Images of several sizes in one tensor, each at the upper left, zeros right of and below it.

    Args:
        images: one or more (3, h, w) of one dtype and device, preprocessed and resized.
        multiple: H and W are the largest h and w, rounded up to a multiple of this.

    Returns:
        (N, 3, H, W), never sharing memory with the images.
    """
    largest = [max(image.shape[side] for image in images) for side in (1, 2)]
    height, width = (-(-side // multiple) * multiple for side in largest)
    batch = images[0].new_zeros((len(images), 3, height, width))
    for place, image in zip(batch, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return batch
