"""compare: one table of what several systems reached."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from rcnnpipe.errors import DataError, SettingError
from rcnnpipe.options import CommaList, StageCommand, json_option, out_option, say

VERSION = 1

COLUMNS = "ap,ap50,ap75,voc_map_11_point,voc_map_area"


@click.command("compare", cls=StageCommand)
@click.argument("metrics", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--columns", type=CommaList(), default=COLUMNS, help="Names of metrics to show.")
@out_option("The table, as Markdown.", artifact=False)
@json_option
def command(metrics: Sequence[Path], columns: Sequence[str], out: Path, as_json: bool) -> None:
    """Put the METRICS of several evaluations into one table, a row for each.

    METRICS are metrics.json files of evaluate, or the folders that hold them; a folder's name names
    its row.
    """
    rows: dict[str, dict[str, float]] = {}
    for path in metrics:
        file = path / "metrics.json" if path.is_dir() else path
        name = file.parent.name if file.name == "metrics.json" else file.stem
        if name in rows:
            raise DataError(f"two rows would be called '{name}', the second is {file}")
        if file.resolve() == out.resolve():
            raise SettingError(f"--out {out} is also read and would be lost; name another")
        rows[name] = _read(file, columns)
    partial = out.with_name(out.name + ".partial")
    partial.write_text(_table(rows, columns), encoding="utf-8")
    partial.replace(out)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    say(_table(rows, columns))
    say(f"wrote {out} ({len(rows)} rows)")


def _read(file: Path, columns: Sequence[str]) -> dict[str, float]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}; run rcnnpipe evaluate first") from None
    except ValueError:
        raise DataError(f"{file} is no JSON; run rcnnpipe evaluate again") from None
    if not isinstance(found, Mapping):
        raise DataError(f"{file} holds no metrics by name; run rcnnpipe evaluate again")
    if not set(columns) & set(found):
        names = ", ".join(map(str, found)) or "nothing"
        raise DataError(f"{file} has none of {', '.join(columns)}; it has {names}")
    rows = {name: found[name] for name in columns if name in found}
    words = [name for name, value in rows.items() if type(value) not in (int, float)]
    if words:
        raise DataError(f"{file} has no number for {words[0]}; run rcnnpipe evaluate again")
    return {name: float(value) for name, value in rows.items()}


def _table(rows: Mapping[str, Mapping[str, float]], columns: Sequence[str]) -> str:
    """Markdown, in points of 100; what an evaluation does not have stays blank."""
    lines = [["system", *columns], ["---", *["---:"] * len(columns)]]
    for name, found in rows.items():
        figures = [f"{100 * found[key]:.1f}" if key in found else "" for key in columns]
        lines.append([name, *figures])
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns) + 1)]
    text = []
    for line in lines:
        cells = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        text.append(f"| {' | '.join(cells)} |")
    return "\n".join(text) + "\n"
