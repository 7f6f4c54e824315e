"""PASCAL VOC: one XML file an image, split lists of image names.

Source: the VOC2012 development kit, sections on file layout and annotation fields. ``bndbox`` holds
1-based inclusive pixels; a recipe's ``coordinates`` says where a tool wrote otherwise. Numbers may
be fractions. ``<part>`` boxes (person layout) are not objects and are not read.
"""

import os
from pathlib import Path
from xml.etree import ElementTree

from rcnnpipe.datasets.faults import Fault
from rcnnpipe.datasets.parsed import NO_SIZE, Box, Parsed, ParsedImage, ParsedObject, flag, number
from rcnnpipe.datasets.paths import Outside, by_stem, check_link, files_below, locate
from rcnnpipe.datasets.recipe import Recipe
from rcnnpipe.errors import DataError

_CORNERS = ("xmin", "ymin", "xmax", "ymax")

# What is added to xmin, ymin, xmax, ymax to get continuous 0-based edges.
_TO_EDGES = {"one-based": (-1, 0), "zero-based": (0, 1), "edges": (0, 0)}


def parse_voc(recipe: Recipe, split: str | None) -> Parsed:
    """One split in the order of its list, or every annotated image by name.

    Without declared classes the names found in *all* annotations are taken, sorted, so that the
    splits agree on their labels.
    """
    annotations = recipe.root / (recipe.annotations or _usual(recipe.root, "Annotations"))
    images = recipe.root / (_images_of(recipe, split) or _usual(recipe.root, "JPEGImages"))
    if not annotations.is_dir():
        raise DataError(f"{recipe.origin} has no folder of annotations {annotations}")
    stems = files_below(annotations, frozenset((".xml",)))
    names = read_list(recipe, split) if split else [os.path.splitext(name)[0] for name in stems]
    faults: list[Fault] = []
    reader = _Reader(annotations, images, recipe, faults)
    parsed = [reader.image(name) for name in once(names, faults)]
    if recipe.classes is None:
        classes = sorted(_found(parsed) | _others(annotations, stems, {p.image_id for p in parsed}))
    else:
        classes = list(recipe.classes)
    pixel = float(_TO_EDGES[recipe.coordinates][1] - _TO_EDGES[recipe.coordinates][0])
    return Parsed(parsed, classes, pixel=pixel, faults=faults)


def _usual(root: Path, folder: str) -> str:
    return folder if (root / folder).is_dir() else "."


def _images_of(recipe: Recipe, split: str | None) -> str | None:
    if isinstance(recipe.images, dict):
        return recipe.images.get(split or "")
    return recipe.images


def read_list(recipe: Recipe, split: str) -> list[str]:
    """Image names of a split list; a second column of 1, 0, -1 (lists of one class) is dropped."""
    path = recipe.root / recipe.splits[split]
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"split list {path} cannot be read ({error})") from error
    names = []
    for line in filter(None, map(str.strip, lines)):
        parts = line.rsplit(None, 1)
        names.append(parts[0] if len(parts) == 2 and parts[1] in ("1", "0", "-1") else line)
    return names


