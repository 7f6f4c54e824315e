"""Training curves as a table that DVC and spreadsheets plot."""

import csv
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path


def write_curves(path: Path, curves: Mapping[str, Sequence[float]]) -> None:
    """Write curves of equal length as CSV, one line for each logged interval; replaces the file.

    Whole numbers are written without a fraction, what is not a number as an empty field.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".partial")
    with fresh.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(curves)
        writer.writerows(zip(*(map(_field, curve) for curve in curves.values()), strict=True))
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def _field(value: float) -> str:
    if math.isnan(value):
        return ""
    return str(int(value)) if value == int(value) else repr(value)
