"""Which regions box regression learns from, and their features, by class, in one reading."""

import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rcnnpipe.artifacts.features import Features
from rcnnpipe.errors import ArtifactError
from rcnnpipe.linear.cache import ImageRows
from rcnnpipe.ragged import image_of_rows

Array = np.ndarray[Any, Any]

# Features of all examples are kept in memory up to this size, beyond it in a temporary file.
_MEMORY = 2**31


@dataclass(frozen=True)
class Choice:
    """The n regions that box regression learns from.

    Attributes:
        rows: (n,) int64 rows of the features file, by class, then rising.
        objects: (n,) int64 rows of the ground truth that they should become.
        offsets: (K + 1,) where each class begins in ``rows``.
    """

    rows: npt.NDArray[np.int64]
    objects: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]


def choose_examples(features: Features, above: float = 0.6, pixel: float = 1.0) -> Choice:
    """Regions that overlap an object by more than ``above``, under the class of that object.

    A region belongs to the object it overlaps most. Ground truth is among them (the authors'
    ``rcnn_train_bbox_regressor.m``); they collect from 0.6 on and train on what is above it.

    Args:
        features: an open features file.
        above: the overlap.
        pixel: regions and objects no wider or higher than this have no size to learn from.

    Raises:
        ArtifactError: the file has no ground truth rows for regions that overlap some.
    """
    chosen = (features.overlap > above) & (features.labels > 0)
    if (features.truth[chosen] < 0).any():
        raise ArtifactError(
            f"{features.path} lacks the ground truth its regions overlap with; run rcnnpipe "
            "extract-features with --truth"
        )
    rows = np.flatnonzero(chosen)
    objects = features.offsets[image_of_rows(features.offsets)[rows]] + features.truth[rows]
    sides = [features.boxes[part][:, 2:] - features.boxes[part][:, :2] for part in (rows, objects)]
    sized = (np.minimum(*sides) > pixel).all(axis=1)
    rows, objects = rows[sized], objects[sized]
    order = np.argsort(features.labels[rows], kind="stable")
    classes = np.arange(1, len(features.header.classes) + 1)
    offsets = np.searchsorted(features.labels[rows[order]], classes)
    return Choice(rows[order], objects[order], offsets)


def collect_features(
    images: Iterable[ImageRows], choice: Choice, width: int, spill: Path | None = None
) -> Array:
    """Features (n, D) float16 of the chosen regions, by class, from one reading.

    Args:
        images: all images in order.
        choice: the regions.
        width: D.
        spill: folder for a temporary file when they do not fit into 2 GiB of memory.

    Raises:
        OSError: no room for that file.
    """
    found = _room(len(choice.rows), width, spill)
    order = np.argsort(choice.rows)
    rising = choice.rows[order]
    for image in images:
        ends = (image.first, image.first + len(image.features))
        start, stop = np.searchsorted(rising, ends)
        found[order[start:stop]] = image.features[rising[start:stop] - image.first]
    return found


def _room(count: int, width: int, spill: Path | None) -> Array:
    size = 2 * count * width
    if size <= _MEMORY or spill is None:
        return np.empty((count, width), np.float16)
    with tempfile.TemporaryFile(dir=spill) as file:
        # A full disk is an error here; in a mapped file with holes it would end the process.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        return np.memmap(file, np.float16, "r+", shape=(count, width))
