"""``rcnnpipe inspect``: what an artifact holds and where it came from; how two differ."""

import json
from pathlib import Path

import click

from rcnnpipe.options import StageCommand, json_option

VERSION = 1

_HELP = """What an artifact of any kind holds and where it came from.

Prints schema, lineage, settings, shapes, statistics, the first rows, and what looks wrong. With
OTHER, prints how the two files differ: settings, lineage, and the largest difference of values.

Of a data set above 128 MiB evenly spaced blocks are read; --full reads all. Comparing reads all.
"""


@click.command("inspect", cls=StageCommand, help=_HELP)
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("other", type=click.Path(path_type=Path), required=False)
@click.option("--rows", type=click.IntRange(min=0), default=5, help="First rows to print.")
@click.option("--full", is_flag=True, help="Read large data sets wholly instead of in a sample.")
@json_option
def command(file: Path, other: Path | None, rows: int, full: bool, as_json: bool) -> None:
    """Print an inspection, or a comparison, on stdout."""
    from rcnnpipe.report import comparison, inspection, text
    from rcnnpipe.report.statistics import BUDGET_BYTES

    if other is not None:
        compared = comparison.compare(file, other)
        found = comparison.as_json(compared)
        words = text.comparison_text(compared)
    else:
        budget = None if full else BUDGET_BYTES
        inspected = inspection.inspect(file, rows, budget)
        found = inspection.as_json(inspected)
        words = text.inspection_text(inspected)
    click.echo(json.dumps(found, indent=2) if as_json else words)
