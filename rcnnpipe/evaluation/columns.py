"""Ground truth and results as flat columns: what every metric works on.

One row per object or detection, whatever image it belongs to; no Python object per row, so that
half a million detections cost tens of megabytes. G objects, D detections, N images, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rcnnpipe.datasets.records import Dataset, Record
from rcnnpipe.errors import DataError

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Truth:
    """The annotated objects of a data set.

    Attributes:
        classes: (K + 1) names, ``classes[0] == "background"``.
        image_ids: (N) in the order that breaks ties between equal scores.
        sizes: (N, 2) int64 height, width.
        images: (G,) index into ``image_ids``.
        labels: (G,) in 1..K.
        boxes: (G, 4) float64 x1 y1 x2 y2, continuous, 0-based.
        extents: (G,) float64 width times height of the box, as its source states them.
        areas: (G,) float64 area of the object, which decides whether it is small or large.
        crowd: (G,) regions of many objects; they absorb detections and are never missed.
        ignored: (G,) neither reward nor cost: crowds, and difficult objects unless these count.
        segments: per object a COCO segmentation or None.
        keypoints: (G, P, 3) x, y, visibility, or None.
    """

    classes: tuple[str, ...]
    image_ids: tuple[str, ...]
    sizes: Integers
    images: Integers
    labels: Integers
    boxes: Floats
    extents: Floats
    areas: Floats
    crowd: Flags
    ignored: Flags
    segments: tuple[Any, ...] | None = None
    keypoints: Floats | None = None


@dataclass(frozen=True)
class Results:
    """What a detector found, in the order of its file.

    Attributes:
        images: (D,) index into the truth's ``image_ids``.
        labels: (D,) in 1..K.
        scores: (D,) higher is surer; any finite numbers.
        boxes: (D, 4) float64 x1 y1 x2 y2, continuous, 0-based.
        extents: (D,) float64 width times height.
        areas: (D,) float64 that decides whether an unmatched detection is small or large.
        segments: per detection a COCO segmentation, or None.
        keypoints: (D, P, 3), or None.
        notes: sentences about what was left out in reading.
    """

    images: Integers
    labels: Integers
    scores: Floats
    boxes: Floats
    extents: Floats
    areas: Floats
    segments: tuple[Any, ...] | None = None
    keypoints: Floats | None = None
    notes: tuple[str, ...] = field(default=())


def truth_of(dataset: Dataset, *, count_difficult: bool = False) -> Truth:
    """The ground truth of ``dataset`` in columns.

    Policy: difficult objects are ignored (PASCAL VOC devkit: neither needed nor false) unless
    ``count_difficult``; crowds are always ignored. Images of a COCO data set are taken in the order
    of their ids, as pycocotools does, because that order decides between equal scores.

    Raises:
        DataError: when the data set has no images, no objects, or none that counts.
    """
    records = _in_tie_order(dataset)
    if not records:
        raise DataError(f"{dataset.name} has no images to evaluate on; is this the right split?")
    counts = np.array([len(record.boxes) for record in records], np.int64)
    if counts.sum() == 0:
        raise DataError(
            f"{dataset.name} has no annotated objects in its {len(records)} images, so nothing can "
            "be evaluated; is this the right split?"
        )
    boxes = np.concatenate([record.boxes.reshape(-1, 4) for record in records]).astype(np.float64)
    crowd = np.concatenate([record.crowd for record in records])
    difficult = np.concatenate([record.difficult for record in records])
    ignored = crowd if count_difficult else crowd | difficult
    if ignored.all():
        raise DataError(
            f"{dataset.name} has crowds and difficult objects alone, which are neither to be found "
            "nor false when found, so nothing can be evaluated; is this the right split?"
        )
    return Truth(
        classes=dataset.classes,
        image_ids=tuple(record.image_id for record in records),
        sizes=np.array([record.size for record in records], np.int64).reshape(-1, 2),
        images=np.repeat(np.arange(len(records)), counts),
        labels=np.concatenate([record.labels for record in records]).astype(np.int64),
        boxes=boxes,
        extents=extents_of(boxes),
        areas=np.concatenate([record.areas for record in records]).astype(np.float64),
        crowd=crowd,
        ignored=ignored,
        segments=_segments(records),
        keypoints=_keypoints(records),
    )


def results_of(
    truth: Truth,
    images: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    scores: npt.NDArray[Any],
    boxes: npt.NDArray[Any],
    notes: Sequence[str] = (),
) -> Results:
    """Results from plain arrays: (D,) image indices of ``truth``, labels, scores, (D, 4) boxes.

    Raises:
        DataError: when a score or a box is not finite.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    scores = np.asarray(scores, np.float64)
    images = np.asarray(images, np.int64)
    faulty = np.flatnonzero(~(np.isfinite(scores) & np.isfinite(boxes).all(axis=1)))
    if len(faulty):
        raise DataError(
            "there are detections with a score or a box that is not a finite number "
            f"({len(faulty)}), the first in image {truth.image_ids[images[faulty[0]]]}; run the "
            "detector again"
        )
    extents = extents_of(boxes)
    return Results(
        images, np.asarray(labels, np.int64), scores, boxes, extents, extents, notes=tuple(notes)
    )


def extents_of(boxes: Floats) -> Floats:
    """Width times height (B,) of x1 y1 x2 y2 boxes (B, 4).

    A file that states x, y, width, height has been read as x + width; the difference of the corners
    can be off by one rounding, enough to miss a threshold that another evaluator just reaches. So
    a width of up to six decimals that leads to the same corner is taken for the stated one.
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    stated = np.round(sides, 6)
    sides = np.where(boxes[:, :2] + stated == boxes[:, 2:], stated, sides)
    extents: Floats = sides[:, 0] * sides[:, 1]
    return extents


def _in_tie_order(dataset: Dataset) -> tuple[Record, ...]:
    numeric = all(record.image_id.lstrip("-").isdecimal() for record in dataset.records)
    if dataset.source == "coco" and numeric:
        return tuple(sorted(dataset.records, key=lambda record: int(record.image_id)))
    return dataset.records


def _segments(records: Sequence[Record]) -> tuple[Any, ...] | None:
    if all(record.segments is None for record in records):
        return None
    return tuple(
        segment
        for record in records
        for segment in (record.segments or (None,) * len(record.boxes))
    )


def _keypoints(records: Sequence[Record]) -> Floats | None:
    points = {record.keypoints.shape[1] for record in records if record.keypoints is not None}
    if not points:
        return None
    blank = max(points)
    return np.concatenate(
        [
            np.zeros((len(record.boxes), blank, 3))
            if record.keypoints is None
            else record.keypoints
            for record in records
        ]
    ).astype(np.float64)
