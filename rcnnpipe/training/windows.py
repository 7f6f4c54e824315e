"""Windows to learn from: one list over all images, and what each iteration draws from it.

Vocabulary: T windows of N images, B windows of a batch. Labels: 0 background, 1..K the classes, -1
neither.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rcnnpipe.datasets.policy import training_labels
from rcnnpipe.datasets.records import Record
from rcnnpipe.errors import DataError, SettingError
from rcnnpipe.matching import match
from rcnnpipe.randomness import generator
from rcnnpipe.systems.rcnn import Sampling

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Windows:
    """All windows of a data set.

    Attributes:
        boxes: (T, 4) float32 x1 y1 x2 y2, original image.
        images: (T,) int32, the number of the image each lies in.
        labels: (T,) int32.
        foreground: rows with a label of 1..K.
        background: rows with label 0.
    """

    boxes: Floats
    images: npt.NDArray[np.int32]
    labels: npt.NDArray[np.int32]
    foreground: Integers
    background: Integers


def label_windows(
    records: Iterable[Record],
    proposals: Iterable[Floats],
    classes: int,
    sampling: Sampling,
    policy: Mapping[str, Any],
) -> Iterator[tuple[Floats, Integers]]:
    """For each image its windows, the annotated objects first, and what they are.

    Args:
        records: N images.
        proposals: of each image, (P, 4).
        classes: K.
        sampling: its two overlaps are used.
        policy: keywords of :func:`training_labels`, what happens to flagged objects.

    Yields:
        boxes (T_i, 4) and labels (T_i,) of one image.
    """
    for record, boxes in zip(records, proposals, strict=True):
        truth = training_labels(record, **policy)
        own = record.boxes[truth > 0].astype(np.float32)
        windows = np.concatenate((own, boxes))
        found = match(windows, record.boxes, truth, classes)
        labels = sampled_labels(found.overlap, found.labels, sampling)
        # Of two objects in the same place each is itself, whichever the matching prefers.
        labels[: len(own)] = truth[truth > 0]
        yield windows, labels


def sampled_labels(overlap: np.ndarray[Any, Any], labels: Integers, sampling: Sampling) -> Integers:
    """What windows (T,) are to training: 1..K, 0 for background, -1 for neither.

    Args:
        overlap: (T,) largest IoU with an object.
        labels: (T,) class of that object, 0 for none, -1 in a region to ignore.
        sampling: its overlaps are used.
    """
    foreground = (overlap >= sampling.foreground_overlap) & (labels > 0)
    background = (overlap < sampling.background_overlap) & (labels >= 0)
    background &= overlap >= sampling.background_from
    return np.select([foreground, background], [labels, 0], -1)


def gather_windows(labelled: Iterable[tuple[Floats, Integers]], sampling: Sampling) -> Windows:
    """Put the windows of all images together, in order.

    Raises:
        DataError: a list that batches draw from would be empty.
    """
    boxes: list[Floats] = [np.empty((0, 4), np.float32)]
    labels = [np.empty(0, np.int32)]
    counts = []
    for own, what in labelled:
        boxes.append(own)
        labels.append(what.astype(np.int32))
        counts.append(len(own))
    column = np.concatenate(labels)
    windows = Windows(
        np.concatenate(boxes),
        np.repeat(np.arange(len(counts), dtype=np.int32), counts),
        column,
        np.flatnonzero(column > 0),
        np.flatnonzero(column == 0),
    )
    check_lists(windows, sampling, len(counts))
    return windows


def check_lists(windows: Windows, sampling: Sampling, images: int) -> None:
    """Make sure that there is something to draw.

    Raises:
        DataError: a list that batches draw from is empty.
    """
    of = f"of the {images} images"
    if sampling.foreground > 0 and len(windows.foreground) == 0:
        raise DataError(f"none {of} has an object to learn from; take a split with annotations")
    if sampling.foreground < sampling.batch_size and len(windows.background) == 0:
        raise no_background(sampling, images)


def no_background(sampling: Sampling, images: int) -> DataError:
    """That no region of any image is background."""
    least = f"at least {sampling.background_from} and " if sampling.background_from else ""
    return DataError(
        f"none of the {images} images has a region with an overlap of {least}below "
        f"{sampling.background_overlap}, so there is no background to learn from; take more "
        "--proposals, or raise --max-proposals"
    )


def check_sampling(sampling: Sampling, shares: int) -> None:
    """Make sure that every share of a batch can have at least one window.

    Raises:
        SettingError: names the settings that do not fit.
    """
    if not 0 <= sampling.foreground <= sampling.batch_size:
        raise SettingError(
            f"--foreground {sampling.foreground} is not within a batch of {sampling.batch_size}"
        )
    if sampling.background_overlap > sampling.foreground_overlap:
        raise SettingError(
            f"--background-overlap {sampling.background_overlap} is above --foreground-overlap "
            f"{sampling.foreground_overlap}: a window would be both"
        )
    if sampling.background_from >= sampling.background_overlap > 0:
        raise SettingError(
            f"--background-from {sampling.background_from} is not below --background-overlap "
            f"{sampling.background_overlap}: no window would be background"
        )
    if sampling.batch_size < shares:
        raise SettingError(
            f"a batch of {sampling.batch_size} cannot be shared by {shares} ranks and parts; raise "
            "--batch-size, or lower --accumulate or the number of ranks"
        )


@dataclass(frozen=True)
class Draw:
    """The B windows of one iteration, foreground first.

    Attributes:
        rows: (B,) into :class:`Windows`.
        flip: (B,) bool, which are mirrored.
    """

    rows: Integers
    flip: npt.NDArray[np.bool_]

    def part(self, number: int, parts: int) -> "Draw":
        """Every ``parts``-th window, from ``number`` on: equal shares of foreground."""
        return Draw(self.rows[number::parts], self.flip[number::parts])


def draw_batch(windows: Windows, sampling: Sampling, seed: int, iteration: int) -> Draw:
    """What one iteration learns from; depends on nothing but the arguments."""
    random = generator(seed, "finetune", iteration)
    rows = np.concatenate(
        (
            _choose(random, windows.foreground, sampling.foreground),
            _choose(random, windows.background, sampling.batch_size - sampling.foreground),
        )
    )
    flip = random.random(len(rows)) < 0.5
    return Draw(rows, flip & sampling.mirror)


def _choose(random: np.random.Generator, rows: Integers, count: int) -> Integers:
    if count == 0:
        return np.empty(0, np.int64)
    return rows[random.integers(len(rows), size=count)]


def by_image(windows: Windows, draw: Draw) -> list[tuple[int, Draw]]:
    """The drawn windows grouped by their image, images in ascending order."""
    images = windows.images[draw.rows]
    order = np.argsort(images, kind="stable")
    numbers, starts = np.unique(images[order], return_index=True)
    groups = np.split(order, starts[1:])
    return [
        (int(number), Draw(draw.rows[group], draw.flip[group]))
        for number, group in zip(numbers, groups, strict=True)
    ]


def image_ids_of(windows: Windows, draw: Draw, image_ids: Sequence[str]) -> list[str]:
    """Ids of the images that a batch's windows lie in."""
    return [image_ids[number] for number in np.unique(windows.images[draw.rows])]
