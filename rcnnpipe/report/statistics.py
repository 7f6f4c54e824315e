"""Statistics of the datasets of an HDF5 file, in one pass over blocks of rows.

A file may be much larger than memory, and larger than one wants to wait for: a dataset of more
than ``BUDGET_BYTES`` is read in evenly spaced blocks, and says how many rows that were. What is in
memory at once is one block, some ``BLOCK_BYTES``, in double precision.

R rows, D numbers in a row.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

BLOCK_BYTES = 2**22
BUDGET_BYTES = 2**27  # about a second of gzip

_FILTERS = {1: "gzip", 32000: "lzf", 32015: "zstd"}
_SHUFFLE = 2


@dataclass(frozen=True)
class Column:
    """What one dataset holds.

    Attributes:
        name: its path in the file.
        shape, dtype, compression: as stored; compression is None where there is none.
        stored_bytes: what it takes in the file.
        rows: R, the first dimension; 1 for a single value.
        rows_read: rows the statistics are taken from; fewer than ``rows`` in a sample.
        minimum, maximum, mean, deviation: of the finite numbers; None where there are none.
        zeros: share of the numbers that are 0, in [0, 1].
        not_numbers, infinite: how many are NaN, how many infinite.
        norms: least, mean and largest L2 norm of a row, for rows of several numbers.
        dead: columns that are 0 in every row read, for matrices (R, D).
        empty_rows: rows that are 0 throughout, for rows of several numbers.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    compression: str | None
    stored_bytes: int
    rows: int
    rows_read: int
    minimum: float | None = None
    maximum: float | None = None
    mean: float | None = None
    deviation: float | None = None
    zeros: float | None = None
    not_numbers: int = 0
    infinite: int = 0
    norms: tuple[float, float, float] | None = None
    dead: int | None = None
    empty_rows: int | None = None

    @property
    def is_sample(self) -> bool:
        """Whether some rows were not read."""
        return self.rows_read < self.rows


