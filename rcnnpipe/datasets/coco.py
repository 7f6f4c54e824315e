"""COCO json: images, categories and annotations in one file a split.

Source: the format description at cocodataset.org. Boxes are x y w h, 0-based and continuous; masks
are polygons, or an RLE with ``size`` and ``counts`` (a list or compressed text). Ids may be sparse.
"""

import json
from pathlib import Path
from typing import Any

from rcnnpipe.datasets.faults import Fault
from rcnnpipe.datasets.parsed import NO_SIZE, Box, Parsed, ParsedImage, ParsedObject, flag, number
from rcnnpipe.datasets.paths import Outside, locate
from rcnnpipe.datasets.recipe import Recipe
from rcnnpipe.errors import DataError


def parse_coco(recipe: Recipe, split: str | None) -> Parsed:
    """One split, images and objects in the order of the file, classes in that of its categories."""
    if split is None:
        raise DataError(f"{recipe.origin} names no json: add `splits: {{train: FILE.json}}`")
    path = recipe.root / recipe.splits[split]
    document = _load(path)
    faults: list[Fault] = []
    categories = _categories(document["categories"], faults)
    images = _images(recipe, split, path, document["images"], faults)
    by_id = {image.image_id: image for image in images}
    skeleton: list[Any] = next(
        (c["keypoints"] for c in document["categories"] if _has_points(c)), []
    )
    seen: set[str] = set()
    for place, entry in enumerate(document["annotations"]):
        if not isinstance(entry, dict):
            message = f"entry {place} of the annotations is no object"
            faults.append(Fault("malformed-annotation", message))
            continue
        image_id, key = str(entry.get("image_id")), str(entry.get("id", f"number {place}"))
        if key in seen:
            message = "another annotation has this id"
            faults.append(Fault("duplicate-annotation", message, image_id, key))
        seen.add(key)
        if image_id not in by_id:
            message = "belongs to an image that is not listed"
            faults.append(Fault("dangling-annotation", message, image_id, key))
            continue
        by_id[image_id].objects.append(_object(image_id, key, entry, categories, faults))
    return Parsed(
        images,
        list(categories.values()),
        list(categories),
        tuple(map(str, skeleton)),
        faults=faults,
    )


def _load(path: Path) -> dict[str, list[Any]]:
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    for key in ("images", "categories", "annotations"):
        if not isinstance(document, dict) or not isinstance(document.get(key), list):
            raise DataError(f"{path} is not a COCO data set: it has no list {key!r}")
    return document  # type: ignore[no-any-return]


def _has_points(category: object) -> bool:
    return isinstance(category, dict) and isinstance(category.get("keypoints"), list)


def _categories(entries: list[Any], faults: list[Fault]) -> dict[int, str]:
    """Names by category id, in the file's order."""
    categories: dict[int, str] = {}
    for place, entry in enumerate(entries):
        good = isinstance(entry, dict) and isinstance(entry.get("id"), int)
        if not good or not isinstance(entry.get("name"), str):
            message = f"entry {place} of the categories has no whole `id` and `name`"
            faults.append(Fault("malformed-annotation", message))
        elif entry["id"] in categories:
            faults.append(Fault("duplicate-class", f"two categories have the id {entry['id']}"))
        else:
            categories[entry["id"]] = entry["name"].strip()
    return categories


def _images(
    recipe: Recipe, split: str, path: Path, entries: list[Any], faults: list[Fault]
) -> list[ParsedImage]:
    folder = _folder(recipe, split, path, entries)
    images = []
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict) or entry.get("id") is None:
            message = f"entry {place} of the images has no id"
            faults.append(Fault("malformed-annotation", message))
            continue
        image = ParsedImage(str(entry["id"]), None)
        height, width = number(entry.get("height")), number(entry.get("width"))
        if 1 <= height < 1e9 and 1 <= width < 1e9:
            image.size = int(height), int(width)
        else:
            faults.append(Fault("missing-size", NO_SIZE, image.image_id))
        name = str(entry.get("file_name", ""))
        try:
            image.path = locate(folder, name, recipe.follow_links)
            if image.path is None:
                faults.append(Fault("missing-image", f"no file {folder / name}", image.image_id))
        except Outside as error:
            faults.append(Fault("outside-folder", str(error), image.image_id))
        images.append(image)
    return images


def _folder(recipe: Recipe, split: str, path: Path, entries: list[Any]) -> Path:
    """The folder of images: as the recipe says, else the usual one that holds the first found."""
    root, images = recipe.root, recipe.images
    if images is not None:
        return root / (images if isinstance(images, str) else images.get(split, "."))
    short = split.rsplit("_", 1)[-1]
    usual = [f"images/{split}", split, f"images/{short}", short, "images", "."]
    folders = [path.parent, *(root / name for name in usual)]
    for entry in entries[:20]:
        name = str(entry.get("file_name", "")) if isinstance(entry, dict) else ""
        for folder in folders:
            try:
                if locate(folder, name, recipe.follow_links) is not None:
                    return folder
            except Outside:
                break
    return root / "images"


def _object(
    image_id: str, key: str, entry: dict[str, Any], categories: dict[int, str], faults: list[Fault]
) -> ParsedObject:
    box = entry.get("bbox")
    corners = box if isinstance(box, list) and len(box) == 4 else None
    written = " ".join(map(str, corners)) if corners else str(box)[:80]
    category = entry.get("category_id")
    name = categories.get(category) if isinstance(category, int) else None
    obj = ParsedObject(key, written, name or f"category {category}", None)
    if corners is None:
        message = "`bbox` is not x, y, width, height"
        faults.append(Fault("malformed-annotation", message, image_id, key, written))
    else:
        obj.box = _edges(corners)
    obj.area = None if entry.get("area") is None else number(entry["area"])
    for kind, value in (("crowd", "iscrowd"), ("difficult", "difficult"), ("truncated",) * 2):
        held, proper = flag(entry.get(value))
        setattr(obj, kind, held)
        if not proper:
            message = f"`{value}` is {entry[value]!r}"
            faults.append(Fault("bad-flag", message, image_id, key, written))
    obj.segment = entry.get("segmentation") or None  # an empty list is no mask
    points = entry.get("keypoints")
    if points:
        obj.keypoints = [number(p) for p in points] if isinstance(points, list) else [float("nan")]
    return obj


def _edges(corners: list[Any]) -> Box:
    x, y, width, height = map(number, corners)
    return x, y, x + width, y + height
