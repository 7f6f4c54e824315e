"""Inspections and comparisons as text for a terminal."""

import json
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from rcnnpipe.report.comparison import ABSENT, Comparison
from rcnnpipe.report.inspection import Inspection
from rcnnpipe.report.statistics import Column

_LONGEST = 100  # characters of a value before it is cut


def table(titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Lines of a table: the first column to the left, numbers to the right; empty without rows."""
    cells = [[_cell(value) for value in row] for row in rows]
    if not cells:
        return []
    numeric = [
        number > 0 and all(isinstance(row[number], _Number) or not row[number] for row in cells)
        for number in range(len(titles))
    ]
    widths = [
        max(len(line[number]) for line in [list(titles), *cells]) for number in range(len(titles))
    ]
    lines = []
    for line in [list(titles), *cells]:
        aligned = (
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        )
        lines.append("  " + "  ".join(aligned).rstrip())
    return lines


def inspection_text(found: Inspection) -> str:
    """An inspection for a person."""
    header = found.header
    lines = [f"{found.path}: {header.schema}, {size_text(found.file_bytes)}", ""]
    facts = {
        "id": header.id,
        "inputs": _pairs(header.inputs) or "none",
        "lineage": ", ".join(header.lineage) or "none",
        "classes": _classes_text(header.classes),
        "settings": _pairs(header.settings) or "none",
        "software": _pairs(header.software),
        **{name: _short(value) for name, value in found.attributes.items()},
    }
    if found.images:
        images = found.images
        facts["images"] = f"{images.count}, {images.without_rows} of them without rows"
        spread = f"{images.least} to {images.most}, median {images.median:g}"
        facts["rows"] = f"{images.rows}; per image {spread}"
    if header.kind == "model":
        tensors = [column for column in found.columns if column.name.startswith("tensors/")]
        numbers = sum(math.prod(column.shape) for column in tensors)
        facts["tensors"] = f"{len(tensors)} of {numbers:,} numbers"
    width = max(map(len, facts))
    for name, fact in facts.items():
        wrapped = textwrap.wrap(fact, _LONGEST - width, break_on_hyphens=False)
        lines += [
            f"{title.ljust(width)}  {part}"
            for title, part in zip_longest([name], wrapped, fillvalue="")
        ]
    lines += _section("Data sets", _columns_table(found.columns))
    lines += _section("Boxes", _boxes_table(found))
    lines += _section("Classes", _classes_table(found.by_class))
    lines += _section("First rows" if found.images else "Each class", _rows_table(found.first_rows))
    lines += _section("Notes", [f"  {note}" for note in _sample_notes(found.columns)])
    lines += _section("Warnings", [f"  {warning}" for warning in found.warnings])
    return "\n".join(lines)


def comparison_text(found: Comparison) -> str:
    """A comparison for a person."""
    title = f"{found.first} and {found.second}"
    if found.same_bytes:
        return f"{title}: same bytes"
    equal = "same values, " if found.same_values else ""
    lines = [f"{title}: {equal}different bytes"]
    for name in ("header", "settings", "inputs", "software"):
        pairs: Mapping[str, tuple[Any, Any]] = getattr(found, name)
        rows = [(key, _short(mine), _short(theirs)) for key, (mine, theirs) in pairs.items()]
        lines += _section(f"Different {name}", table(("", "first", "second"), rows))
    only = [
        f"  of the {which} alone: {', '.join(ids)}"
        for which, ids in zip(("first", "second"), found.lineage, strict=True)
        if ids
    ]
    lines += _section("Ancestors", only)
    differing = [
        (
            column.name,
            column.first or ABSENT,
            column.second or ABSENT,
            "" if column.differing is None else f"{column.differing} of {column.numbers}",
            column.largest,
            column.where,
        )
        for column in found.columns
        if not column.is_equal
    ]
    titles = ("", "first", "second", "values that differ", "largest difference", "in row")
    lines += _section("Different data sets", table(titles, differing))
    equal_ones = [column.name for column in found.columns if column.is_equal]
    lines += _section("Equal data sets", [f"  {', '.join(equal_ones)}"] if equal_ones else [])
    return "\n".join(lines)


def size_text(size: float) -> str:
    """A number of bytes with three digits: 1.23 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _columns_table(columns: Sequence[Column]) -> list[str]:
    titles = (
        "",
        "type",
        "shape",
        "in file",
        "min",
        "mean",
        "max",
        "deviation",
        "zeros",
        "NaN",
        "inf",
    )
    rows = []
    for column in columns:
        zeros = None if column.zeros is None else _Number(f"{100 * column.zeros:.1f} %")
        figures: list[Any] = [column.minimum, column.mean, column.maximum, column.deviation, zeros]
        if column.dtype != "text":
            figures += [column.not_numbers, column.infinite]
        figures += [None] * (7 - len(figures))
        shape = " x ".join(map(str, column.shape)) or "single"
        stored = size_text(column.stored_bytes) + (
            f" {column.compression}" if column.compression else ""
        )
        rows.append((column.name, column.dtype, shape, stored, *figures))
    lines = table(titles, rows)
    normed = [
        (column.name, *column.norms, column.empty_rows, column.dead)
        for column in columns
        if column.norms and column.name.startswith(("layers/", "tensors/", "weights"))
    ]
    norm_titles = ("norms of rows", "least", "mean", "largest", "zero rows", "dead columns")
    norms = table(norm_titles, normed)
    return [*lines, *([""] if norms else []), *norms]


def _boxes_table(found: Inspection) -> list[str]:
    if found.boxes is None:
        return []
    boxes = found.boxes
    titles = ("", "least", "1st quarter", "median", "3rd quarter", "largest")
    rows = [
        ("side, square root of the area, pixels", *boxes.side),
        ("width / height", *boxes.aspect),
        ("share of the image", *boxes.share),
    ]
    counts = f"{boxes.small} small, {boxes.medium} medium, {boxes.large} large"
    return [*table(titles, rows), f"  {counts} (below 32, below 96 pixels squared, above)"]


def _classes_table(by_class: Mapping[str, Mapping[str, int]]) -> list[str]:
    kinds = list(next(iter(by_class.values()), {}))
    titles = ("", *(kind.replace("_", " ") for kind in kinds))
    return table(titles, [(name, *counts.values()) for name, counts in by_class.items()])


def _rows_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    titles = list(dict.fromkeys(name for row in rows for name in row))
    return table(titles, [[row.get(name) for name in titles] for row in rows])


def _sample_notes(columns: Sequence[Column]) -> list[str]:
    return [
        f"{column.name}: statistics of {column.rows_read} of {column.rows} rows, evenly spaced; "
        "--full reads all"
        for column in columns
        if column.is_sample
    ]


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return ["", f"{title}:", *lines] if lines else []


class _Number(str):
    """A cell that is aligned to the right."""


def _cell(value: Any) -> str:
    if value is None:
        return _Number("")
    if isinstance(value, _Number):
        return value
    if isinstance(value, float):
        whole = value.is_integer() and abs(value) < 1e12
        return _Number(f"{value:.0f}" if whole else f"{value:.5g}")
    if isinstance(value, int) and not isinstance(value, bool):
        return _Number(value)
    if isinstance(value, list):
        return " ".join(_cell(item) for item in value)
    return str(value)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_short(value)}" for name, value in values.items())


def _classes_text(classes: Sequence[str]) -> str:
    if not classes:
        return "none"
    return f"{len(classes) - 1}: {', '.join(classes[1:])}"
