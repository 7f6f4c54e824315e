"""Views of examples: which parts of each a classifier is shown.

Krizhevsky et al. 2012, section 4.1 (ten views) and He et al. 2014, section 3.1 (full images, views
of several scales).

Vocabulary: T examples, W windows of each, S their side. The *frame* of an example is the whole
image; of an object, the part of its image that the network's window of it shows: the box grown by
the context, clipped to the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from rcnnpipe.datasets.records import Record
from rcnnpipe.errors import SettingError
from rcnnpipe.models.backbones import Network
from rcnnpipe.models.preprocessing import Preprocessing
from rcnnpipe.models.projection import resized_size
from rcnnpipe.models.warp import Crop, crop_geometry
from rcnnpipe.systems.pretraining import PATCH_SHARE, VIEW_SCALES, VIEW_WINDOW
from rcnnpipe.training.examples import Floats, Integers

_CENTRE = ((0.5, 0.5),)
_CORNERS = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0))
_MIDDLES = ((0.5, 0.0), (0.0, 0.5), (1.0, 0.5), (0.5, 1.0))  # of the sides


@dataclass(frozen=True)
class Views:
    """What is shown of an example; all of it with the same weight.

    Attributes:
        squares: share, x, y of each square window of S pixels: its side as a share of the frame's
            shorter side, and where it lies in the room it has, 0 to 1.
        stretched: whether the network's own window of the object is shown, whose aspect it loses.
        full: shorter side in pixels to which the whole frame is scaled; None does not show it.
        mirrored: whether everything is shown mirrored as well.
    """

    squares: tuple[tuple[float, float, float], ...] = ()
    stretched: bool = False
    full: int | None = None
    mirrored: bool = False

    @property
    def turns(self) -> int:
        """How often each view is shown."""
        return 1 + self.mirrored

    @property
    def count(self) -> int:
        """Views of an example."""
        return self.turns * (len(self.squares) + self.stretched + (self.full is not None))


def views_of(
    kind: str, network: Network, whole_images: bool = True, scale: int | None = None
) -> Views:
    """Views by name.

    Args:
        kind: "crop": the square in the middle, of objects the network's own window, as training
            sees them; "full": the whole frame at its own aspect; "ten": corners and centre,
            mirrored too; "multi": six scales, mirrored too, and the whole frame where the network
            has a pyramid.
        network: that will see them.
        whole_images: whether examples are whole images, not objects.
        scale: the frame's shorter side in pixels; None takes 256 for windows of 224.

    Raises:
        SettingError: the network cannot take them, or a scale has no meaning with them.
    """
    window = network.crop.size
    if scale is not None and kind == "multi":
        raise SettingError("--scale has no meaning with --views multi, whose scales are six")
    if kind == "full" and network.head is None:
        raise SettingError(
            f"--views full shows a {network.name} images of any size, which takes a pyramid; "
            "pre-train it with --pyramid, or give --views crop or ten"
        )
    if kind == "full":
        return Views(full=scale or _usual_scale(window))
    if kind == "multi":
        return Views(_many(), full=_usual_scale(window) if network.head else None, mirrored=True)
    if kind == "crop" and not whole_images:
        if scale is not None:
            raise SettingError(
                "--scale has no meaning with --views crop of objects, whose boxes are stretched to "
                "the network's window; give --views ten or full"
            )
        return Views(stretched=True)
    if scale is not None and scale < window:
        raise SettingError(
            f"--scale {scale} leaves no room for windows of {window} pixels; give {window} or more"
        )
    share = window / scale if scale else PATCH_SHARE
    # Corners of the whole image (He et al. 2014); Krizhevsky's are those of its middle square.
    places = _CENTRE if kind == "crop" else _CORNERS + _CENTRE
    return Views(tuple((share, *place) for place in places), mirrored=kind == "ten")


def _usual_scale(window: int) -> int:
    return round(window / PATCH_SHARE)


def _many() -> tuple[tuple[float, float, float], ...]:
    """Nine places a scale: centre, corners, middles of the sides.

    At the smallest scale a window is as wide as the image is high, so that of the nine only three
    differ, along the longer side. "6 at s = 224" in the paper is taken for these three, each
    mirrored, also where the image is square and all three are one. With 5 x 18 they are its 96.

    The paper cuts its windows out of maps of the whole image, to save time. Here each window runs
    through the convolutions by itself, so that networks without a pyramid can be judged by the same
    views.
    """
    along = ((0.0, 0.0), *_CENTRE, (1.0, 1.0))
    return tuple(
        (VIEW_WINDOW / scale, *place)
        for scale in VIEW_SCALES
        for place in (along if scale == VIEW_WINDOW else _CENTRE + _CORNERS + _MIDDLES)
    )


def frames_of(records: Sequence[Record], images: Integers, boxes: Floats, crop: Crop) -> Floats:
    """Frames (T, 4) of objects, in whole pixels.

    Args:
        records: the images.
        images: (T,) the number of the image each object lies in.
        boxes: (T, 4).
        crop: the network's.
    """
    frames = np.empty_like(boxes)
    for image in np.unique(images):
        rows, size = images == image, records[image].size
        found = crop_geometry(torch.from_numpy(boxes[rows]), size, crop)
        low = np.minimum(found.origin.numpy(), (size[1] - 1, size[0] - 1))
        # Boxes may be annotated up to a pixel outside: something of the image is shown of all.
        frames[rows] = np.concatenate((low, low + found.extent.numpy().clip(1)), axis=1)
    return frames


def squares_in(frames: Floats, squares: Sequence[tuple[float, float, float]]) -> Floats:
    """Boxes (T, W, 4) of square windows of frames (T, 4); see :attr:`Views.squares`."""
    values = np.array(squares, np.float64).reshape(-1, 3)
    low = frames[:, None, :2].astype(np.float64)  # (T, 1, 2)
    size = frames[:, None, 2:] - low
    side = values[:, :1] * size.min(axis=2, keepdims=True)  # (T, W, 1)
    low = low + values[:, 1:] * (size - side)
    return np.concatenate((low, low + side), axis=2).astype(np.float32)


def whole_view(pixels: npt.NDArray[np.uint8], scale: int, preprocessing: Preprocessing) -> Tensor:
    """A whole frame (H, W, 3) as network input (3, H', W') whose shorter side is ``scale``.

    A mean image is warped to its size (He et al. 2014, appendix A).
    """
    size = resized_size((pixels.shape[0], pixels.shape[1]), scale)
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float()
    prepared = preprocessing.apply(interpolate(image, size, mode="bilinear"))
    if preprocessing.mean_image is not None:
        mean = (preprocessing.mean_image / preprocessing.std.view(3, 1, 1))[None]
        prepared -= interpolate(mean, size, mode="bilinear")
    return prepared[0]
