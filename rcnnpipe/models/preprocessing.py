"""What pixels become before a network sees them; it belongs to the weights and travels with them.

A pixel of 0..255 RGB becomes ``(channel * scale - mean) / std`` in the weights' channel order.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rcnnpipe.errors import SettingError

ORDERS = ("RGB", "BGR")


@dataclass(frozen=True, eq=False)
class Preprocessing:
    """How 0..255 RGB pixels become network input.

    Attributes:
        mean: (3,) per channel or (3, S, S) per pixel of the S x S network input, float32, in the
            weights' channel order and after ``scale``.
        std: (3,) float32, in the same order; divides after the mean is subtracted.
        order: channel order of the weights, "RGB" or "BGR".
        scale: multiplies the 0..255 values first: 1.0 (Caffe) or 1/255 (torchvision).
    """

    mean: Tensor
    std: Tensor
    order: str = "RGB"
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Shapes, order and range are right."""
        if self.order not in ORDERS:
            raise SettingError(f"channel order {self.order!r} is neither RGB nor BGR")
        square = self.mean.ndim == 3 and self.mean.shape[1] == self.mean.shape[2]
        if self.mean.shape[0] != 3 or not (self.mean.ndim == 1 or square):
            raise SettingError(
                f"a mean of shape {tuple(self.mean.shape)} is neither (3,) nor (3, S, S)"
            )
        if self.std.shape != (3,) or not bool((self.std > 0).all()) or not self.scale > 0:
            raise SettingError("the preprocessing needs three positive std values and scale > 0")

    @property
    def mean_image(self) -> Tensor | None:
        """The per-pixel mean (3, S, S), or None where the mean is per channel."""
        return self.mean if self.mean.ndim == 3 else None

    def apply(self, image: Tensor) -> Tensor:
        """Everything that does not depend on the place in the network's input.

        A per-pixel mean does: it is left out here and subtracted (divided by ``std``) from the
        finished window by :func:`rcnnpipe.models.warp.warp`.

        Args:
            image: (3, H, W) or (R, 3, H, W) uint8 or float, RGB, 0..255.

        Returns:
            float32 of the same shape, in the weights' channel order.
        """
        pixels = image.to(torch.float32)
        if self.order == "BGR":
            pixels = pixels.flip(-3)
        std = self.std.to(image.device)
        factor = (self.scale / std).view(3, 1, 1)
        if self.mean_image is not None:
            return pixels * factor
        return pixels * factor - (self.mean.to(image.device) / std).view(3, 1, 1)

    def settings(self) -> dict[str, Any]:
        """JSON for the model file; a per-pixel mean travels beside it as a tensor."""
        mean = None if self.mean_image is not None else self.mean.tolist()
        return {"mean": mean, "std": self.std.tolist(), "order": self.order, "scale": self.scale}


def build_preprocessing(
    settings: Mapping[str, Any], mean_image: Tensor | None = None
) -> Preprocessing:
    """The inverse of :meth:`Preprocessing.settings`.

    Args:
        settings: mean, std, order, scale; ``mean`` None says that ``mean_image`` is needed.
        mean_image: (3, S, S) or None.
    """
    mean = mean_image if settings["mean"] is None else torch.tensor(settings["mean"])
    if mean is None:
        raise SettingError("the preprocessing needs its per-pixel mean image, which is not there")
    return Preprocessing(mean, torch.tensor(settings["std"]), settings["order"], settings["scale"])


# Literal presets; `preset` builds them. Each says where its numbers come from.
PRESETS: dict[str, dict[str, Any]] = {
    # torchvision.transforms._presets.ImageClassification
    "torchvision": {
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "order": "RGB",
        "scale": 1 / 255,
    },
    # Channel averages, blue green red, of Caffe's ilsvrc_2012_mean image. The paper's models
    # subtract the per-pixel mean image itself: give it as the mean where it is at hand.
    "caffe": {
        "mean": [104.00698793, 116.66876762, 122.67891434],
        "std": [1.0, 1.0, 1.0],
        "order": "BGR",
        "scale": 1.0,
    },
    # He et al. 2014 (SPP-net), App. A: the constant 128 for VOC 2007
    "constant128": {
        "mean": [128.0, 128.0, 128.0],
        "std": [1.0, 1.0, 1.0],
        "order": "BGR",
        "scale": 1.0,
    },
}


def preset(name: str) -> Preprocessing:
    """A preprocessing of :data:`PRESETS` by name."""
    if name not in PRESETS:
        raise SettingError(f"no preprocessing {name!r}; there are {', '.join(PRESETS)}")
    return build_preprocessing(PRESETS[name])
