"""A recipe: the YAML file, or the recognised folder, that says how a data set is to be read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from rcnnpipe.datasets import layout
from rcnnpipe.errors import DataError
from rcnnpipe.images import IMAGE_SUFFIXES
from rcnnpipe.yaml_files import load_yaml

FORMATS = ("voc", "coco", "yolo", "folder")
COORDINATES = ("one-based", "zero-based", "edges")
KEYS = (
    "name",
    "format",
    "root",
    "splits",
    "images",
    "annotations",
    "classes",
    "rename",
    "coordinates",
    "quarantine",
    "follow_links",
    "licence",
    "notes",
)


@dataclass(frozen=True)
class Recipe:
    """Where a data set lies and how to read it.

    Attributes:
        origin: the recipe file or the folder itself, for messages and for the commands they name.
        format: one of ``FORMATS``.
        root: the data folder.
        splits: name to the split's list file (VOC, YOLO), json (COCO) or folder (YOLO, folder),
            relative to ``root``; empty where the data set is not divided.
        images: the folder of images below ``root``, for all splits or each; None where usual.
        annotations: the folder of VOC xml or YOLO txt files below ``root``; None where usual.
        classes: the names in label order, None to take those found.
        rename: class as written to class as used; None leaves its objects out.
        coordinates: of VOC boxes: ``one-based`` (inclusive pixels, the format's definition),
            ``zero-based`` (inclusive pixels) or ``edges`` (continuous, as COCO's).
        quarantine: the list of images and objects to leave out: as the recipe says, else
            ``RECIPE.quarantine.json`` beside it, else ``quarantine.json`` in the root, if there.
        follow_links: whether linked images may lie outside ``root``.
    """

    origin: Path
    name: str
    format: str
    root: Path
    splits: dict[str, str] = field(default_factory=dict)
    images: str | dict[str, str] | None = None
    annotations: str | None = None
    classes: tuple[str, ...] | None = None
    rename: dict[str, str | None] = field(default_factory=dict)
    coordinates: str = "one-based"
    quarantine: Path | None = None
    follow_links: bool = False

    def choose_split(self, split: str | None) -> str | None:
        """The split to read: ``split``, or the only one.

        Raises:
            DataError: there is no such split, or none is named and there are several.
        """
        names = ", ".join(self.splits)
        if split is None:
            if len(self.splits) > 1:
                raise DataError(
                    f"{self.origin} has the splits {names}; name one of them with --split"
                )
            return next(iter(self.splits), None)
        if split not in self.splits:
            has = f"has the splits {names}" if names else "is not divided into splits"
            raise DataError(f"{self.origin} {has}; there is no split {split!r}")
        return split


def read_source(source: str | Path) -> Recipe:
    """The recipe behind what a user names: a YAML file, a COCO json, a folder, or one image.

    Raises:
        DataError: there is no such file, the recipe is wrong, or the folder's layout is not known.
    """
    path = Path(source)
    if path.is_dir():
        format_, splits = layout.recognise(path)
        return Recipe(
            origin=path,
            name=path.resolve().name,
            format=format_,
            root=path,
            splits=splits,
            quarantine=_beside(path),
        )
    if not path.exists():
        raise DataError(f"there is no data set {path}: name a recipe, a folder or an image")
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml"):
        return _read_yaml(path)
    if suffix == ".json":
        splits = {path.stem: path.name}
        return Recipe(path, path.stem, "coco", path.parent, splits, quarantine=_beside(path.parent))
    if suffix in IMAGE_SUFFIXES:
        return Recipe(path, path.stem, "folder", path.parent, images=path.name)
    raise DataError(f"{path} is neither a recipe (.yaml), a COCO json, a folder nor an image")


def usual_quarantine(origin: Path) -> Path:
    """Where a quarantine list is looked for unasked: in the folder, or beside the recipe."""
    if origin.is_dir():
        return origin / "quarantine.json"
    if origin.suffix.lower() in (".yaml", ".yml"):
        return origin.with_suffix(".quarantine.json")
    return origin.parent / "quarantine.json"


def _found(path: Path, root: Path) -> Path | None:
    beside = usual_quarantine(path)
    return beside if beside.is_file() else _beside(root)


def _beside(root: Path) -> Path | None:
    quarantine = root / "quarantine.json"
    return quarantine if quarantine.is_file() else None


def _read_yaml(path: Path) -> Recipe:
    try:
        entries = load_yaml(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise DataError(f"recipe {path} is nested too deeply to be a recipe") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place = getattr(error, "problem_mark", None)
        line = f", line {place.line + 1}" if place else ""
        what = getattr(error, "problem", None) or "not UTF-8 text"
        raise DataError(f"recipe {path}{line} is not YAML: {what}") from error
    if not isinstance(entries, dict):
        raise DataError(f"recipe {path} must hold keys and values, such as `format: voc`")
    if r"\x00" in repr(entries):
        raise DataError(f"recipe {path} holds a NUL character, which no file name can")
    for key in entries:
        if key not in KEYS:
            close = get_close_matches(str(key), KEYS, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"the keys are {', '.join(KEYS)}"
            raise DataError(f"recipe {path} has the unknown key {key!r}; {hint}")
    return _checked(path, entries)


def _checked(path: Path, entries: Mapping[str, Any]) -> Recipe:
    root = path.parent / Path(str(entries.get("root", "."))).expanduser()
    if not root.is_dir():
        raise DataError(
            f"recipe {path}: its root {root} is no folder; correct `root:` or fetch the data"
        )
    format_ = entries.get("format") or layout.recognise(root)[0]
    _one_of(path, "format", format_, FORMATS)
    coordinates = entries.get("coordinates", "one-based")
    _one_of(path, "coordinates", coordinates, COORDINATES)
    splits = _strings(path, "splits", entries.get("splits") or layout.SPLITS[format_](root))
    quarantine = entries.get("quarantine")
    if quarantine is not None and not (path.parent / str(quarantine)).is_file():
        raise DataError(f"recipe {path}: its quarantine list {quarantine} does not exist")
    images = entries.get("images")
    return Recipe(
        origin=path,
        name=str(entries.get("name", path.stem)),
        format=format_,
        root=root,
        splits=splits,
        images=images
        if images is None or isinstance(images, str)
        else _strings(path, "images", images),
        annotations=None if entries.get("annotations") is None else str(entries["annotations"]),
        classes=_classes(path, entries.get("classes")),
        rename=_rename(path, entries.get("rename") or {}),
        coordinates=coordinates,
        quarantine=path.parent / str(quarantine) if quarantine else _found(path, root),
        follow_links=entries.get("follow_links", False) is True,
    )


def _one_of(path: Path, key: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        close = get_close_matches(str(value), allowed, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(allowed)}"
        raise DataError(f"recipe {path}: {key}: {value!r} is not known; {hint}")


def _strings(path: Path, key: str, value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise DataError(f"recipe {path}: {key}: must name a file or folder for each split")
    return {str(name): item for name, item in value.items()}


def _classes(path: Path, value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        raise DataError(
            f"recipe {path}: classes: must be a list of names (quote numbers and yes/no)"
        )
    repeated = sorted({name for name in value if value.count(name) > 1})
    if repeated or "background" in value:
        what = f"names {repeated[0]!r} twice" if repeated else "must not name the background"
        raise DataError(f"recipe {path}: classes: {what}")
    return tuple(value)


def _rename(path: Path, value: object) -> dict[str, str | None]:
    wrong = not isinstance(value, dict) or not all(
        new is None or isinstance(new, str) for new in value.values()
    )
    if wrong:
        raise DataError(f"recipe {path}: rename: must map a class to its new name, or to null")
    assert isinstance(value, dict)
    return {str(old): new for old, new in value.items()}
