"""Reading a features file for linear models: one image after another, a block ahead of the work.

Vocabulary: N images, R regions, D features of one layer, K classes.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from rcnnpipe.artifacts.features import Features
from rcnnpipe.errors import ArtifactError
from rcnnpipe.linear.thinning import RULES
from rcnnpipe.ragged import rows_of

Array = np.ndarray[Any, Any]
Item = TypeVar("Item")

# Features are scaled to this mean norm, for which C and lambda were chosen (rcnn_scale_features.m).
TARGET_NORM = 20.0
# Large beside a chunk, so that few chunks are unpacked twice; small beside memory.
_BLOCK_BYTES = 2**25


@dataclass(frozen=True)
class ImageRows:
    """What mining needs of one image with r regions.

    Attributes:
        first: number of its first row in the file.
        features: (r, D) as stored, unscaled.
        overlaps: (r, K) float32, largest IoU with any object of each class; 1 throughout for
            regions to ignore, which are nobody's negatives.
    """

    first: int
    features: Array
    overlaps: npt.NDArray[np.float32]


def feature_scale(features: Features, layer: str) -> float:
    """Factor that brings a layer to mean norm 20; it belongs to this layer of this file alone.

    Raises:
        ArtifactError: the file's mean norm is no positive number.
    """
    norm = features.mean_norm(layer)
    if not (np.isfinite(norm) and norm > 0):
        raise ArtifactError(
            f"{features.path} has mean norm {norm:g} in layer '{layer}', so its features cannot be "
            "scaled; look at it with rcnnpipe inspect and extract them again"
        )
    return TARGET_NORM / norm


def positive_rows(features: Features, layer: str, *, difficult: bool = True) -> list[Array]:
    """Features (P_k, D) of the ground truth of each of the K classes, unscaled.

    Ground truth stands first in each image, so this touches a few rows of an image only.

    Args:
        features: an open features file.
        layer: name of the layer.
        difficult: whether objects marked difficult count (the authors keep them).
    """
    wanted = features.is_truth & (features.labels > 0)
    if not difficult:
        wanted &= ~features.difficult
    width, classes = features.layers[layer], features.overlaps.shape[1]
    found: list[list[Array]] = [[np.empty((0, width), np.float16)] for _ in range(classes)]
    for image in range(len(features.image_ids)):
        rows = rows_of(features.offsets, image)
        truths = rows.start + np.flatnonzero(wanted[rows])
        if len(truths) == 0:
            continue
        values = features.rows(layer, slice(int(truths[0]), int(truths[-1]) + 1))
        if not np.isfinite(values).all():
            raise ArtifactError(
                f"{features.path} has features that are no finite numbers in layer '{layer}' of "
                f"image '{features.image_ids[image]}'; extract them again"
            )
        for row in truths:
            found[features.labels[row] - 1].append(values[row - truths[0]][None])
    return [np.concatenate(rows) for rows in found]


def image_rows(features: Features, layer: str, thin: str = "none") -> Iterator[ImageRows]:
    """All images in order, read in blocks by a thread that stays ahead of the caller.

    Images without regions may be left out.

    Args:
        features: an open features file.
        layer: name of the layer.
        thin: a key of :data:`rcnnpipe.linear.thinning.RULES`: which of the regions that are nearly
            the same are nobody's negatives.
    """
    kept = RULES[thin]
    for start, values in ahead(_blocks(features, layer)):
        position = 0
        image = start
        while position < len(values) or image == start:
            rows = rows_of(features.offsets, image)
            end = position + rows.stop - rows.start
            ignored = (features.labels[rows] < 0) | ~kept(features, rows)
            overlaps = np.where(ignored[:, None], np.float32(1), features.overlaps[rows])
            yield ImageRows(rows.start, values[position:end], overlaps)
            position, image = end, image + 1


def _blocks(features: Features, layer: str) -> Iterator[tuple[int, Array]]:
    """First image and rows of each block of whole images; images without rows are passed over."""
    offsets = features.offsets
    most = max(1, _BLOCK_BYTES // (2 * features.layers[layer]))
    images = np.flatnonzero(np.diff(offsets))
    index = 0
    while index < len(images):
        first = images[index]
        # As many images as fit, at least one; empty ones in between take no rows.
        index = max(index + 1, int(np.searchsorted(offsets[images + 1], offsets[first] + most)))
        last = images[index - 1]
        yield int(first), features.rows(layer, slice(int(offsets[first]), int(offsets[last + 1])))


def ahead(items: Iterable[Item], depth: int = 2) -> Iterator[Item]:
    """Yield the items while a thread makes the next ``depth``; its errors are raised here."""
    iterator = iter(items)
    end = object()
    pool = ThreadPoolExecutor(1)
    try:
        waiting = deque(pool.submit(next, iterator, end) for _ in range(depth))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, iterator, end))
            yield item  # type: ignore[misc]
    finally:
        pool.shutdown(cancel_futures=True)
