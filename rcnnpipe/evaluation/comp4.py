"""VOC result folders: one ``comp4_det_SPLIT_CLASS.txt`` a class, rows ``id score x1 y1 x2 y2``.

Coordinates in the files are 1-based inclusive pixels (devkit); they become continuous here.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rcnnpipe.errors import DataError
from rcnnpipe.evaluation.columns import Results, Truth, results_of
from rcnnpipe.evaluation.results import image_numbers, refuse_image

# comp3 is the same competition with own training data only
_NAME = re.compile(r"(?P<competition>comp\d+)_det_(?P<rest>.+)")


def read_comp4_results(folder: Path, truth: Truth, split: str | None = None) -> Results:
    """Read a folder of comp4 files.

    Args:
        folder: holds them.
        truth: whose images and classes the results are about.
        split: take only the files of this split.

    Raises:
        DataError: no such file of any class, files of several splits, a row that cannot be read, an
            image the data set does not have.
    """
    files, notes = _files_by_label(folder, truth.classes, split)
    numbers = image_numbers(truth)
    images: list[int] = []
    labels: list[int] = []
    values: list[list[float]] = []
    for label, path in sorted(files.items()):
        for line, row in enumerate(_lines(path), start=1):
            fields = row.split()
            if not fields:
                continue
            try:
                score, x1, y1, x2, y2 = map(float, fields[1:])
            except ValueError:
                raise DataError(f"{path}, line {line}: not 'id score x1 y1 x2 y2'") from None
            if fields[0] not in numbers:
                refuse_image(path, fields[0], 1, truth)
            images.append(numbers[fields[0]])
            labels.append(label)
            values.append([score, x1 - 1, y1 - 1, x2, y2])
    if not values:
        raise DataError(
            f"the files in {folder} hold no detections, so there is nothing to evaluate"
        )
    table = np.array(values, np.float64)
    return results_of(truth, np.array(images), np.array(labels), table[:, 0], table[:, 1:], notes)


def is_comp4_folder(folder: Path) -> bool:
    """Whether the folder holds files named like VOC results."""
    return any(_NAME.fullmatch(path.stem) for path in folder.glob("comp*_det_*.txt"))


def _files_by_label(
    folder: Path, classes: Sequence[str], split: str | None
) -> tuple[dict[int, Path], tuple[str, ...]]:
    """The file of each label, and notes about files and classes that have no partner."""
    found: dict[int, list[tuple[str, Path]]] = {}
    strange: list[str] = []
    paths = sorted(path for path in folder.glob("*.txt") if _NAME.fullmatch(path.stem))
    if not paths:
        raise DataError(
            f"{folder} holds no comp4_det_SPLIT_CLASS.txt, the form of VOC result files"
        )
    for path in paths:
        named = _NAME.fullmatch(path.stem)
        assert named is not None
        # Class names may hold underscores themselves: the longest that fits is meant.
        fitting = [name for name in classes[1:] if named["rest"].endswith(f"_{name}")]
        if not fitting:
            strange.append(path.name)
            continue
        name = max(fitting, key=len)
        part = named["rest"].removesuffix(f"_{name}")
        if split is None or part == split:
            found.setdefault(classes.index(name), []).append((part, path))
    if not found:
        raise DataError(
            f"no file in {folder} is of a class of the data set"
            f"{f' and split {split}' if split else ''}: the files are "
            f"{', '.join(path.name for path in paths[:5])}, the classes {', '.join(classes[1:])}"
        )
    for files in found.values():
        if len(files) > 1:
            raise DataError(
                f"{folder} holds {files[0][1].name} and {files[1][1].name}, two files of one "
                "class; name the split to evaluate"
            )
    without = [name for label, name in enumerate(classes) if label and label not in found]
    notes = [f"no result file of class {name}: taken as no detections" for name in without]
    notes += [f"{name} is of no class of the data set and left out" for name in strange]
    return {label: files[0][1] for label, files in found.items()}, tuple(notes)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{path} is not text") from None
