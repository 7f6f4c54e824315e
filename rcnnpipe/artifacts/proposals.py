"""The proposals file: for each image, class-agnostic boxes with scores, best first."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rcnnpipe.artifacts.columns import read_rows
from rcnnpipe.artifacts.store import Header, open_artifact

# What a RowWriter needs to write one.
COLUMNS = {"boxes": (np.float32, (4,)), "scores": (np.float32, ())}


@dataclass(frozen=True)
class Proposals:
    """R boxes of N images, within each image by falling score.

    Attributes:
        header: of the file.
        boxes: (R, 4) float32 x1 y1 x2 y2, continuous, original image.
        scores: (R,) float32, comparable within an image only.
        offsets: (N + 1,).
        image_ids: (N).
        sizes: (N, 2) height, width.
    """

    header: Header
    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    offsets: npt.NDArray[np.int64]
    image_ids: tuple[str, ...]
    sizes: npt.NDArray[np.int64]


def read_proposals(path: Path) -> Proposals:
    """Read a whole proposals file.

    Raises:
        ArtifactError: it is missing, damaged or something else.
    """
    with open_artifact(path, "proposals") as (header, file):
        (image_ids, sizes, offsets), columns = read_rows(path, file, header, COLUMNS)
        return Proposals(
            header=header, offsets=offsets, image_ids=image_ids, sizes=sizes, **columns
        )
