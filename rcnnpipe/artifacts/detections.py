"""The detections file: for each image, boxes with a class and a score."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rcnnpipe.artifacts.columns import read_rows
from rcnnpipe.artifacts.store import Header, open_artifact
from rcnnpipe.errors import ArtifactError

# What a RowWriter needs to write one.
COLUMNS = {"boxes": (np.float32, (4,)), "scores": (np.float32, ()), "labels": (np.int64, ())}


@dataclass(frozen=True)
class Detections:
    """R detections in N images, within each image by falling score.

    Attributes:
        header: of the file; ``header.classes[label]`` names a label.
        boxes: (R, 4) float32 x1 y1 x2 y2, continuous, original image.
        scores: (R,) float32; probabilities, or margins of an SVM (then negative ones occur).
        labels: (R,) int64 in 1..K.
        offsets: (N + 1,).
        image_ids: (N).
        sizes: (N, 2) height, width.
    """

    header: Header
    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    image_ids: tuple[str, ...]
    sizes: npt.NDArray[np.int64]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels, ``classes[0] == "background"``."""
        return self.header.classes


def read_candidates(path: Path) -> Detections:
    """What was there before suppression, from a file that kept it, as if it were detections.

    Raises:
        ArtifactError: the file is missing, damaged, something else, or has not kept them.
    """
    with open_artifact(path, "detections") as (header, file):
        if "candidates" not in file:
            raise ArtifactError(
                f"{path} keeps no candidates; run rcnnpipe detect with --keep-candidates"
            )
        images = {"image_ids": file["image_ids"], "sizes": file["sizes"]}
        (image_ids, sizes, offsets), columns = read_rows(
            path, images | dict(file["candidates"].items()), header, COLUMNS
        )
        return Detections(
            header=header, offsets=offsets, image_ids=image_ids, sizes=sizes, **columns
        )


def read_detections(path: Path) -> Detections:
    """Read a whole detections file.

    Raises:
        ArtifactError: it is missing, damaged or something else.
    """
    with open_artifact(path, "detections") as (header, file):
        (image_ids, sizes, offsets), columns = read_rows(path, file, header, COLUMNS)
        return Detections(
            header=header, offsets=offsets, image_ids=image_ids, sizes=sizes, **columns
        )
