"""The usual folder layouts: which format a folder has, and where its splits are.

========  =====================================================================================
voc       ``Annotations/*.xml``, ``JPEGImages/``, ``ImageSets/Main/SPLIT.txt``; or xml beside images
coco      ``annotations/*_SPLIT.json``, or ``SPLIT/_annotations.coco.json``
yolo      ``images/[SPLIT/]`` and ``labels/[SPLIT/]``, ``SPLIT/images`` and ``SPLIT/labels``, or
          ``labels/`` and ``SPLIT.txt`` lists
folder    images, or only the folders train, val, test ... of images
========  =====================================================================================
"""

from collections.abc import Callable
from pathlib import Path

from rcnnpipe.datasets.paths import files_below
from rcnnpipe.errors import DataError

SPLIT_NAMES = ("train", "val", "trainval", "valid", "validation", "test", "pretrain", "minival")


def recognise(root: Path) -> tuple[str, dict[str, str]]:
    """The format of a folder and its splits (name to list file, json or folder below ``root``).

    Raises:
        DataError: the folder has none of the known layouts.
    """
    if (root / "Annotations").is_dir() or any(root.glob("*.xml")):
        return "voc", voc_splits(root)
    if splits := coco_splits(root):
        return "coco", splits
    if (root / "labels").is_dir() or any(root.glob("*/labels")):
        return "yolo", yolo_splits(root)
    if files_below(root):
        return "folder", folder_splits(root)
    inner = [path.name for path in sorted(root.glob("*")) if (path / "Annotations").is_dir()]
    hint = f"name {root / inner[0]} instead" if inner else "write a recipe for it (data/README.md)"
    raise DataError(f"the layout of {root} is not VOC, COCO, YOLO or a folder of images; {hint}")


def voc_splits(root: Path) -> dict[str, str]:
    """``ImageSets/Main/*.txt`` without the lists of single classes (``cat_train.txt``)."""
    names = {path.stem for path in (root / "ImageSets" / "Main").glob("*.txt")}
    whole = [name for name in names if not _is_class_list(name, names)]
    return {name: f"ImageSets/Main/{name}.txt" for name in _ordered(whole)}


def _is_class_list(name: str, names: set[str]) -> bool:
    return any(name.endswith(f"_{other}") for other in names)


def coco_splits(root: Path) -> dict[str, str]:
    """``annotations/PREFIX_SPLIT.json``: SPLIT, of the ``instances`` file where several have it.

    The others keep their whole name (``person_keypoints_train``).
    """
    splits = {}
    names = sorted(path.stem for path in (root / "annotations").glob("*.json"))
    names.sort(key=lambda name: not name.startswith("instances_"))
    for name in names:
        short = name.rsplit("_", 1)[-1]
        splits[name if short in splits else short] = f"annotations/{name}.json"
    for path in sorted(root.glob("*/_annotations.coco.json")):  # Roboflow's export
        splits[path.parent.name] = f"{path.parent.name}/{path.name}"
    return {name: splits[name] for name in _ordered(splits)}


def yolo_splits(root: Path) -> dict[str, str]:
    """Folders ``images/SPLIT`` or ``SPLIT/images``, or lists ``SPLIT.txt`` beside ``labels``."""
    inner = [p.parent.name for p in root.glob("*/labels") if (p.parent / "images").is_dir()]
    if inner:
        return {name: f"{name}/images" for name in _ordered(inner)}
    folders = [p.name for p in (root / "images").glob("*") if (root / "labels" / p.name).is_dir()]
    if folders:
        return {name: f"images/{name}" for name in _ordered(folders)}
    return {name: f"{name}.txt" for name in SPLIT_NAMES if (root / f"{name}.txt").is_file()}


def folder_splits(root: Path) -> dict[str, str]:
    """Folders named as splits are, where there is nothing else."""
    names = [
        path.name for path in root.iterdir() if not path.name.startswith(".") and path.is_dir()
    ]
    loose = files_below(root)
    if names and all("/" in name for name in loose) and set(names) <= set(SPLIT_NAMES):
        return {name: name for name in _ordered(names)}
    return {}


def _ordered(names: "list[str] | dict[str, str]") -> list[str]:
    """In the order of ``SPLIT_NAMES``, then by name."""
    known = {name: place for place, name in enumerate(SPLIT_NAMES)}
    return sorted(names, key=lambda name: (known.get(name, len(known)), name))


SPLITS: dict[str, Callable[[Path], dict[str, str]]] = {
    "voc": voc_splits,
    "coco": coco_splits,
    "yolo": yolo_splits,
    "folder": folder_splits,
}
