"""Features of the regions of one image after another: decode ahead, compute, describe, summarise.

Vocabulary: R regions of an image, K classes, D length of one region's features in a layer.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rcnnpipe.ahead import ahead
from rcnnpipe.boxes import mirror
from rcnnpipe.datasets.pixels import read_pixels
from rcnnpipe.datasets.records import Record
from rcnnpipe.errors import RcnnpipeError
from rcnnpipe.matching import match
from rcnnpipe.randomness import generator

_log = logging.getLogger(__name__)
Array = np.ndarray[Any, Any]
Boxes = npt.NDArray[np.float32]
_PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_LARGEST_HALF = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Regions:
    """What to extract from one image.

    Attributes:
        record: of the image.
        boxes: (R, 4), continuous, on the image as it is or, if so, mirrored.
        mirrored: whether the image is mirrored left to right once it is decoded.
    """

    record: Record
    boxes: Boxes
    mirrored: bool = False


Decoded = tuple[Regions, npt.NDArray[np.uint8]]
Computed = tuple[Regions, dict[str, Tensor]]


class Extractor(Protocol):
    """A network that makes features of regions."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    def __call__(self, image: npt.NDArray[np.uint8], todo: Regions) -> dict[str, Tensor]:
        """Features of the regions of one image.

        Args:
            image: (H, W, 3) uint8 RGB.
            todo: its R regions.

        Returns:
            layer -> (R, D) float16 on the device, where CUDA may still be computing them, and
            further columns (R, ...) that say where they come from.
        """


@runtime_checkable
class SeveralExtractor(Extractor, Protocol):
    """An extractor that can look at several images of one size at once."""

    @property
    def images(self) -> int:
        """How many at most."""

    def several(
        self, images: Sequence[npt.NDArray[np.uint8]], todo: Sequence[Regions]
    ) -> list[dict[str, Tensor]]:
        """What a call gives for each of several images of one size."""


def arithmetic(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """The context in which a network computes in a precision: fp32, bf16 or fp16."""
    dtype = _PRECISIONS[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def as_stored(values: Tensor) -> Tensor:
    """Features (R, ...) as (R, D) float16; what is beyond its range stays finite."""
    return values.flatten(1).float().clamp(-_LARGEST_HALF, _LARGEST_HALF).half()


def mirrored(regions: Regions) -> Regions:
    """The same regions and objects on the mirrored image, which has an id of its own."""
    record = regions.record
    own = replace(
        record,
        image_id=f"{record.image_id}@mirrored",
        boxes=mirror(record.boxes, record.size[1]),
    )
    return Regions(own, mirror(regions.boxes, record.size[1]), mirrored=True)


def extract(
    extractor: Extractor, regions: Iterable[Regions], workers: int
) -> Iterator[tuple[Regions, dict[str, Array]]]:
    """Features of all regions of all images, in order.

    Images are decoded ahead by ``workers`` threads; on CUDA, an image is computed while the one
    before is fetched.

    Yields:
        the regions, and layer -> (R, D) float16.
    """
    computing: Computed | None = None
    for started in _computed(extractor, ahead(_decode, regions, workers)):
        if extractor.device.type != "cuda":
            yield _fetched(*started)
            continue
        if computing is not None:
            yield _fetched(*computing)
        computing = started
    if computing is not None:
        yield _fetched(*computing)


def _computed(extractor: Extractor, decoded: Iterator[Decoded]) -> Iterator[Computed]:
    """Features of one image after another, or of those of one size among the next few at once.

    "The next few" are counted from the first image, so that going on later makes the same batches.
    """
    if not isinstance(extractor, SeveralExtractor) or extractor.images == 1:
        yield from ((todo, extractor(image, todo)) for todo, image in decoded)
        return
    while some := list(islice(decoded, extractor.images)):
        found: dict[int, dict[str, Tensor]] = {}
        for size in dict.fromkeys(image.shape for _, image in some):
            alike = [number for number, (_, image) in enumerate(some) if image.shape == size]
            images, todo = [some[i][1] for i in alike], [some[i][0] for i in alike]
            found |= dict(zip(alike, extractor.several(images, todo), strict=True))
        yield from ((todo, found[number]) for number, (todo, _) in enumerate(some))


def _decode(todo: Regions) -> Decoded:
    pixels = read_pixels(todo.record)
    return todo, np.ascontiguousarray(pixels[:, ::-1]) if todo.mirrored else pixels


def _fetched(todo: Regions, values: Mapping[str, Tensor]) -> tuple[Regions, dict[str, Array]]:
    found = {layer: tensor.cpu().numpy() for layer, tensor in values.items()}
    for layer, features in found.items():
        if not np.isfinite(features).all():
            raise RcnnpipeError(
                f"layer {layer} of image {todo.record.image_id} holds values that are no numbers; "
                "check the weights, or use --precision fp32"
            )
    return todo, found


def region_columns_of(
    record: Record, labels: Array, proposals: Boxes, classes: int, with_truth: bool = True
) -> dict[str, Array]:
    """The columns of a features file for one image: its objects first, then the proposals.

    Args:
        record: of the image.
        labels: (G,) of its objects as training sees them: -1 marks one to ignore.
        proposals: (P, 4).
        classes: K.
        with_truth: whether the objects themselves are regions too (they are the SVM's positives).
    """
    rows = np.flatnonzero(labels > 0) if with_truth else np.empty(0, np.int64)
    boxes = np.concatenate((record.boxes[rows], proposals)).astype(np.float32)
    found = match(boxes, record.boxes, labels, classes)
    is_truth = np.arange(len(boxes)) < len(rows)
    row_of = np.full(len(labels) + 1, -1)  # object -> row; the last entry serves "no object"
    row_of[rows] = np.arange(len(rows))
    truth = row_of[found.truth]
    # Of two objects in the same place each is itself, whichever the matching prefers.
    truth[: len(rows)] = np.arange(len(rows))
    found.labels[: len(rows)] = labels[rows]
    return {
        "boxes": boxes,
        "is_truth": is_truth,
        "difficult": np.concatenate((record.difficult[rows], np.zeros(len(proposals), bool))),
        "labels": found.labels,
        "overlap": found.overlap,
        "overlaps": found.overlaps,
        "truth": truth,
    }


def mean_norm(norms: Array, offsets: Array, images: int = 200, regions: int = 200) -> float:
    """Mean L2 norm of features over random regions of random images.

    Girshick's ``rcnn_feature_stats.m``: 200 images, 200 regions of each, seed 3. (The generator is
    numpy's, so the draw is not MATLAB's.)

    Args:
        norms: (R,) of all regions.
        offsets: (N + 1,).
        images: how many images at most.
        regions: how many regions of each at most.
    """
    random = generator(3, "feature statistics")
    chosen = random.permutation(len(offsets) - 1)[:images]
    picked = []
    for image in chosen:
        rows = norms[offsets[image] : offsets[image + 1]]
        picked.append(random.permutation(rows)[:regions])
    values = np.concatenate(picked) if picked else np.empty(0)
    return float(values.mean(dtype=np.float64)) if len(values) else 0.0


def bytes_needed(rows: int, layers: Mapping[str, int]) -> int:
    """Bytes of the layers of a features file before compression (float16)."""
    return sum(2 * rows * length for length in layers.values())
