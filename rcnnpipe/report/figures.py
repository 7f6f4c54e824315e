"""The figures of an evaluation: as lines for a terminal, as JSON, as the files of a folder."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rcnnpipe.report.files import whole_file
from rcnnpipe.report.text import table

# Shown on the terminal; per_class.csv holds all.
_MOST_ROWS = 40
_ONLY_IN_CSV = ("detections", "true_positives", "best_f1_precision", "best_f1_recall")


def judgement_lines(
    rows: Sequence[Mapping[str, Any]], figures: Mapping[str, float], notes: Sequence[str] = ()
) -> list[str]:
    """A table with a row for each class, or the like, the figures, and sentences to note."""
    kept = [
        {name: value for name, value in row.items() if name not in _ONLY_IN_CSV} for row in rows
    ]
    columns = list(dict.fromkeys(name for row in kept[:_MOST_ROWS] for name in row))
    titles = [name.replace("_", " ") for name in columns]
    cells = [[_shown(row.get(name, "")) for name in columns] for row in kept[:_MOST_ROWS]]
    lines = table(titles, cells)
    if len(rows) > _MOST_ROWS:
        lines.append(f"  ... {len(rows) - _MOST_ROWS} more classes in per_class.csv")
    width = max(map(len, figures))
    lines += ["", *(f"  {name.ljust(width)}  {_shown(value)}" for name, value in figures.items())]
    return [*lines, *(f"note: {note}" for note in notes)]


def _shown(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def json_bytes(figures: Mapping[str, float]) -> bytes:
    """Figures as JSON, sorted by name."""
    return (json.dumps(figures, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Each file whole or as it was before."""
    for name, content in files.items():
        with whole_file(folder / name) as partial:
            partial.write_bytes(content)
