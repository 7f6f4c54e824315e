"""What a data set is in memory: its classes, and for each image a record of its objects."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

BACKGROUND = "background"


@dataclass(frozen=True)
class Record:
    """One image and its G annotated objects; G = 0 is a valid negative image.

    Attributes:
        image_id: unique within the data set; the file's path below the image folder without suffix
            for VOC, YOLO and folders, the id for COCO.
        path: the image file.
        size: (height, width) in pixels, as the annotation or the image header says.
        boxes: (G, 4) float64 x1 y1 x2 y2, continuous, 0-based (exactly as annotated; float32 where
            computed with).
        labels: (G,) int64 in 1..K.
        difficult, truncated, crowd: (G,) bool flags, as annotated.
        areas: (G,) float64 square pixels: COCO's ``area`` where there is one, else of the box.
        segments: per object a COCO segmentation (polygons, or an RLE with ``size`` and ``counts``),
            or None.
        keypoints: (G, P, 3) float64 x, y, visibility, or None where the data set has none.
    """

    image_id: str
    path: Path
    size: tuple[int, int]
    boxes: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    difficult: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]
    crowd: npt.NDArray[np.bool_]
    areas: npt.NDArray[np.float64]
    segments: tuple[Any, ...] | None = None
    keypoints: npt.NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        """Every column has one row for each object."""
        columns = (self.labels, self.difficult, self.truncated, self.crowd, self.areas)
        lengths = {len(self.boxes), *(len(column) for column in columns)}
        if self.segments is not None:
            lengths.add(len(self.segments))
        if self.keypoints is not None:
            lengths.add(len(self.keypoints))
        assert len(lengths) == 1, f"{self.image_id}: columns of {sorted(lengths)} rows"


@dataclass(frozen=True)
class Dataset:
    """Records in a fixed order, with the classes their labels stand for.

    Attributes:
        name: for messages and plots.
        classes: ``classes[0] == "background"``; ``classes[label]`` names a label.
        category_ids: (K + 1) the ids of the source's own numbering (COCO's are sparse); index 0
            unused.
        keypoint_names: names of the P keypoints, empty where there are none.
        source: the kind it was read from: voc, coco, yolo, folder.
    """

    name: str
    classes: tuple[str, ...]
    records: tuple[Record, ...]
    split: str | None = None
    category_ids: tuple[int, ...] = ()
    keypoint_names: tuple[str, ...] = ()
    source: str = "folder"
    lineage: tuple[str, ...] = ()
    _identity: list[str] = field(default_factory=list, repr=False, compare=False)

    @property
    def image_ids(self) -> tuple[str, ...]:
        """Ids of all images, in order."""
        return tuple(record.image_id for record in self.records)

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Sizes (N, 2) of all images as height, width, in order."""
        return np.array([record.size for record in self.records], np.int64).reshape(-1, 2)

    @property
    def id(self) -> str:
        """A hash of the annotations and the image list: what a stage's result depends on.

        Image bytes are not part of it (DVC tracks those), paths are not (a data set may move).
        """
        if not self._identity:
            self._identity.append(_identity_of(self))
        return self._identity[0]


def _identity_of(dataset: Dataset) -> str:
    digest = hashlib.sha256(json.dumps(["dataset/1", dataset.classes]).encode())
    for record in dataset.records:
        digest.update(json.dumps([record.image_id, record.size]).encode())
        for column in (
            record.boxes,
            record.labels,
            record.difficult,
            record.truncated,
            record.crowd,
            record.areas,
        ):
            digest.update(np.ascontiguousarray(column).tobytes())
        if record.segments is not None:
            digest.update(json.dumps(record.segments, sort_keys=True, default=_plain).encode())
        if record.keypoints is not None:
            digest.update(np.ascontiguousarray(record.keypoints).tobytes())
    return digest.hexdigest()[:16]


def _plain(value: Any) -> Any:
    """JSON for what COCO segmentations may hold besides lists: compressed RLE counts as bytes."""
    if isinstance(value, bytes):
        return value.decode("ascii")
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(type(value).__name__)
