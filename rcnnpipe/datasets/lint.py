"""Finding every fault of a data set at once: ``rcnnpipe check``.

The reader's own parse gives the faults of the annotations; here the images are opened, masks drawn,
and splits and conventions judged as a whole.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

import numpy as np
from faster_coco_eval.core import mask as coco_mask

from rcnnpipe.datasets.faults import Fault
from rcnnpipe.datasets.masks import rle_of, segment_problem
from rcnnpipe.datasets.parsed import Parsed, ParsedImage, ParsedObject
from rcnnpipe.datasets.paths import files_below
from rcnnpipe.datasets.reader import parse
from rcnnpipe.datasets.recipe import Recipe
from rcnnpipe.errors import DataError
from rcnnpipe.images import image_size, is_turned, read_image

Splits = dict[str, Parsed]

_BOUNDS_SLACK = 2.0  # pixels a mask's bounds may differ from the box: rounding and thin tips
_ENOUGH = 5  # boxes at one coordinate before a convention is suspected


def parse_splits(recipe: Recipe, splits: Iterable[str]) -> tuple[Splits, list[Fault]]:
    """Each split as parsed, and the faults of those that cannot be parsed at all.

    A set without splits has the one split "".
    """
    parsed: Splits = {}
    faults: list[Fault] = []
    for split in splits:
        try:
            parsed[split] = parse(recipe, split or None)
        except DataError as error:
            faults.append(Fault("malformed-annotation", str(error)))
    return parsed, faults


def unique_images(splits: Splits) -> list[ParsedImage]:
    """Every image with a file once, though several splits have it and say the same of it."""
    images = {
        (image.image_id, image.path, image.size): image
        for parsed in splits.values()
        for image in parsed.images
        if image.path is not None
    }
    return list(images.values())


def check_images(images: Iterable[ParsedImage], workers: int) -> Iterator[list[Fault]]:
    """The faults of each image file, decoded in ``workers`` threads, in order."""
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        yield from pool.map(check_image, images)


def check_image(image: ParsedImage) -> list[Fault]:
    """Whether the file decodes, to the size that the annotation says."""
    assert image.path is not None
    try:
        size = image_size(image.path)
    except DataError as error:
        return [Fault("unreadable-image", str(error), image.image_id)]
    faults = []
    if image.size is not None and image.size != size:
        faults.append(_size_fault(image, size))
    try:
        read_image(image.path)
    except DataError as error:
        kind = "truncated-image" if "cannot be decoded" in str(error) else "unreadable-image"
        faults.append(Fault(kind, str(error), image.image_id))
    return faults


def _size_fault(image: ParsedImage, size: tuple[int, int]) -> Fault:
    assert image.size is not None
    assert image.path is not None
    (height, width), (annotated_height, annotated_width) = size, image.size
    if image.size == size[::-1] and is_turned(image.path):
        message = (
            f"annotated as {annotated_width} x {annotated_height}, the frame before its EXIF "
            "orientation is applied; boxes would lie elsewhere in the upright image"
        )
        return Fault("turned-image", message, image.image_id)
    message = (
        f"annotated as {annotated_width} x {annotated_height}, the file has {width} x {height}"
    )
    return Fault("size-mismatch", message, image.image_id)


def check_objects(splits: Splits) -> Iterator[Fault]:
    """Masks and keypoints that the reader leaves to their users."""
    for image in (image for parsed in splits.values() for image in parsed.images):
        for obj in image.objects:
            if obj.segment is not None and image.size is not None:
                fault = _segment_fault(image, obj, image.size)
                if fault is not None:
                    yield fault
            if obj.keypoints and image.size is not None:
                yield from _keypoint_faults(image, obj, image.size)


def _segment_fault(image: ParsedImage, obj: ParsedObject, size: tuple[int, int]) -> Fault | None:
    problem = segment_problem(obj.segment, size)
    place = image.image_id, obj.key, obj.written
    if problem is not None:
        return Fault("bad-segment", f"its mask cannot be drawn: {problem}", *place)
    if obj.box is None:
        return None
    if isinstance(obj.segment, list):
        points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in obj.segment])
        bounds = np.concatenate([points.min(0), points.max(0)])
    else:
        x, y, width, height = coco_mask.toBbox([rle_of(obj.segment, size)])[0]
        bounds = np.array([x, y, x + width, y + height])
    if np.abs(bounds - obj.box).max() > _BOUNDS_SLACK:
        corners = " ".join(f"{corner:.6g}" for corner in bounds)
        message = f"its mask spans {corners}, its box {' '.join(f'{c:.6g}' for c in obj.box)}"
        return Fault("segment-box-mismatch", message, *place)
    return None


def _keypoint_faults(
    image: ParsedImage, obj: ParsedObject, size: tuple[int, int]
) -> Iterator[Fault]:
    points = obj.keypoints or []
    height, width = size
    for place, (x, y, seen) in enumerate(
        zip(points[::3], points[1::3], points[2::3], strict=False)
    ):
        if seen > 0 and not (0 <= x <= width and 0 <= y <= height):
            message = f"keypoint {place + 1} at {x:g}, {y:g} lies outside the image"
            yield Fault("keypoint-outside", message, image.image_id, obj.key, obj.written)


def check_set(recipe: Recipe, splits: Splits) -> Iterator[Fault]:
    """What only shows over whole splits: overlaps, classes, conventions, files left over."""
    for name, parsed in splits.items():
        if not parsed.images:
            yield Fault("empty-split", f"split {name} has no image")
    for (a, first), (b, second) in combinations(splits.items(), 2):
        if first.classes != second.classes:
            message = f"splits {a} and {b} declare different classes"
            yield Fault("class-lists-differ", message)
        if not (a in b or b in a):  # trainval holds train; person_keypoints_val is val
            common = {i.image_id for i in first.images} & {i.image_id for i in second.images}
            for image_id in sorted(common):
                yield Fault("split-overlap", f"belongs to {a} and to {b}", image_id)
    yield from _unused(recipe, splits)
    yield from _coordinate_base(recipe, splits)


def _unused(recipe: Recipe, splits: Splits) -> Iterator[Fault]:
    classes = {name for parsed in splits.values() for name in parsed.classes}
    images = [image for parsed in splits.values() for image in parsed.images]
    used = {obj.name for image in images for obj in image.objects}
    if used and classes - used:
        message = f"no object is of class {', '.join(sorted(classes - used))}"
        yield Fault("unused-class", message)
    if set(splits) < set(recipe.splits):
        return  # the rest may belong to the other splits
    paths = {image.path for image in images}
    for folder in sorted({image.path.parent for image in images if image.path is not None}):
        names = [name for name in files_below(folder) if "/" not in name]
        left = [name for name in names if folder / name not in paths]
        if left:
            some = ", ".join(left[:3]) + (" ..." if len(left) > 3 else "")
            message = f"{len(left)} images of {folder} belong to no split: {some}"
            yield Fault("unused-image", message)


def _coordinate_base(recipe: Recipe, splits: Splits) -> Iterator[Fault]:
    """Boxes that touch the border one pixel off show that another convention was written."""
    starts, ends = _border_distances(splits)
    if not len(starts):
        return
    low, fits = int((starts == -1).sum()), int((ends == 0).sum())
    if low:
        to = "edges" if fits else "zero-based"
        yield Fault(
            "coordinate-base",
            f"{low} boxes begin at pixel 0 where the first pixel is 1; if the set counts from 0, a "
            f"recipe with `coordinates: {to}` reads it",
        )
    elif starts.min() >= 1 and (starts == 1).sum() >= _ENOUGH and (ends == 1).any():
        yield Fault(
            "coordinate-base",
            f"{int((starts == 1).sum())} boxes begin at 1, none before, and some end one pixel "
            "behind the border; if the set counts from 1, every box is one pixel off",
        )
    elif (starts == 0).sum() >= _ENOUGH and (ends == -1).sum() >= _ENOUGH and ends.max() == -1:
        yield Fault(
            "coordinate-base",
            f"{int((ends == -1).sum())} boxes end one pixel before the border and none at it; if "
            "corners are inclusive pixels, every box is one pixel short",
        )


def _border_distances(splits: Splits) -> tuple[np.ndarray, np.ndarray]:
    """x1 and y1 of all boxes, and how far x2 and y2 lie behind the border."""
    starts: list[float] = []
    ends: list[float] = []
    for parsed in splits.values():
        for image in parsed.images:
            for obj in image.objects:
                if obj.box is not None and image.size is not None and np.isfinite(obj.box).all():
                    starts += obj.box[:2]
                    ends += (obj.box[2] - image.size[1], obj.box[3] - image.size[0])
    return np.round(starts, 3), np.round(ends, 3)
