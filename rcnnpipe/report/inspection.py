"""What an artifact holds and where it came from, whatever kind it is.

Lineage, settings and shapes come from the header; statistics from a pass over the datasets in
bounded memory (see :mod:`rcnnpipe.report.statistics`).
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from rcnnpipe.artifacts.columns import check_ragged, read_images
from rcnnpipe.artifacts.store import Header, open_artifact
from rcnnpipe.errors import ArtifactError
from rcnnpipe.report import regions
from rcnnpipe.report.statistics import BUDGET_BYTES, Column, datasets_of, describe

_HEADER = {"schema", "id", "settings", "inputs", "lineage", "classes", "software"}
_VALUES_SHOWN = 6  # of a long row


@dataclass(frozen=True)
class Inspection:
    """Everything ``rcnnpipe inspect`` tells about one file.

    Attributes:
        path, file_bytes: the file.
        header: its root attributes that every artifact has.
        attributes: its further ones.
        columns: statistics of each dataset.
        images: how rows spread over images; None for files without images.
        boxes: sizes of the boxes; None without.
        by_class: class -> what is counted -> rows.
        first_rows: the first rows over all columns, one dictionary each; of an SVM or a box
            regression one for each class.
        warnings: sentences about what looks wrong.
    """

    path: Path
    file_bytes: int
    header: Header
    attributes: dict[str, Any]
    columns: tuple[Column, ...]
    images: regions.Images | None
    boxes: regions.BoxSizes | None
    by_class: dict[str, dict[str, int]]
    first_rows: tuple[dict[str, Any], ...]
    warnings: tuple[str, ...]


def inspect(path: Path, rows: int = 5, budget: int | None = BUDGET_BYTES) -> Inspection:
    """Look through an artifact.

    Args:
        path: the file.
        rows: how many first rows to give.
        budget: most bytes to read of one dataset; None reads everything.

    Raises:
        ArtifactError: it is missing, damaged or no artifact.
    """
    with open_artifact(path) as (header, file):
        datasets = dict(datasets_of(file))
        columns = tuple(describe(name, node, budget) for name, node in datasets.items())
        by_class, warnings = regions.rows_by_class(file, header.classes, budget)
        warnings += _column_warnings(columns)
        images = boxes = None
        first: list[dict[str, Any]] = []
        if "offsets" in file:
            table = _rows_of(path, file)
            images = regions.spread(table)
            boxes, odd = regions.box_sizes(file["boxes"], table, budget)
            warnings += odd + regions.image_warnings(table)
            if "scores" in file:
                warnings += regions.score_warnings(file["scores"], table, budget)
            first = _first_rows(datasets, header, table, rows)
        elif header.kind in ("svm", "bbox-reg"):
            first = _rows_of_classes(datasets, header)
            warnings += _untrained(file, header)
        return Inspection(
            path=path,
            file_bytes=path.stat().st_size,
            header=header,
            attributes=_attributes(file),
            columns=columns,
            images=images,
            boxes=boxes,
            by_class=by_class,
            first_rows=tuple(first),
            warnings=tuple(warnings),
        )


def _rows_of(path: Path, file: h5py.File) -> regions.Rows:
    ids, sizes, offsets = read_images(file)
    # The dataset itself, not its values: boxes that are no numbers are to be told, not refused.
    check_ragged(path, offsets, len(ids), {"boxes": file["boxes"]})
    if sizes.shape != (len(ids), 2):
        raise ArtifactError(f"{path} is damaged ({len(ids)} images, {len(sizes)} sizes)")
    return regions.Rows(ids, sizes, offsets)


def _untrained(file: h5py.File, header: Header) -> list[str]:
    """Classes whose weights are 0 throughout: there was nothing to train them by."""
    weights = np.asarray(file["weights"][()])
    empty = np.flatnonzero(~weights.reshape(len(weights), -1).any(axis=1)).tolist()
    return [f"class {header.classes[row + 1]} was not trained: its weights are 0" for row in empty]


def _column_warnings(columns: tuple[Column, ...]) -> list[str]:
    found = []
    for column in columns:
        read = f"{column.rows_read} rows read" if column.is_sample else "rows"
        infinite = 0 if column.name == "bias" else column.infinite  # -inf: class not trained
        if column.not_numbers or infinite:
            what = f"{column.not_numbers} NaN and {infinite} infinite values"
            found.append(f"{column.name} holds {what}")
        if not column.name.startswith("layers/") or not column.rows_read:
            continue
        if column.dead:
            share = f"{column.dead} of {column.shape[1]} columns"
            found.append(f"{column.name}: {share} are dead, 0 in all {read}")
        if column.empty_rows:
            found.append(f"{column.name}: {column.empty_rows} {read} are 0 throughout")
    return found


def _attributes(file: h5py.File) -> dict[str, Any]:
    return {name: _plain(value) for name, value in file.attrs.items() if name not in _HEADER}


def _plain(value: Any) -> Any:
    """An attribute as a JSON value: those written as JSON are read back."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)


def _first_rows(
    datasets: dict[str, h5py.Dataset], header: Header, table: regions.Rows, rows: int
) -> list[dict[str, Any]]:
    count = min(rows, int(table.offsets[-1]))
    head = slice(0, count)
    chosen: list[dict[str, Any]] = [
        {"image": table.ids[image]} for image in table.images_of(head).tolist()
    ]
    for name, dataset in datasets.items():
        per_row = dataset.ndim > 0 and len(dataset) == table.offsets[-1]
        if name in ("offsets", "sizes", "image_ids") or not per_row:
            continue
        for row, value in zip(chosen, dataset[head], strict=True):
            row[name] = _shown(value)
            if name == "labels" and 0 < value < len(header.classes):
                row["class"] = header.classes[int(value)]
    return chosen


def _rows_of_classes(datasets: dict[str, h5py.Dataset], header: Header) -> list[dict[str, Any]]:
    """For each class what its regressor or its SVM is: norms of weights, single values."""
    classes = header.classes[1:]
    chosen: list[dict[str, Any]] = [{"class": name} for name in classes]
    for name, dataset in datasets.items():
        if dataset.ndim == 0 or len(dataset) != len(classes) or dataset.dtype.kind not in "biuf":
            continue
        for row, value in zip(chosen, dataset[()], strict=True):
            title = name.removeprefix("report/")
            if np.ndim(value):
                row[f"norm of {title}"] = float(np.linalg.norm(value.astype(np.float64)))
            else:
                row[title] = _shown(value)
    return chosen


def _shown(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    flat = np.ravel(value)
    if np.ndim(value) == 0:
        return flat[0].item()
    return [number.item() for number in flat[:_VALUES_SHOWN]]


def as_json(inspection: Inspection) -> dict[str, Any]:
    """An inspection as JSON values: numbers that are none become null."""
    plain = asdict(inspection) | asdict(inspection.header)
    del plain["header"]
    plain["path"] = str(inspection.path)
    plain["lineage"], plain["classes"] = list(plain["lineage"]), list(plain["classes"])
    cleaned: dict[str, Any] = finite(plain)
    return cleaned


def finite(value: Any) -> Any:
    """JSON has no NaN: replace what is not finite by None, all the way down."""
    if isinstance(value, dict):
        return {str(name): finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
