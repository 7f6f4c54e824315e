"""``rcnnpipe show``: ground truth, proposals, detections and mistakes, drawn on images."""

import time
from pathlib import Path
from typing import Any

import click

from rcnnpipe.errors import SettingError
from rcnnpipe.options import (
    CommaList,
    StageCommand,
    data_argument,
    say,
    seed_option,
    split_option,
)

VERSION = 1

_HELP = """Draw what is known about images, side by side.

Panels: ground truth (with masks and keypoints), proposals (the best one of each object in colour,
with its IoU and rank), detections, and mistakes: duplicate, localisation (IoU .1 to .5),
confusion with another class, background; and missed objects.

--out DIR gets a picture for each image and a contact sheet; --out FILE.png one picture of all.
"""


class _Threshold(click.ParamType[float | None]):
    """A number, or "auto"."""

    name = "auto|number"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | None:
        if value == "auto" or value is None:
            return None
        try:
            return float(value)
        except (TypeError, ValueError):
            self.fail(f"{value!r} is neither 'auto' nor a number", param, ctx)


@click.command("show", cls=StageCommand, help=_HELP)
@data_argument
@split_option
@click.option("--proposals", type=click.Path(path_type=Path), help="A proposals file to draw.")
@click.option("--detections", type=click.Path(path_type=Path), help="A detections file to draw.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("show"), help="Folder or FILE.png."
)
@click.option("--images", type=CommaList(), help="Ids of the images to draw.")
@click.option(
    "--count", type=click.IntRange(min=1), default=6, help="Else so many, chosen by --seed."
)
@seed_option
@click.option(
    "--threshold",
    type=_Threshold(),
    default="auto",
    help="Least score that is shown; auto: of each class the one of best F1 on this very split.",
)
@click.option(
    "--kind",
    "kinds",
    type=click.Choice(["truth", "proposals", "detections", "errors"]),
    multiple=True,
    help="Panels to draw; repeatable; default: all there is something for.",
)
@click.option("--top", type=click.IntRange(min=0), default=50, help="Proposals to draw.")
@click.option("--size", type=click.IntRange(64, 4096), default=640, help="Longer side of a panel.")
def command(
    data: Path,
    split: str | None,
    proposals: Path | None,
    detections: Path | None,
    out: Path,
    images: tuple[str, ...] | None,
    count: int,
    seed: int,
    threshold: float | None,
    kinds: tuple[str, ...],
    top: int,
    size: int,
) -> None:
    """Choose images, look up what is known about them, draw and write."""
    from rcnnpipe.report.show import Show, choose, draw

    started = time.monotonic()
    is_file = out.suffix.lower() == ".png"
    if out.is_dir() if is_file else out.is_file():
        raise SettingError(f"--out {out} must be a folder, or a file that ends in .png")
    known = Show.open(data, split, proposals, detections, threshold)
    chosen = choose(known.dataset, images, count, seed)
    for note in known.notes:
        say(note)
    written = draw(known, chosen, known.panels(kinds), out, size=size, top=top, as_one=is_file)
    pictures = "picture" if len(written) == 1 else "pictures"
    say(f"wrote {out} ({len(written)} {pictures}, {time.monotonic() - started:.1f} s)")
