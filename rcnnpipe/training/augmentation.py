"""Random changes of whole images with all that is in them: colours, a crop, the scale.

Liu et al. 2016 (SSD), sections 2.2 and 3.6, with the ranges of torchvision's
RandomPhotometricDistort and RandomIoUCrop; Ghiasi et al. 2021, section 3 (large scale jitter), as
torchvision's ScaleJitter. Those classes draw from torch's one generator; here every draw is from a
generator of its own, so that neither threads nor a restart change it.

Vocabulary: an image of H x W pixels, T parts of it that are tried.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from rcnnpipe import boxes as box_ops
from rcnnpipe.randomness import generator
from rcnnpipe.training.seen import Seen, Window, centres_inside, crop

CHANCE = 0.5  # of each change of colours
BRIGHTNESS = (0.875, 1.125)
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE = (-0.05, 0.05)  # of the whole circle

# An object must overlap the crop by so much (IoU); None keeps the whole image.
OVERLAPS = (None, 0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
TRIALS = 40  # of each of them
SIDES = (0.3, 1.0)  # of the crop, over those of the image
ASPECTS = (0.5, 2.0)  # width over height of the crop


@dataclass(frozen=True)
class Augmentation:
    """Which random changes are made; none by default.

    Attributes:
        scale_jitter: least and largest factor of the size that an image is resized to. What is
            enlarged is not cropped: memory grows with the largest factor's square.
        photometric: change the colours.
        random_crop: show a part of the image.
    """

    scale_jitter: tuple[float, float] | None = None
    photometric: bool = False
    random_crop: bool = False

    def factor(self, seed: int, key: tuple[int, int]) -> float:
        """Of the scale, uniform in the range of ``scale_jitter``; the longest side grows with it.

        Args:
            seed: of the run.
            key: iteration and place in the batch.
        """
        if self.scale_jitter is None:
            return 1.0
        return float(generator(seed, "scale jitter", *key).uniform(*self.scale_jitter))

    def apply(self, seen: Seen, seed: int, key: tuple[int, int]) -> Seen:
        """The image with other colours and cropped, as SSD does one after the other."""
        if self.photometric:
            random = generator(seed, "colours of an image", *key)
            seen = replace(seen, pixels=distort(seen.pixels, random))
        if self.random_crop:
            seen = crop(seen, draw_window(seen, generator(seed, "crop of an image", *key)))
        return seen


UNCHANGED = Augmentation()


def distort(pixels: Tensor, random: np.random.Generator) -> Tensor:
    """Brightness, contrast, saturation and hue changed and channels exchanged, each by chance.

    Contrast comes before saturation and hue or after them. Grey pixels stay grey.

    Args:
        pixels: (3, H, W) uint8 RGB.
        random: makes the draws, as many whatever they are.

    Returns:
        As ``pixels``; maybe the same tensor.
    """
    chosen = random.random(5) < CHANCE
    amounts = [float(random.uniform(*limits)) for limits in (BRIGHTNESS, CONTRAST, SATURATION, HUE)]
    early, order = random.random() < 0.5, random.permutation(3)
    brightness, contrast, saturation, hue, exchange = map(bool, chosen)
    pixels = pixels.contiguous()  # decoded images are not, which takes twice as long
    if brightness:
        pixels = functional.adjust_brightness(pixels, amounts[0])
    if contrast and early:
        pixels = functional.adjust_contrast(pixels, amounts[1])
    if saturation:
        pixels = functional.adjust_saturation(pixels, amounts[2])
    if hue:
        pixels = functional.adjust_hue(pixels, amounts[3])
    if contrast and not early:
        pixels = functional.adjust_contrast(pixels, amounts[1])
    return pixels[torch.from_numpy(order)] if exchange else pixels


def draw_window(seen: Seen, random: np.random.Generator) -> Window | None:
    """A part of the image that shows the centre of an object; None is all of it.

    One of the :data:`OVERLAPS` is drawn, and another one where :data:`TRIALS` parts did not reach
    it. So each that can be reached is as likely as any other, as in the authors' code;
    torchvision draws those that failed again as well. An image without objects stays whole.
    """
    objects = seen.truth.boxes[seen.truth.labels > 0]
    if len(objects) == 0:
        return None
    for number in random.permutation(len(OVERLAPS)):
        least = OVERLAPS[number]
        if least is None:
            return None
        windows = _any_windows(seen.size, random)
        overlaps = box_ops.iou(windows.float(), objects)  # (T, G)
        good = (centres_inside(objects, windows) & (overlaps >= least)).any(dim=1)
        if good.any():
            left, top, right, bottom = windows[good][0].tolist()
            return top, left, bottom - top, right - left
    return None


def _any_windows(size: tuple[int, int], random: np.random.Generator) -> Tensor:
    """Parts of any size and place (T, 4) int64 x1 y1 x2 y2, of at most :data:`TRIALS`.

    Those whose shape is not within the limits are left out.
    """
    whole = np.array(size[::-1])  # width, height
    sides = (whole * random.uniform(*SIDES, size=(TRIALS, 2))).astype(np.int64)
    corners = ((whole - sides) * random.random((TRIALS, 2))).astype(np.int64)
    width, height = sides.T
    fits = (width >= height * ASPECTS[0]) & (width <= height * ASPECTS[1]) & (width * height > 0)
    return torch.from_numpy(np.concatenate((corners, corners + sides), axis=1)[fits])
