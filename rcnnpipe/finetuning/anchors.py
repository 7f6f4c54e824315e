"""Whether an RPN's anchors suit the images and objects that it is to learn from.

Vocabulary: G objects, A anchors of all maps.
"""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from rcnnpipe.boxes import iou
from rcnnpipe.errors import SettingError
from rcnnpipe.models.parts import Parts
from rcnnpipe.models.rpn_targets import AnchorRules, inside
from rcnnpipe.training.image_batches import ImageSource

_log = logging.getLogger(__name__)
_FIT = 0.5  # IoU of an anchor in an object's very place
_NAMED = 5  # classes in a message


def require_anchors(source: ImageSource, parts: Parts, rules: AnchorRules) -> None:
    """Anchors over the border are not learnt from (Ren et al. 2015, section 3.3): some must fit.

    Raises:
        SettingError: none does.
    """
    view = source.view
    if rules.straddle != "drop" or parts.anchors is None:
        return
    originals = {record.size for record in source.records}
    sizes = {view.resized_size(x, view.scale_of(x, max(view.scales))) for x in originals}
    if not any(bool(inside(_anchors_of(parts, size), size).any()) for size in sizes):
        least = min(map(min, parts.anchors.sizes))
        raise SettingError(
            f"none of the RPN's anchors, from {least:g} pixels on, lies inside the images, resized "
            f"to {max(map(max, sizes))} pixels at most, and those that do not are not learnt from; "
            "lower --anchor-sizes, raise --scales, or take --straddle keep"
        )


def _anchors_of(parts: Parts, size: tuple[int, int]) -> Tensor:
    """Anchors (A, 4) of an image of (height, width), on maps of as many cells as it has strides."""
    assert parts.anchors is not None
    maps = [(-(-size[0] // down), -(-size[1] // across)) for down, across in parts.strides]
    return torch.cat(parts.anchors.boxes(maps, parts.anchor_strides(maps)))


def warn_of_unfit_anchors(source: ImageSource, parts: Parts, classes: Sequence[str]) -> None:
    """Tell of classes most of whose objects no anchor covers by half, were it in their place.

    They can hardly be learnt. Anchors are in pixels of the resized image, so that a smaller image
    needs smaller ones.

    Args:
        source: images and objects.
        parts: of the detector.
        classes: K + 1 names.
    """
    if parts.anchors is None:
        return
    resized, labels = _resized_objects(source)
    cells = [(1, 1)] * len(parts.anchors.sizes)
    anchors = _centred(torch.cat(parts.anchors.boxes(cells, parts.anchor_strides(cells))))
    best = torch.stack([iou(_centred(boxes), anchors).amax(dim=1) for boxes in resized])
    unfit = best.amax(dim=0) < _FIT
    of_class = [labels == number for number in range(1, len(classes))]
    missed = [
        k for k, own in enumerate(of_class, 1) if own.any() and unfit[own].float().mean() > 0.5
    ]
    if not missed:
        return
    names = ", ".join(classes[k] for k in missed[:_NAMED]) + (" ..." if missed[_NAMED:] else "")
    lengths = torch.stack([(own[:, 2:] - own[:, :2]).prod(dim=1).sqrt() for own in resized])
    usual = [float(lengths[:, of_class[k - 1]].median()) for k in missed]
    sizes = [size for level in parts.anchors.sizes for size in level]
    _log.warning(
        "anchors of %g to %g pixels fit few objects of %s, whose usual sides are %.0f to %.0f "
        "in the resized images: they will hardly be found; choose --anchor-sizes near that, or "
        "other --scales",
        *(min(sizes), max(sizes), names, min(usual), max(usual)),
    )


def _resized_objects(source: ImageSource) -> tuple[list[Tensor], Tensor]:
    """All objects (G, 4) resized to each scale, and their labels (G,)."""
    view = source.view
    truths = [source.truth_of(number) for number in range(len(source.records))]
    labels = torch.cat([truth.labels for truth in truths])
    resized = []
    for shorter in view.scales:
        pairs = zip(truths, source.records, strict=True)
        boxes = [truth.boxes * view.scale_of(record.size, shorter) for truth, record in pairs]
        resized.append(torch.cat(boxes)[labels > 0])
    return resized, labels[labels > 0]


def _centred(boxes: Tensor) -> Tensor:
    """Boxes (B, 4) moved to where their centre is (0, 0)."""
    half = (boxes[:, 2:] - boxes[:, :2]) / 2
    return torch.cat((-half, half), dim=1)
