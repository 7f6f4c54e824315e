"""Opening a data set: parse, leave out what is quarantined, refuse errors, build the records."""

import logging
from pathlib import Path

import numpy as np

from rcnnpipe.datasets.coco import parse_coco
from rcnnpipe.datasets.faults import ERROR, Fault
from rcnnpipe.datasets.folder import parse_folder
from rcnnpipe.datasets.parsed import Parsed, ParsedImage, ParsedObject
from rcnnpipe.datasets.quarantine import leave_out
from rcnnpipe.datasets.recipe import Recipe, read_source
from rcnnpipe.datasets.records import BACKGROUND, Dataset, Record
from rcnnpipe.datasets.validate import validate
from rcnnpipe.datasets.voc import parse_voc
from rcnnpipe.datasets.yolo import parse_yolo
from rcnnpipe.errors import DataError

logger = logging.getLogger(__name__)

PARSERS = {"voc": parse_voc, "coco": parse_coco, "yolo": parse_yolo, "folder": parse_folder}


def open_dataset(
    source: str | Path, split: str | None = None, *, need_images: bool = True
) -> Dataset:
    """Read the annotations of one split; no pixel is decoded.

    Boxes are kept exactly as annotated, up to one pixel beyond the border too (rounding;
    evaluation must see the official tools' numbers); further out they are clipped to the image,
    with one logged warning for the set. Every fault that would corrupt training (``faults.KINDS``)
    is an error, unless the quarantine list leaves the image or object out.

    Args:
        source: a recipe, a folder of a known layout, a COCO json, or one image.
        split: may be left out where there is one split or none.
        need_images: whether a missing image file is an error; evaluation needs none.

    Raises:
        DataError: no such source or split, not one image, or errors: their number, the first one,
            and what to run.
    """
    recipe = read_source(source)
    split = recipe.choose_split(split)
    parsed = parse(recipe, split, need_images=need_images)
    errors = [fault for fault in parsed.faults if fault.severity == ERROR]
    if errors:
        raise DataError(_refusal(recipe, errors))
    if not parsed.images:
        where = f"split {split!r} of {recipe.origin}" if split else str(recipe.origin)
        raise DataError(f"{where} has no image; take another split, or correct its list")
    _log_warnings(recipe, parsed.faults)
    return _dataset(recipe, split, parsed)


def parse(recipe: Recipe, split: str | None, *, need_images: bool = True) -> Parsed:
    """One split with all its faults, quarantined images and objects left out."""
    parsed = PARSERS[recipe.format](recipe, split)
    if recipe.quarantine is not None:
        leave_out(parsed, recipe.quarantine)
    validate(parsed, recipe, need_images=need_images)
    return parsed


def _refusal(recipe: Recipe, errors: list[Fault]) -> str:
    count = f"{len(errors)} faults, the first: " if len(errors) > 1 else "a fault: "
    return (
        f"{recipe.origin} has {count}{errors[0]}; `rcnnpipe check {recipe.origin}` lists "
        "every fault and --fix writes a quarantine list that leaves them out"
    )


def _log_warnings(recipe: Recipe, faults: list[Fault]) -> None:
    """One line for each kind."""
    first = {fault.kind: fault for fault in reversed(faults)}
    for kind, fault in first.items():
        count = sum(other.kind == kind for other in faults)
        logger.warning("%s: %s (%d times), first %s", recipe.origin, kind, count, fault)


def _dataset(recipe: Recipe, split: str | None, parsed: Parsed) -> Dataset:
    labels = {name: label for label, name in enumerate(parsed.classes, 1)}
    objects = [obj for image in parsed.images for obj in image.objects]
    masks = any(obj.segment is not None for obj in objects)
    points = len(parsed.keypoint_names)
    return Dataset(
        name=recipe.name,
        classes=(BACKGROUND, *parsed.classes),
        records=tuple(_record(image, labels, masks, points) for image in parsed.images),
        split=split,
        category_ids=(0, *(parsed.category_ids or range(1, len(labels) + 1))),
        keypoint_names=parsed.keypoint_names,
        source=recipe.format,
    )


def _record(image: ParsedImage, labels: dict[str, int], masks: bool, points: int) -> Record:
    objects = image.objects
    boxes = np.array([obj.box for obj in objects], np.float64).reshape(-1, 4)
    sides = boxes[:, 2:] - boxes[:, :2]
    assert image.size is not None
    return Record(
        image_id=image.image_id,
        path=image.path or Path(image.image_id),
        size=image.size,
        boxes=boxes,
        labels=np.array([labels[obj.name] for obj in objects], np.int64),
        difficult=np.array([obj.difficult for obj in objects], np.bool_),
        truncated=np.array([obj.truncated for obj in objects], np.bool_),
        crowd=np.array([obj.crowd for obj in objects], np.bool_),
        areas=np.array([_area(obj, side) for obj, side in zip(objects, sides, strict=True)], float),
        segments=tuple(obj.segment for obj in objects) if masks else None,
        keypoints=_keypoints(objects, points) if points else None,
    )


def _area(obj: ParsedObject, sides: np.ndarray) -> float:
    return float(sides[0] * sides[1]) if obj.area is None else obj.area


def _keypoints(objects: list[ParsedObject], points: int) -> np.ndarray:
    """(G, P, 3); an object without keypoints has visibility 0 throughout."""
    rows = [obj.keypoints or [0.0] * (3 * points) for obj in objects]
    return np.array(rows, np.float64).reshape(len(rows), points, 3)
