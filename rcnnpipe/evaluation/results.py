"""COCO result json of any detector, into flat columns; what cannot be placed is refused."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rcnnpipe.errors import DataError, some_of
from rcnnpipe.evaluation.columns import Floats, Integers, Results, Truth, results_of

Region = Literal["boxes", "masks", "keypoints"]
_KEYS: Mapping[Region, str] = {
    "boxes": "bbox",
    "masks": "segmentation",
    "keypoints": "keypoints",
}
Row = dict[str, Any]


def read_coco_results(
    path: Path, truth: Truth, category_ids: Sequence[int] = (), region: Region = "boxes"
) -> Results:
    """Read a COCO result file: a list of {image_id, category_id, score, bbox x y w h}.

    Categories the data set does not have are left out, with a note.

    Args:
        path: the json file.
        truth: whose images and classes the results are about.
        category_ids: (K + 1) the data set's category ids by label; without them labels 1..K.
        region: what to read of each row: ``bbox``, ``segmentation`` or ``keypoints``.

    Raises:
        DataError: not such a file, empty, an image the data set does not have, no category in
            common, or a number that is not finite.
    """
    rows = _load(path)
    key = _KEYS[region]
    for number, row in enumerate(rows):
        missing = {"image_id", "category_id", "score", key} - set(row if _is_row(row) else ())
        if missing:
            raise DataError(
                f"{path}: row {number} has no {' or '.join(sorted(missing))}; each row needs "
                f"image_id, category_id, score and {key}"
            )
    labels, notes = _labels(path, rows, truth, category_ids)
    known = np.flatnonzero(labels).tolist()
    rows, labels = [rows[number] for number in known], labels[known]
    images = _images(path, rows, truth)
    scores = _numbers(path, rows, "score", None)
    if region == "boxes":
        return _boxes(path, rows, truth, images, labels, scores, notes)
    blank = np.zeros((len(rows), 4))
    results = results_of(truth, images, labels, scores, blank, notes)
    if region == "masks":
        return replace(results, segments=tuple(row[key] for row in rows))
    return _keypoints(path, rows, truth, results)


def _load(path: Path) -> list[Row]:
    try:
        rows = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error})") from None
    if isinstance(rows, dict) and "annotations" in rows:
        raise DataError(
            f"{path} is a COCO annotation file; results are a plain list of detections with scores"
        )
    if not isinstance(rows, list):
        raise DataError(f"{path} is not a COCO result file, which is a list of detections")
    if not rows:
        raise DataError(f"{path} holds no detections, so there is nothing to evaluate")
    return rows


def _is_row(row: object) -> bool:
    return isinstance(row, dict)


def _labels(
    path: Path, rows: list[Row], truth: Truth, category_ids: Sequence[int]
) -> tuple[Integers, tuple[str, ...]]:
    """Label of each row, 0 for a category the data set does not have."""
    ids = category_ids or range(len(truth.classes))
    labels_of = {int(category): label for label, category in enumerate(ids) if label}
    try:
        labels = np.array([labels_of.get(row["category_id"], 0) for row in rows], np.int64)
    except TypeError:
        raise DataError(f"{path} has a category_id that is not a number") from None
    strange = sorted(
        {str(row["category_id"]) for row, label in zip(rows, labels, strict=True) if not label}
    )
    if not labels.any():
        named = [f"{id} ({truth.classes[label]})" for id, label in labels_of.items()]
        raise DataError(
            f"{path} has no category in common with the data set: its ids are {some_of(strange)}, "
            f"the data set's {some_of(named)}"
        )
    if not strange:
        return labels, ()
    count = int((labels == 0).sum())
    note = (
        f"{count} detections of categories the data set does not have ({some_of(strange)}) left out"
    )
    return labels, (note,)


def _images(path: Path, rows: list[Row], truth: Truth) -> Integers:
    numbers = image_numbers(truth)
    images = np.array([numbers.get(str(row["image_id"]), -1) for row in rows], np.int64)
    strange = np.flatnonzero(images < 0)
    if len(strange):
        refuse_image(path, str(rows[strange[0]]["image_id"]), len(strange), truth)
    return images


def image_numbers(truth: Truth) -> dict[str, int]:
    """Index of each image by its id, and by its id as a number: 000012 is also 12."""
    numbers: dict[str, int] = {}
    for index, image_id in enumerate(truth.image_ids):
        if image_id.isdecimal():
            numbers.setdefault(str(int(image_id)), index)
    return numbers | {image_id: index for index, image_id in enumerate(truth.image_ids)}


def refuse_image(path: Path, image_id: str, count: int, truth: Truth) -> None:
    """Raise the error of detections on images that the data set does not have."""
    raise DataError(
        f"{path} has detections on images the data set does not have ({count}), the first on "
        f"'{image_id}', while its ids are like '{truth.image_ids[0]}'; evaluate on the split the "
        "detector was run on"
    )


def _boxes(
    path: Path,
    rows: list[Row],
    truth: Truth,
    images: Integers,
    labels: Integers,
    scores: Floats,
    notes: tuple[str, ...],
) -> Results:
    stated = _numbers(path, rows, "bbox", 4)
    inverted = np.flatnonzero((stated[:, 2:] < 0).any(axis=1))
    if len(inverted):
        raise DataError(
            f"{path} has boxes of negative width or height ({len(inverted)}), the first in image "
            f"{rows[inverted[0]]['image_id']}; bbox is x, y, width, height"
        )
    boxes = stated.copy()
    boxes[:, 2:] += boxes[:, :2]
    results = results_of(truth, images, labels, scores, boxes, notes)
    extents = stated[:, 2] * stated[:, 3]  # as stated, not from the rounded corners
    return replace(results, extents=extents, areas=extents)


def _keypoints(path: Path, rows: list[Row], truth: Truth, results: Results) -> Results:
    """Keypoints (D, P, 3); boxes and areas are those of the points (pycocotools' loadRes)."""
    count = 0 if truth.keypoints is None else truth.keypoints.shape[1]
    if not count:
        raise DataError("the data set holds no keypoints; evaluate boxes instead")
    points = _numbers(path, rows, "keypoints", 3 * count).reshape(-1, count, 3)
    low, high = points[:, :, :2].min(axis=1), points[:, :, :2].max(axis=1)
    extents = (high - low).prod(axis=1)
    return replace(
        results,
        boxes=np.concatenate([low, high], axis=1),
        extents=extents,
        areas=extents,
        keypoints=points,
    )


def _numbers(path: Path, rows: list[Row], key: str, length: int | None) -> Floats:
    """The numbers under ``key``, (rows,) or (rows, length)."""
    shape = (len(rows),) if length is None else (len(rows), length)
    try:
        values = np.array([row[key] for row in rows], np.float64)
    except (TypeError, ValueError):
        values = np.zeros(0)
    if values.shape != shape:
        number = next(number for number, row in enumerate(rows) if not _fits(row[key], length))
        wanted = "a number" if length is None else f"{length} numbers"
        raise DataError(
            f"{path}: the {key} of a detection in image {rows[number]['image_id']} is not {wanted}"
        )
    if not np.isfinite(values).all():
        number = int(np.flatnonzero(~np.isfinite(values).reshape(len(rows), -1).all(axis=1))[0])
        raise DataError(
            f"{path}: the {key} of a detection in image {rows[number]['image_id']} is not finite"
        )
    return values


def _fits(value: object, length: int | None) -> bool:
    try:
        return np.array(value, np.float64).shape == (() if length is None else (length,))
    except (TypeError, ValueError):
        return False
