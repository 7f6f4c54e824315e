"""Judging what was parsed, the same for every format: classes, sizes, boxes, masks, keypoints."""

import math
from collections import Counter

from rcnnpipe.datasets.faults import Fault
from rcnnpipe.datasets.parsed import Box, Parsed, ParsedImage, ParsedObject
from rcnnpipe.datasets.recipe import Recipe
from rcnnpipe.errors import DataError
from rcnnpipe.images import image_size

# Boxes may leave the image by rounding: half a pixel of COCO's, one of VOC's written 0-based.
BORDER = 1.0
TINY = 2.0  # pixels; below this no network of the family has a cell for it


def validate(parsed: Parsed, recipe: Recipe, *, need_images: bool = True) -> None:
    """Add the faults to ``parsed.faults``; rename classes, fill in sizes, clip boxes in place."""
    _rename(parsed, recipe)
    _check_classes(parsed)
    if not need_images:
        parsed.faults = [fault for fault in parsed.faults if fault.kind != "missing-image"]
    counts = Counter(image.image_id for image in parsed.images)
    for image_id in (image_id for image_id, count in counts.items() if count > 1):
        parsed.faults.append(Fault("duplicate-image", "two images have this id", image_id))
    declared = set(parsed.classes)
    for image in parsed.images:
        if image.size is None:
            _fill_size(image, parsed.faults)
        for obj in image.objects:
            if obj.name and obj.name not in declared:
                _note(parsed, "unknown-class", f"class {obj.name!r} is not declared", image, obj)
            _check_box(parsed, image, obj)
            if obj.keypoints is not None:
                _check_keypoints(parsed, image, obj, obj.keypoints)
        _check_repeats(parsed, image)


def _note(parsed: Parsed, kind: str, message: str, image: ParsedImage, obj: ParsedObject) -> None:
    parsed.faults.append(Fault(kind, message, image.image_id, obj.key, obj.written))


def _rename(parsed: Parsed, recipe: Recipe) -> None:
    """Objects of classes renamed to None go; several names may become one; "*" is any other."""

    def new_name(name: str) -> str | None:
        return recipe.rename.get(name, recipe.rename.get("*", name))

    if recipe.rename:
        for image in parsed.images:
            image.objects = [obj for obj in image.objects if new_name(obj.name) is not None]
            for obj in image.objects:
                obj.name = new_name(obj.name) or ""
    if not (recipe.rename or recipe.classes):
        return
    ids: dict[str, int] = {}
    for place, name in enumerate(parsed.classes):
        new = new_name(name)
        if new is not None:
            ids.setdefault(new, parsed.category_ids[place] if parsed.category_ids else place + 1)
    parsed.classes = list(recipe.classes or ids)
    unused = max(ids.values(), default=0) + 1
    parsed.category_ids = [ids.get(name, unused + i) for i, name in enumerate(parsed.classes)]


def _check_classes(parsed: Parsed) -> None:
    counts = Counter(parsed.classes)
    for name, count in counts.items():
        if count > 1:
            parsed.faults.append(
                Fault("duplicate-class", f"class {name!r} is declared {count} times")
            )
        if name == "background":
            message = "a class is called 'background', which is label 0; rename it in a recipe"
            parsed.faults.append(Fault("duplicate-class", message))
    folded: dict[str, str] = {}
    for name in counts:
        other = folded.setdefault("".join(name.lower().split()), name)
        if other != name:
            message = f"classes {other!r} and {name!r} differ in case or blanks only"
            parsed.faults.append(Fault("similar-class", message))


def _fill_size(image: ParsedImage, faults: list[Fault]) -> None:
    """The size the annotation leaves unsaid, from the file."""
    if image.path is None:
        if not any(fault.image_id == image.image_id for fault in faults):
            message = "its size is neither annotated nor, without a file, to be had"
            faults.append(Fault("missing-image", message, image.image_id))
        return
    try:
        image.size = image_size(image.path)
    except DataError as error:
        faults.append(Fault("unreadable-image", str(error), image.image_id))


def _check_box(parsed: Parsed, image: ParsedImage, obj: ParsedObject) -> None:
    if obj.box is None:
        return
    if not all(map(math.isfinite, obj.box)):
        _note(parsed, "not-a-number", f"box {obj.written} is not four numbers", image, obj)
        return
    x1, y1, x2, y2 = obj.box
    narrow = min(x2 - x1, y2 - y1) - parsed.pixel
    if narrow < 0:
        _note(parsed, "inverted", f"box {obj.written} ends before it begins", image, obj)
    elif narrow == 0:
        _note(parsed, "zero-area", f"box {obj.written} has no area", image, obj)
    elif image.size is not None:
        _check_border(parsed, image, obj, obj.box, image.size)


def _check_border(
    parsed: Parsed, image: ParsedImage, obj: ParsedObject, box: Box, size: tuple[int, int]
) -> None:
    height, width = size
    x1, y1, x2, y2 = box
    inside = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
    frame = f"the image of {width} x {height}"
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        _note(parsed, "outside", f"box {obj.written} lies outside {frame}", image, obj)
        return
    if max(-x1, -y1, x2 - width, y2 - height) > BORDER:
        _note(parsed, "beyond-border", f"box {obj.written} leaves {frame}", image, obj)
        obj.box = inside
    if min(x2 - x1, y2 - y1) < TINY:
        _note(parsed, "tiny-box", f"box {obj.written} has a side below 2 pixels", image, obj)


def _check_repeats(parsed: Parsed, image: ParsedImage) -> None:
    seen: set[tuple[str, Box | None]] = set()
    for obj in image.objects:
        if (obj.name, obj.box) in seen:
            message = f"{obj.name} at {obj.written} is annotated twice"
            _note(parsed, "repeated-box", message, image, obj)
        seen.add((obj.name, obj.box))


def _check_keypoints(
    parsed: Parsed, image: ParsedImage, obj: ParsedObject, points: list[float]
) -> None:
    expected = 3 * len(parsed.keypoint_names)
    if len(points) != expected:
        problem = f"{len(points)} numbers where {expected} are due"
    elif not all(map(math.isfinite, points)):
        problem = "not all of them are finite numbers"
    elif not set(points[2::3]) <= {0, 1, 2}:
        problem = "a visibility is not 0, 1 or 2"
    else:
        return
    _note(parsed, "bad-keypoints", f"its keypoints: {problem}", image, obj)
