"""Detections in the result files of other tools: COCO's json and PASCAL VOC's comp4 txt.

The numbers are written with digits enough to be read back as they were.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rcnnpipe.artifacts.detections import Detections
from rcnnpipe.artifacts.store import require_same_classes
from rcnnpipe.datasets.records import Dataset
from rcnnpipe.errors import ArtifactError, DataError
from rcnnpipe.ragged import rows_of
from rcnnpipe.report.files import whole_text


def write_coco_results(
    path: Path, source: Path, detections: Detections, dataset: Dataset
) -> tuple[int, bool]:
    """Write a COCO result json: one {image_id, category_id, bbox x y w h, score} a detection.

    Category ids are those of the data set's own numbering. Image ids become integers again where
    all of them are; else they stay the text they are. ``x + w`` and ``y + h`` in double precision
    give the exact corners of the artifact.

    Args:
        path: the file.
        source: the detections file, for messages.
        detections: what to write.
        dataset: what it was detected on; it may hold more images.

    Returns:
        The number of detections, and whether image ids are integers.

    Raises:
        ArtifactError: classes or images of the two do not fit.
    """
    _require_images(source, detections, dataset)
    integers = _integer_ids(dataset.image_ids)
    categories = dataset.category_ids or tuple(range(len(dataset.classes)))
    corners = detections.boxes.astype(np.float64)  # (R, 4)
    corners[:, 2:] -= corners[:, :2]  # x y w h
    with whole_text(path) as file:
        file.write("[")
        separator = "\n"
        for image, image_id in enumerate(detections.image_ids):
            rows = rows_of(detections.offsets, image)
            columns = (detections.labels, corners, detections.scores)
            for label, box, score in zip(*(c[rows].tolist() for c in columns), strict=True):
                row: dict[str, Any] = {
                    "image_id": integers[image_id] if integers else image_id,
                    "category_id": categories[label],
                    "bbox": box,
                    "score": score,
                }
                file.write(separator + json.dumps(row))
                separator = ",\n"
        file.write("\n]\n")
    return len(corners), bool(integers)


def write_comp4(folder: Path, detections: Detections, split: str, digits: int = 6) -> list[Path]:
    """Write ``comp4_det_SPLIT_CLASS.txt`` for every class: rows ``id score x1 y1 x2 y2``.

    Coordinates become 1-based inclusive pixels (x1 + 1, y1 + 1, x2, y2), as the devkit reads
    them. A class without detections gets an empty file, which the devkit needs too.

    Args:
        folder: made when it is missing; files of earlier runs are replaced.
        detections: what to write.
        split: part of the names, for example "test".
        digits: decimals of scores and coordinates; 6 is what the authors' code prints (%f).

    Raises:
        DataError: a class, the split or an image id cannot stand in such a name or row.
    """
    _require_words(detections, split)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    row = "{} " + " ".join([f"{{:.{digits}f}}"] * 5) + "\n"
    corners = detections.boxes + np.array([1, 1, 0, 0], np.float64)
    for label, name in enumerate(detections.classes):
        if label == 0:
            continue
        path = folder / f"comp4_det_{split}_{name}.txt"
        with whole_text(path) as file:
            for image, image_id in enumerate(detections.image_ids):
                rows = rows_of(detections.offsets, image)
                mine = detections.labels[rows] == label
                scores = detections.scores[rows][mine].tolist()
                for score, box in zip(scores, corners[rows][mine].tolist(), strict=True):
                    file.write(row.format(image_id, score, *box))
        paths.append(path)
    return paths


def _require_images(source: Path, detections: Detections, dataset: Dataset) -> None:
    require_same_classes(str(source), detections.classes, dataset.name, dataset.classes)
    known = set(dataset.image_ids)
    strange = [image_id for image_id in detections.image_ids if image_id not in known]
    if strange:
        raise ArtifactError(
            f"{source} has {len(strange)} images that {dataset.name} has not, the first is "
            f"'{strange[0]}'; name the data and split that it was made for"
        )
    labels = detections.labels
    if len(labels) and not (1 <= labels.min() and labels.max() < len(dataset.classes)):
        raise ArtifactError(f"{source} is damaged (labels that stand for no class); make it again")


def _integer_ids(image_ids: Sequence[str]) -> dict[str, int]:
    """Image ids as integers; empty unless all of them are, and stay different."""
    if not all(image_id.isdecimal() and image_id.isascii() for image_id in image_ids):
        return {}
    integers = {image_id: int(image_id) for image_id in image_ids}
    return integers if len(set(integers.values())) == len(integers) else {}


def _require_words(detections: Detections, split: str) -> None:
    for what, words in (("class", detections.classes[1:]), ("split", (split,))):
        wrong = [word for word in words if not word or "/" in word or "\\" in word or "\0" in word]
        if wrong:
            raise DataError(f"the {what} '{wrong[0]}' cannot be part of a file name; rename it")
    blank = [image_id for image_id in detections.image_ids if len(image_id.split()) != 1]
    if blank:
        raise DataError(
            f"the image id '{blank[0]}' holds blanks, which separate the columns of VOC's rows; "
            "rename the image or export with --format coco"
        )
