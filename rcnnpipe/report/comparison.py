"""How two artifacts differ: header, data sets, values. Rows are compared by their position."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from rcnnpipe.artifacts.store import Header, open_artifact
from rcnnpipe.report.inspection import finite
from rcnnpipe.report.statistics import blocks, datasets_of

ABSENT = "absent"  # stands for a value that one of the files does not have
_READ_BYTES = 2**20


@dataclass(frozen=True)
class ColumnDifference:
    """One dataset of two files.

    Attributes:
        name: its path in the file.
        first, second: type and shape in each, None where it is missing.
        differing: numbers that differ, when both have one shape; NaN equals NaN.
        numbers: of them all.
        largest: largest absolute difference of numbers that are finite in both, None for text.
        where: index of the row that has it.
    """

    name: str
    first: str | None
    second: str | None
    differing: int | None = None
    numbers: int = 0
    largest: float | None = None
    where: int | None = None

    @property
    def is_equal(self) -> bool:
        """Whether both files hold the same here."""
        return self.first == self.second and self.differing == 0


@dataclass(frozen=True)
class Comparison:
    """How two files differ.

    Attributes:
        first, second: the files.
        same_bytes: they are copies; then nothing else is listed.
        header: name of a root attribute -> its two values, where they differ.
        settings, inputs, software: key -> its two values, where they differ.
        lineage: ancestors of the first file alone, and of the second alone.
        columns: every dataset of either file.
    """

    first: Path
    second: Path
    same_bytes: bool
    header: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    settings: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    inputs: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    software: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    lineage: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))
    columns: tuple[ColumnDifference, ...] = ()

    @property
    def same_values(self) -> bool:
        """Whether every dataset of both holds the same, whatever the header says."""
        return self.same_bytes or all(column.is_equal for column in self.columns)


def compare(first: Path, second: Path) -> Comparison:
    """Compare two artifacts of any kind, reading both wholly, a block at a time.

    Raises:
        ArtifactError: one of them is missing, damaged or no artifact.
    """
    with open_artifact(first) as (header, file), open_artifact(second) as (other, other_file):
        if _same_bytes(first, second):
            return Comparison(first, second, same_bytes=True)
        mine, theirs = dict(datasets_of(file)), dict(datasets_of(other_file))
        return Comparison(
            first=first,
            second=second,
            same_bytes=False,
            header=_header_differences(header, other, file, other_file),
            settings=_differences(header.settings, other.settings),
            inputs=_differences(header.inputs, other.inputs),
            software=_differences(header.software, other.software),
            lineage=(
                sorted(set(header.lineage) - set(other.lineage)),
                sorted(set(other.lineage) - set(header.lineage)),
            ),
            columns=tuple(
                _compare_column(name, mine.get(name), theirs.get(name))
                for name in [*mine, *(name for name in theirs if name not in mine)]
            ),
        )


def as_json(comparison: Comparison) -> dict[str, Any]:
    """A comparison as JSON values."""
    plain = asdict(comparison) | {"same_values": comparison.same_values}
    plain |= {"first": str(comparison.first), "second": str(comparison.second)}
    cleaned: dict[str, Any] = finite(plain)
    return cleaned


def _same_bytes(first: Path, second: Path) -> bool:
    if first.stat().st_size != second.stat().st_size:
        return False
    with first.open("rb") as file, second.open("rb") as other:
        while block := file.read(_READ_BYTES):
            if block != other.read(_READ_BYTES):
                return False
    return True


def _header_differences(
    header: Header, other: Header, file: h5py.File, other_file: h5py.File
) -> dict[str, tuple[Any, Any]]:
    """Schema, id, classes, and the attributes that only this kind of file has."""
    names = {"schema", "id", "classes"}
    mine = {name: value for name, value in asdict(header).items() if name in names}
    theirs = {name: value for name, value in asdict(other).items() if name in names}
    known = set(asdict(header))
    mine |= {name: _text(value) for name, value in file.attrs.items() if name not in known}
    theirs |= {name: _text(value) for name, value in other_file.attrs.items() if name not in known}
    return _differences(mine, theirs)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(np.asarray(value).tolist())


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    pairs = {
        key: (first.get(key, ABSENT), second.get(key, ABSENT))
        for key in sorted(first.keys() | second.keys())
    }
    return {key: (mine, theirs) for key, (mine, theirs) in pairs.items() if mine != theirs}


class _Kinds(NamedTuple):
    first: str | None
    second: str | None


def _compare_column(
    name: str, first: h5py.Dataset | None, second: h5py.Dataset | None
) -> ColumnDifference:
    kinds = _Kinds(_kind_of(first), _kind_of(second))
    if first is None or second is None or first.shape != second.shape:
        return ColumnDifference(name, *kinds)
    if first.dtype.kind not in "biuf" or second.dtype.kind not in "biuf":
        texts = [np.ravel(dataset[()]).tolist() for dataset in (first, second)]
        differing = sum(mine != theirs for mine, theirs in zip(*texts, strict=True))
        return ColumnDifference(name, *kinds, differing, len(texts[0]))
    return _compare_numbers(name, kinds, first, second)


def _compare_numbers(
    name: str, kinds: _Kinds, first: h5py.Dataset, second: h5py.Dataset
) -> ColumnDifference:
    differing, largest, where = 0, 0.0, None
    for rows in blocks(first, budget=None):
        chosen = () if first.ndim == 0 else rows
        mine, theirs = (np.atleast_1d(dataset[chosen]) for dataset in (first, second))
        unequal = (mine != theirs) & ~((mine != mine) & (theirs != theirs))
        if not unequal.any():
            continue
        differing += int(unequal.sum())
        with np.errstate(invalid="ignore"):
            gaps = np.abs(mine.astype(np.float64) - theirs.astype(np.float64))
        gaps[~np.isfinite(gaps)] = 0
        if gaps.max() > largest:
            largest = float(gaps.max())
            where = rows.start + int(np.unravel_index(gaps.argmax(), gaps.shape)[0])
    return ColumnDifference(name, *kinds, differing, int(first.size), largest, where)


def _kind_of(dataset: h5py.Dataset | None) -> str | None:
    if dataset is None:
        return None
    dtype = dataset.dtype if dataset.dtype.kind in "biuf" else "text"
    return f"{dtype} {' x '.join(map(str, dataset.shape)) or 'single'}"
