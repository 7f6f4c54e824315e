"""What is seen of an image in training, mirrored or cut with everything that has a place in it.

Pixels, boxes, masks and keypoints change together, through torchvision's transforms v2.

Vocabulary: G objects and P proposals of an image of H x W pixels, J keypoints of an object, T
windows.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from rcnnpipe.training.region_targets import Truth

_SIDE = re.compile("left|right|(?<![a-z])[lr](?![a-z])")
_EXCHANGED = {"left": "right", "right": "left", "l": "r", "r": "l"}

Window = tuple[int, int, int, int]  # top, left, height, width


@dataclass(frozen=True)
class Seen:
    """What is seen of one image; everything is in its pixels.

    Attributes:
        pixels: (3, H, W) uint8 RGB; changes make new ones.
        truth: G objects.
        proposals: (P, 4) float32.
        masks: (G, H, W) bool of the objects, or None where nobody asks for them.
        keypoints: (G, J, 3) float32 x, y, visibility (0: not annotated, or out of sight), or None.
            As COCO has them, x and y are numbers of pixels: 0 is the middle of the first one, and a
            mirror makes W - 1 - x of x.
    """

    pixels: Tensor
    truth: Truth
    proposals: Tensor
    masks: Tensor | None = None
    keypoints: Tensor | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.pixels.shape[1], self.pixels.shape[2]

    def only(self, objects: Tensor, proposals: Tensor) -> "Seen":
        """Some of the objects and proposals, each chosen by (G,) and (P,) bool."""
        return replace(
            self,
            truth=Truth(self.truth.boxes[objects], self.truth.labels[objects]),
            proposals=self.proposals[proposals],
            masks=None if self.masks is None else self.masks[objects],
            keypoints=None if self.keypoints is None else self.keypoints[objects],
        )


def mirror(seen: Seen, names: Sequence[str] = ()) -> Seen:
    """Left and right exchanged.

    Args:
        seen: an image.
        names: of the J keypoints, where they are known: the left and the right one of a pair
            exchange places.
    """
    mirrored = _changed(seen, functional.horizontal_flip)
    if mirrored.keypoints is None or not names:
        return mirrored
    return replace(mirrored, keypoints=mirrored.keypoints[:, other_sides(names)])


def other_sides(names: Sequence[str]) -> list[int]:
    """For each keypoint the number of the one on the other side, or its own.

    A person in a mirror has the left ear where the right one was. Sides are told by "left" and
    "right" in names, or by "l" and "r" as words of their own; whatever is no pair stays.
    """
    plain = [name.lower() for name in names]
    others = [_SIDE.sub(lambda found: _EXCHANGED[found[0]], name) for name in plain]
    numbers = [plain.index(other) if other in plain else n for n, other in enumerate(others)]
    return [other if numbers[other] == number else number for number, other in enumerate(numbers)]


def crop(seen: Seen, window: Window | None) -> Seen:
    """What is seen of the image in a window; boxes are cut at its border, masks too.

    Objects whose centre is outside are dropped (SSD, section 2.2). What is to be ignored, and
    proposals, are dropped only where nothing of them is left. Keypoints outside are out of sight:
    0, 0, 0 as COCO writes them.
    """
    if window is None:
        return seen
    top, left, height, width = window
    cut = _changed(seen, lambda part: functional.crop(part, *window))
    corners = torch.tensor([(left, top, left + width, top + height)])
    there = (seen.truth.labels < 0) | centres_inside(seen.truth.boxes, corners)[0]
    # Not a view, which would keep all of the image in memory.
    cut = replace(cut, pixels=cut.pixels.contiguous())
    cut = cut.only(there & _has_area(cut.truth.boxes), _has_area(cut.proposals))
    if cut.keypoints is None:
        return cut
    places = cut.keypoints[..., :2] + 0.5
    inside = ((places >= 0) & (places < torch.tensor((width, height)))).all(dim=-1, keepdim=True)
    return replace(cut, keypoints=cut.keypoints.where(inside, 0))


def centres_inside(boxes: Tensor, windows: Tensor) -> Tensor:
    """(T, G) whether windows (T, 4) x1 y1 x2 y2 have the centres of boxes (G, 4) inside."""
    centres, corners = (boxes[:, :2] + boxes[:, 2:]) / 2, windows[:, None]
    return ((centres > corners[..., :2]) & (centres < corners[..., 2:])).all(dim=2)


def _changed(seen: Seen, change: Callable[[Tensor], Tensor]) -> Seen:
    """Everything that has a place in the image, changed by its kind."""

    def plain(part: Tensor) -> Tensor:
        return change(part).as_subclass(Tensor)

    def boxes(values: Tensor) -> Tensor:
        made: Tensor = tv_tensors.BoundingBoxes(values, format="XYXY", canvas_size=seen.size)
        return plain(made)

    masks, keypoints = seen.masks, seen.keypoints
    if masks is not None:
        masks = plain(tv_tensors.Mask(masks))
    if keypoints is not None:
        places = plain(tv_tensors.KeyPoints(keypoints[..., :2], canvas_size=seen.size))
        seen_or_not = keypoints[..., 2:]
        keypoints = torch.cat((places, seen_or_not), dim=-1).where(seen_or_not > 0, 0)
    return Seen(
        plain(tv_tensors.Image(seen.pixels)),
        Truth(boxes(seen.truth.boxes), seen.truth.labels),
        boxes(seen.proposals),
        masks,
        keypoints,
    )


def _has_area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