def blocks(dataset: h5py.Dataset, budget: int | None = BUDGET_BYTES) -> list[slice]:
    """Slices of rows to read: all of them, or evenly spaced ones up to ``budget`` bytes.

    Each is made of whole chunks, so that none is decompressed twice.
    """
    if dataset.ndim == 0:
        return [slice(0, 1)]
    rows = len(dataset)
    if rows == 0:
        return []
    row_bytes = max(1, dataset.nbytes // rows)
    chunk = dataset.chunks[0] if dataset.chunks else 1
    step = max(1, BLOCK_BYTES // (row_bytes * chunk)) * chunk
    count = -(-rows // step)
    wanted = count if budget is None else max(2, budget // (row_bytes * step))
    chosen = np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(np.int64))
    return [slice(start, min(start + step, rows)) for start in (chosen * step).tolist()]


def read_block(dataset: h5py.Dataset, rows: slice) -> np.ndarray[Any, Any]:
    """Rows of a dataset; a single value counts as one row."""
    return np.asarray(dataset[()])[None] if dataset.ndim == 0 else dataset[rows]


def describe(name: str, dataset: h5py.Dataset, budget: int | None = BUDGET_BYTES) -> Column:
    """The statistics of one dataset; of strings only shape and size.

    Args:
        name: its path in the file.
        dataset: of any type and shape.
        budget: most bytes to read; None reads everything.
    """
    plan = blocks(dataset, budget) if _is_numeric(dataset) else []
    gathered = _Gathered(dataset)
    for rows in plan:
        gathered.add(read_block(dataset, rows))
    rows_total = len(dataset) if dataset.ndim else 1
    return Column(
        name=name,
        shape=tuple(dataset.shape),
        dtype=_dtype_name(dataset),
        compression=_compression(dataset),
        stored_bytes=dataset.id.get_storage_size(),
        rows=rows_total,
        rows_read=gathered.rows if _is_numeric(dataset) else rows_total,
        **gathered.figures(),
    )


class _Gathered:
    """Sums over the blocks seen so far."""

    def __init__(self, dataset: h5py.Dataset) -> None:
        self.rows = self.numbers = self.finite = 0
        self.zeros = self.not_numbers = self.infinite = 0
        self.total = self.squares = 0.0
        self.low, self.high = np.inf, -np.inf
        self.norm_low, self.norm_high, self.norm_total = np.inf, -np.inf, 0.0
        self.normed = self.empty_rows = 0
        self.wide = dataset.ndim > 1
        self.alive = np.zeros(dataset.shape[1], np.bool_) if dataset.ndim == 2 else None

    def add(self, block: np.ndarray[Any, Any]) -> None:
        values = block.astype(np.float64).reshape(len(block), -1)  # (r, D)
        self.rows += len(values)
        self.numbers += values.size
        nonzero = values != 0
        self.zeros += values.size - int(np.count_nonzero(nonzero))
        if self.alive is not None:
            self.alive |= nonzero.any(axis=0)
        if self.wide:
            self._add_norms(values)
        if not np.isfinite(values.sum()):
            finite = np.isfinite(values)
            not_numbers = int(np.isnan(values).sum())
            self.not_numbers += not_numbers
            self.infinite += values.size - int(finite.sum()) - not_numbers
            values = values[finite]
        self.finite += values.size
        if values.size:
            self.low = min(self.low, float(values.min()))
            self.high = max(self.high, float(values.max()))
            self.total += float(values.sum())
            self.squares += float(np.vdot(values, values))

    def _add_norms(self, values: npt.NDArray[np.float64]) -> None:
        with np.errstate(invalid="ignore", over="ignore"):
            norms = np.sqrt(np.einsum("ij,ij->i", values, values))
        norms = norms[np.isfinite(norms)]
        self.normed += len(norms)
        self.empty_rows += int((norms == 0).sum())
        if len(norms):
            self.norm_low = min(self.norm_low, float(norms.min()))
            self.norm_high = max(self.norm_high, float(norms.max()))
            self.norm_total += float(norms.sum())

    def figures(self) -> dict[str, Any]:
        if not self.numbers:
            return {}
        found: dict[str, Any] = {
            "zeros": self.zeros / self.numbers,
            "not_numbers": self.not_numbers,
            "infinite": self.infinite,
        }
        if self.finite:
            mean = self.total / self.finite
            variance = max(0.0, self.squares / self.finite - mean * mean)
            found |= {"minimum": self.low, "maximum": self.high}
            found |= {"mean": mean, "deviation": float(np.sqrt(variance))}
        if self.wide:
            found["empty_rows"] = self.empty_rows
        if self.normed:
            found["norms"] = (self.norm_low, self.norm_total / self.normed, self.norm_high)
        if self.alive is not None:
            found["dead"] = int((~self.alive).sum())
        return found


def _is_numeric(dataset: h5py.Dataset) -> bool:
    return dataset.dtype.kind in "biuf" and dataset.shape is not None


def _dtype_name(dataset: h5py.Dataset) -> str:
    return str(dataset.dtype) if dataset.dtype.kind in "biuf" else "text"


def _compression(dataset: h5py.Dataset) -> str | None:
    properties = dataset.id.get_create_plist()
    codes = [properties.get_filter(number)[0] for number in range(properties.get_nfilters())]
    names = [_FILTERS.get(code, f"filter {code}") for code in codes if code != _SHUFFLE]
    return "+".join(names) or None


def datasets_of(file: h5py.File) -> Iterator[tuple[str, h5py.Dataset]]:
    """Every dataset of a file by its path, numbers in it by value; links out are not followed."""
    found: dict[str, h5py.Dataset] = {}

    def visit(name: str, node: h5py.Dataset | h5py.Group) -> None:
        if isinstance(node, h5py.Dataset):
            found[name] = node

    file.visititems(visit)
    yield from sorted(found.items(), key=lambda item: _natural(item[0]))


def _natural(name: str) -> list[tuple[int, str]]:
    """A sort key that puts features.2 before features.10."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]
