"""Proposals in plain files, for other tools and to be taken in again."""

import json
from pathlib import Path

import numpy as np

from rcnnpipe.artifacts.proposals import Proposals
from rcnnpipe.ragged import rows_of
from rcnnpipe.report.files import whole_file, whole_text


def write_npz(path: Path, proposals: Proposals) -> None:
    """Arrays ``image_ids`` (N), ``offsets`` (N + 1), ``boxes`` (R, 4) x1 y1 x2 y2, ``scores`` (R).

    Coordinates are continuous and 0-based, as in the artifact.
    """
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez_compressed(
            file,
            image_ids=np.array(proposals.image_ids),
            offsets=proposals.offsets,
            boxes=proposals.boxes,
            scores=proposals.scores,
        )


def write_json(path: Path, proposals: Proposals) -> None:
    """``{"IMAGE_ID": [[x1, y1, x2, y2, score], ...], ...}``, an image a line.

    Coordinates are continuous and 0-based, as in the artifact.
    """
    with whole_text(path) as file:
        separator = "{\n"
        for image, image_id in enumerate(proposals.image_ids):
            rows = rows_of(proposals.offsets, image)
            entry = np.column_stack((proposals.boxes[rows], proposals.scores[rows])).tolist()
            file.write(f"{separator}{json.dumps(image_id)}: {json.dumps(entry)}")
            separator = ",\n"
        file.write("\n}\n" if proposals.image_ids else "{}\n")
