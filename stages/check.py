"""check: every fault of a data set at once, its statistics, and a list of what to leave out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rcnnpipe.options import (
    StageCommand,
    data_argument,
    json_option,
    say,
    split_option,
    workers_option,
)

if TYPE_CHECKING:
    from rcnnpipe.datasets.faults import Fault
    from rcnnpipe.datasets.recipe import Recipe

VERSION = 1

_SHOWN = 10  # warnings of one kind that are printed; --json has them all


@click.command("check", cls=StageCommand)
@data_argument
@split_option
@click.option("--fix", is_flag=True, help="Write a quarantine list that leaves every error out.")
@click.option(
    "--quarantine",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where --fix writes; default beside the recipe or in the folder, where the reader looks.",
)
@workers_option
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    data: Path,
    split: str | None,
    fix: bool,
    quarantine: Path | None,
    workers: int,
    as_json: bool,
) -> None:
    """Find every fault of a data set; list what to leave out.

    Each fault is named with its image and annotation. Errors keep the set from being read, warnings
    do not. Exit code 0: no error is left (with --fix: every error is quarantined); 1: errors.
    """
    from rcnnpipe.datasets.faults import ERROR
    from rcnnpipe.datasets.lint import (
        check_images,
        check_objects,
        check_set,
        parse_splits,
        unique_images,
    )
    from rcnnpipe.datasets.recipe import read_source
    from rcnnpipe.datasets.statistics import statistics
    from rcnnpipe.progress import track

    if quarantine is not None and not fix:
        raise click.UsageError("--quarantine says where --fix writes; give --fix too")
    recipe = read_source(data)
    chosen = [recipe.choose_split(split) or ""] if split else list(recipe.splits) or [""]
    splits, faults = parse_splits(recipe, chosen)
    for parsed in splits.values():
        faults += parsed.faults
    images = unique_images(splits)
    for found in track(check_images(images, workers), len(images), "check"):
        faults += found
    faults += check_objects(splits)
    faults += check_set(recipe, splits)
    faults = sorted(dict.fromkeys(faults), key=lambda fault: fault.severity != ERROR)
    figures = {name or "all": statistics(parsed) for name, parsed in splits.items()}
    if as_json:
        click.echo(json.dumps(_document(recipe, figures, faults), indent=1))
    else:
        _print(recipe, figures, faults)
    left = [fault for fault in faults if fault.severity == ERROR]
    if fix and left:
        left = _quarantine(recipe, left, quarantine)
    ctx.exit(1 if left else 0)


def _quarantine(recipe: "Recipe", errors: Sequence["Fault"], path: Path | None) -> list["Fault"]:
    """Write the list; returns the errors that no list can leave out."""
    from rcnnpipe.datasets.quarantine import entries_of, write_quarantine
    from rcnnpipe.datasets.recipe import usual_quarantine

    usual = recipe.quarantine or usual_quarantine(recipe.origin)
    path = path or usual
    entries = entries_of(errors)
    write_quarantine(path, entries)
    what = f"{len(entries['images'])} images and {len(entries['objects'])} objects"
    click.echo(f"wrote {path} ({what} left out)", err=True)
    if path.resolve() != usual.resolve():
        say(f"to use it, put `quarantine: {path}` into a recipe of the data set")
    left = [fault for fault in errors if fault.image_id is None]
    for fault in left:
        say(f"not to be quarantined: {fault}")
    return left


def _document(
    recipe: "Recipe", figures: dict[str, Any], faults: Sequence["Fault"]
) -> dict[str, Any]:
    severities = [fault.severity for fault in faults]
    return {
        "data": str(recipe.origin),
        "format": recipe.format,
        "errors": severities.count("error"),
        "warnings": severities.count("warning"),
        "faults": [
            {
                "severity": fault.severity,
                "kind": fault.kind,
                "image": fault.image_id,
                "annotation": fault.annotation,
                "message": fault.message,
            }
            for fault in faults
        ],
        "splits": figures,
    }


def _print(recipe: "Recipe", figures: dict[str, Any], faults: Sequence["Fault"]) -> None:
    for split, figure in figures.items():
        click.echo(f"{recipe.name} ({recipe.format}), split {split}: {_summary(figure)}")
        counts = sorted(figure["classes"].items(), key=lambda item: -item[1])
        click.echo("  classes: " + ", ".join(f"{name} {count}" for name, count in counts))
        for name in ("side", "aspect", "objects per image", "image width", "image height"):
            if figure[name]:
                row = " ".join(f"{value:>8g}" for value in figure[name])
                click.echo(f"  {name:<18} {row}   (min, 10, 25, 50, 75, 90 %, max)")
    shown: dict[str, int] = {}
    for fault in faults:
        shown[fault.kind] = shown.get(fault.kind, 0) + 1
        if fault.severity == "error" or shown[fault.kind] <= _SHOWN:
            click.echo(f"{fault.severity} {fault.kind}: {fault}")
    for kind, count in shown.items():
        if count > _SHOWN and any(f.kind == kind and f.severity != "error" for f in faults):
            click.echo(f"... {count - _SHOWN} more of {kind}; --json lists all")
    errors = sum(fault.severity == "error" for fault in faults)
    click.echo(f"{errors} errors, {len(faults) - errors} warnings")


def _summary(figure: dict[str, Any]) -> str:
    flags = [f"{figure[name]} {name}" for name in ("difficult", "truncated", "crowd", "masks")]
    return (
        f"{figure['images']} images ({figure['images without objects']} without objects), "
        f"{figure['objects']} objects ({', '.join(flags)}), "
        + ", ".join(f"{count} {size}" for size, count in figure["sizes"].items())
    )