def once(names: list[str], faults: list[Fault]) -> list[str]:
    """The names without repeats, in order; each repeat is a fault."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            faults.append(Fault("repeated-image", "listed more than once in the split", name))
        seen.add(name)
    return list(dict.fromkeys(names))


def _found(images: list[ParsedImage]) -> set[str]:
    return {obj.name for image in images for obj in image.objects if obj.name}


def _others(annotations: Path, stems: list[str], read: set[str]) -> set[str]:
    """Class names in the annotations that are not of this split; broken files are passed over."""
    names: set[str] = set()
    for file in stems:
        if os.path.splitext(file)[0] in read:
            continue
        try:
            root = ElementTree.parse(annotations / file).getroot()
        except (ElementTree.ParseError, OSError, ValueError, LookupError):
            continue
        names.update((obj.findtext("name") or "").strip() for obj in root.iterfind("object"))
    return names - {""}


class _Reader:
    """Reads one annotation after another; holds the listing of the image folder."""

    def __init__(
        self, annotations: Path, images: Path, recipe: Recipe, faults: list[Fault]
    ) -> None:
        self.annotations, self.images, self.faults = annotations, images, faults
        self.follow_links = recipe.follow_links
        self.low, self.high = _TO_EDGES[recipe.coordinates]
        self.files = by_stem(files_below(images))

    def image(self, name: str) -> ParsedImage:
        image = ParsedImage(name, None)
        root = self._root(name)
        if root is not None:
            image.size = self._size(root)
            if image.size is None:
                self._fault("missing-size", NO_SIZE, name)
            for place, element in enumerate(root.iterfind("object"), 1):
                image.objects.append(self._object(name, str(place), element))
        image.path = self._file(name, root)
        return image

    def _fault(self, kind: str, message: str, image: str, obj: ParsedObject | None = None) -> None:
        key, written = (obj.key, obj.written) if obj else (None, None)
        self.faults.append(Fault(kind, message, image, key, written))

    def _root(self, name: str) -> ElementTree.Element | None:
        try:
            path = locate(self.annotations, f"{name}.xml", follow_links=True)
        except Outside as error:
            self._fault("outside-folder", str(error), name)
            return None
        if path is None:
            self._fault("missing-annotation", f"{self.annotations / name}.xml does not exist", name)
            return None
        try:
            root = ElementTree.parse(path).getroot()
        except ElementTree.ParseError as error:
            line = error.position[0]
            self._fault("malformed-annotation", f"{path}, line {line}: {error.msg}", name)
            return None
        except (OSError, ValueError, LookupError) as error:  # an unknown encoding is a LookupError
            self._fault("malformed-annotation", f"{path}: {error}", name)
            return None
        if root.tag != "annotation":
            message = f"{path} holds <{root.tag}>, not <annotation>"
            self._fault("malformed-annotation", message, name)
            return None
        return root

    def _size(self, root: ElementTree.Element) -> tuple[int, int] | None:
        height, width = (number(root.findtext(f"size/{side}")) for side in ("height", "width"))
        if height >= 1 and width >= 1 and height < 1e9 and width < 1e9:
            return int(height), int(width)
        return None

    def _object(self, image: str, key: str, element: ElementTree.Element) -> ParsedObject:
        written = [(element.findtext(f"bndbox/{corner}") or "").strip() for corner in _CORNERS]
        obj = ParsedObject(key, " ".join(written), (element.findtext("name") or "").strip(), None)
        if not all(written):
            missing = _CORNERS[written.index("")]
            self._fault("malformed-annotation", f"the object has no <{missing}>", image, obj)
        else:
            obj.box = self._edges(written)
        if not obj.name:
            self._fault("unknown-class", "the object has no <name>", image, obj)
        for kind in ("difficult", "truncated"):
            text = (element.findtext(kind) or "").strip()
            value, proper = flag("" if text == "Unspecified" else text)
            setattr(obj, kind, value)
            if not proper:
                self._fault("bad-flag", f"<{kind}> is {text!r}", image, obj)
        return obj

    def _edges(self, written: list[str]) -> Box:
        x1, y1, x2, y2 = map(number, written)
        return x1 + self.low, y1 + self.low, x2 + self.high, y2 + self.high

    def _file(self, name: str, root: ElementTree.Element | None) -> Path | None:
        """The image called as the annotation, else as its <filename>."""
        candidates = self.files.get(name, [])
        written = (root.findtext("filename") or "").strip() if root is not None else ""
        try:
            if not candidates and written:
                path = locate(self.images, written, self.follow_links)
                candidates = [written] if path else []
            if not candidates:
                self._fault("missing-image", f"no image {name}.* in {self.images}", name)
                return None
            if len(candidates) > 1 and written not in candidates:
                message = f"{', '.join(candidates)} all have this name; {candidates[0]} is used"
                self._fault("ambiguous-image", message, name)
            path = self.images / (written if written in candidates else candidates[0])
            if not self.follow_links and path.is_symlink():
                check_link(self.images, path)
        except Outside as error:
            self._fault("outside-folder", str(error), name)
            return None
        return path
