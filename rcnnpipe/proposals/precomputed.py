"""Boxes that another program made: .mat, .json and .npz files.

A file holds the boxes of many images, a folder one file for each image (``ID.mat`` or
``ID_boxes.mat``). What the numbers mean differs between programs and is a setting, `BoxFormat`.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rcnnpipe.datasets.records import Record
from rcnnpipe.errors import DataError
from rcnnpipe.proposals.boxfiles import SUFFIXES, read_box_file
from rcnnpipe.proposals.ranking import Proposed, distinct, scored

Columns = Literal["x1y1x2y2", "y1x1y2x2", "xywh"]


@dataclass(frozen=True)
class BoxFormat:
    """What the columns of a box file mean.

    Girshick's demo boxes are the default with `inclusive`; van de Sande's `SelectiveSearch` gives
    y1x1y2x2 with origin 1 and `inclusive`.

    Attributes:
        columns: their order; a fifth column is a score.
        origin: number of the first pixel, 0 or 1.
        inclusive: x2 and y2 are the last pixel inside, and do not lie one past it.
    """

    columns: Columns = "x1y1x2y2"
    origin: int = 0
    inclusive: bool = False


def to_continuous(values: npt.NDArray[np.float64], form: BoxFormat) -> npt.NDArray[np.float64]:
    """Boxes (R, 4) of a file as x1 y1 x2 y2, continuous, 0-based."""
    if form.columns == "y1x1y2x2":
        values = values[:, [1, 0, 3, 2]]
    corners = values - form.origin
    if form.columns == "xywh":  # w and h count pixels in either convention
        corners[:, 2:] = corners[:, :2] + values[:, 2:]
    elif form.inclusive:
        corners[:, 2:] += 1
    return corners


class PrecomputedBoxes:
    """The boxes of a file or folder, looked up by image.

    Attributes:
        left_out: how many boxes so far were smaller than asked for.
    """

    def __init__(self, path: Path, form: BoxFormat) -> None:
        """Read a file whole; the files of a folder are read when asked for.

        Raises:
            DataError: missing, of an unknown kind, or damaged.
        """
        self._path, self._form = path, form
        self._boxes: Mapping[str, npt.NDArray[np.float64]] | None = None
        self._continuous = False
        self.left_out = 0
        if path.is_dir():
            return
        if not path.exists():
            raise DataError(f"box file {path} does not exist")
        found = read_box_file(path)
        if found.only is not None:
            raise DataError(
                f"{path} holds the boxes of one image without its name; put such files into a "
                "folder, named ID.mat after their image, and pass the folder"
            )
        self._boxes, self._continuous = found.by_name, found.continuous

    def digest(self, records: tuple[Record, ...]) -> str:
        """A hash of the file, or of the folder's files of these images."""
        files = [self._path] if self._boxes is not None else [self._file_of(r) for r in records]
        whole = hashlib.sha256()
        for file in files:
            with file.open("rb") as stream:
                whole.update(hashlib.file_digest(stream, "sha256").digest())
        return whole.hexdigest()[:16]

    def check(self, records: tuple[Record, ...]) -> None:
        """Find images without boxes before any work is done.

        Raises:
            DataError: how many, and the first.
        """
        missing = [record.image_id for record in records if not self._has(record)]
        if missing:
            raise DataError(
                f"{self._path} has no boxes for {len(missing)} of {len(records)} images, "
                f"first '{missing[0]}'; images are looked up by their id and by their file's name"
            )

    def propose(self, record: Record, *, max_boxes: int = 2000, min_size: float = 20) -> Proposed:
        """Boxes and scores of one image, best first, by the file's scores or else in its order.

        Raises:
            DataError: boxes that are none, or lie outside the image.
        """
        values, place = self._values(record)
        if values.ndim != 2 or (values.size and values.shape[1] not in (4, 5)):
            raise DataError(
                f"{place}: boxes of shape {values.shape}, but 4 or 5 columns are needed"
            )
        values = values.reshape(-1, max(4, values.shape[1]))
        if not np.isfinite(values).all():
            raise DataError(f"{place}: a box or score is not a finite number")
        form = BoxFormat("xywh") if self._continuous else self._form
        boxes = _inside(to_continuous(values[:, :4], form), record, place)
        keep = ((boxes[:, 2:] - boxes[:, :2]) >= min_size).all(axis=1)
        self.left_out += int(np.count_nonzero(~keep))
        boxes = boxes[keep]
        if values.shape[1] == 4:
            return scored(boxes[distinct(boxes)[:max_boxes]])
        scores = values[keep, 4].astype(np.float32)
        order = np.argsort(-scores, kind="stable")
        order = order[distinct(boxes[order])[:max_boxes]]
        return Proposed(boxes[order], scores[order])

    def _names(self, record: Record) -> tuple[str, ...]:
        return record.image_id, record.path.stem, record.path.name

    def _has(self, record: Record) -> bool:
        if self._boxes is not None:
            return any(name in self._boxes for name in self._names(record))
        return self._file_of(record).exists()

    def _file_of(self, record: Record) -> Path:
        stems = [f"{name}{end}" for name in self._names(record)[:2] for end in ("", "_boxes")]
        files = [self._path / f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES]
        return next((file for file in files if file.is_file()), files[0])

    def _values(self, record: Record) -> tuple[npt.NDArray[np.float64], str]:
        """The numbers of an image, and where they stand, for messages."""
        if self._boxes is not None:
            name = next(name for name in self._names(record) if name in self._boxes)
            return self._boxes[name], f"image '{name}' in {self._path}"
        file = self._file_of(record)
        found = read_box_file(file)
        values: Any = found.only
        if values is None and len(found.by_name) == 1:
            values = next(iter(found.by_name.values()))
        if values is None:
            raise DataError(
                f"{file} holds {len(found.by_name)} images, but a folder's files hold one"
            )
        return values, str(file)


def _inside(boxes: npt.NDArray[np.float64], record: Record, place: str) -> npt.NDArray[np.float32]:
    """Boxes clipped to the image; more than a pixel outside is a wrong convention, not rounding."""
    height, width = record.size
    empty = (boxes[:, 2:] <= boxes[:, :2]).any(axis=1)
    outside = (boxes[:, :2] < -1).any(axis=1) | (boxes[:, 2:] > (width + 1, height + 1)).any(axis=1)
    for fault, what in ((empty, "has no area"), (outside, f"leaves the {width} x {height} image")):
        if fault.any():
            number = int(np.argmax(fault))
            numbers = ", ".join(f"{value:g}" for value in boxes[number])
            raise DataError(
                f"{place}: box {number + 1}, {numbers} as x1 y1 x2 y2, {what}; "
                "check --columns, --origin and --inclusive"
            )
    low, high = np.zeros(4), np.array([width, height, width, height])
    return np.clip(boxes, low, high).astype(np.float32)
