"""YOLO txt: a label file an image, a line an object, in shares of the image.

``class cx cy w h`` is a box, ``class x1 y1 x2 y2 x3 y3 ...`` a polygon whose bounds are the box. An
image without a label file, or with an empty one, has no object. Class names come from the recipe,
from ``names`` in data.yaml, or from classes.txt or obj.names.
"""

import os
from pathlib import Path
from typing import Any

import yaml

from rcnnpipe.datasets.faults import Fault
from rcnnpipe.datasets.parsed import Parsed, ParsedImage, ParsedObject, number
from rcnnpipe.datasets.paths import Outside, by_stem, check_link, files_below, locate
from rcnnpipe.datasets.recipe import Recipe
from rcnnpipe.datasets.voc import once, read_list
from rcnnpipe.errors import DataError, one_line
from rcnnpipe.images import image_size

_NAME_FILES = ("classes.txt", "obj.names", "labels/classes.txt")
_NOT_LABELS = ("classes", "labels", "notes", "readme")


def parse_yolo(recipe: Recipe, split: str | None) -> Parsed:
    """One split: by name from a folder, in the list's order from a txt list."""
    faults: list[Fault] = []
    place = recipe.splits[split] if split else recipe.images or "images"
    if not isinstance(place, str):
        raise DataError(f"{recipe.origin}: images: must name one folder")
    if place.endswith(".txt") and split is not None:
        images, labels = _listed(recipe, once(read_list(recipe, split), faults), faults)
    else:
        images, labels = _in_folder(recipe, place, faults)
    names = recipe.classes or _names(recipe.root)
    for image, label in zip(images, labels, strict=True):
        if label is not None and label.is_file():
            _read_labels(image, label, names, faults)
    if names is None:
        found = {obj.name for image in images for obj in image.objects}
        names = tuple(sorted(found, key=lambda name: (not name.isdigit(), name.zfill(9))))
    return Parsed(images, list(names), list(range(len(names))), faults=faults)


Labels = list[Path | None]


def _in_folder(recipe: Recipe, place: str, faults: list[Fault]) -> tuple[list[ParsedImage], Labels]:
    folder = recipe.root / place
    labels_folder = recipe.root / (recipe.annotations or _labels_place(place))
    if not folder.is_dir():
        raise DataError(f"{recipe.origin} has no folder of images {folder}")
    images: list[ParsedImage] = []
    for stem, files in by_stem(files_below(folder)).items():
        path = folder / files[0]
        if len(files) > 1:
            message = f"{', '.join(files)} all have this name; {files[0]} is used"
            faults.append(Fault("ambiguous-image", message, stem))
        try:
            if not recipe.follow_links and path.is_symlink():
                check_link(folder, path)
        except Outside as error:
            faults.append(Fault("outside-folder", str(error), stem))
        images.append(_image(stem, path, faults))
    stems = {image.image_id for image in images}
    for stem in by_stem(files_below(labels_folder, frozenset((".txt",)))):
        if stem not in stems and stem.lower() not in _NOT_LABELS:
            message = f"label file {labels_folder / stem}.txt has no image"
            faults.append(Fault("missing-image", message, stem))
    return images, [labels_folder / f"{image.image_id}.txt" for image in images]


def _labels_place(place: str) -> str:
    """``images/train`` to ``labels/train``, ``train/images`` to ``train/labels``."""
    head, found, tail = place.rpartition("images")
    return f"{head}labels{tail}" if found else place


def _listed(
    recipe: Recipe, lines: list[str], faults: list[Fault]
) -> tuple[list[ParsedImage], Labels]:
    images: list[ParsedImage] = []
    labels: Labels = []
    for line in lines:
        name = line.removeprefix("./")
        stem = os.path.splitext(name)[0]
        image_id = stem.rpartition("images/")[2]
        label: Path | None = None
        try:
            path = locate(recipe.root, name, recipe.follow_links)
            label = locate(recipe.root, f"{_labels_place(stem)}.txt", follow_links=True)
            if path is None:
                message = f"no file {recipe.root / name}"
                faults.append(Fault("missing-image", message, image_id))
            images.append(_image(image_id, path, faults))
        except Outside as error:
            faults.append(Fault("outside-folder", str(error), image_id))
            images.append(ParsedImage(image_id, None))
        labels.append(label)
    return images, labels


def _image(image_id: str, path: Path | None, faults: list[Fault]) -> ParsedImage:
    """The size is needed before the labels: they are shares of it."""
    image = ParsedImage(image_id, path)
    if path is not None:
        try:
            image.size = image_size(path)
        except DataError as error:
            faults.append(Fault("unreadable-image", str(error), image_id))
    return image


def _names(root: Path) -> tuple[str, ...] | None:
    for file in sorted(root.glob("*.yaml")) + sorted(root.glob("*.yml")):
        try:
            entries = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{file} cannot be read: {one_line(error)}") from error
        names: Any = entries.get("names") if isinstance(entries, dict) else None
        if isinstance(names, dict) and sorted(names) == list(range(len(names))):
            names = [names[index] for index in range(len(names))]
        if names is not None and not isinstance(names, list):
            raise DataError(f"{file}: names: must be a list, or a mapping from 0, 1, 2 ...")
        if names:
            return tuple(map(str, names))
    for file in (root / name for name in _NAME_FILES):
        if file.is_file():
            return tuple(filter(None, map(str.strip, file.read_text("utf-8").splitlines())))
    return None


def _read_labels(
    image: ParsedImage, path: Path, names: tuple[str, ...] | None, faults: list[Fault]
) -> None:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        faults.append(Fault("malformed-annotation", f"{path}: {error}", image.image_id))
        return
    for line_number, line in enumerate(lines, 1):
        if line.strip():
            image.objects.append(_object(image, str(line_number), line.split(), names, faults))


def _object(
    image: ParsedImage,
    key: str,
    words: list[str],
    names: tuple[str, ...] | None,
    faults: list[Fault],
) -> ParsedObject:
    label, values = words[0], [number(word) for word in words[1:]]
    written = " ".join(words[1:])[:200]
    index = int(label) if label.isascii() and label.isdigit() else -1
    known = names is not None and 0 <= index < len(names)
    name = (
        names[index] if names is not None and known else (label if names is None else f"#{label}")
    )
    obj = ParsedObject(key, written, name, None)
    polygon = len(values) >= 6 and len(values) % 2 == 0
    if index < 0 or not (len(values) == 4 or polygon):
        message = f"line {key} is not `class cx cy w h`, nor a polygon"
        faults.append(Fault("malformed-annotation", message, image.image_id, key, written))
        return obj
    height, width = image.size or (0, 0)
    if not height:
        return obj  # the image cannot be read, which is noted
    if polygon:
        xs, ys = [x * width for x in values[::2]], [y * height for y in values[1::2]]
        obj.box = (min(xs), min(ys), max(xs), max(ys))
        obj.segment = [[c for point in zip(xs, ys, strict=True) for c in point]]
    else:
        cx, cy, w, h = values
        left, right = (cx - w / 2) * width, (cx + w / 2) * width
        obj.box = (left, (cy - h / 2) * height, right, (cy + h / 2) * height)
    return obj
