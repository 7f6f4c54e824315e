"""prepare: draw the demo set, or fetch a public one by its usual download."""

import time
from pathlib import Path

import click

from rcnnpipe.options import StageCommand, say, seed_option

VERSION = 1

SETS = ("shapes", "shapes-pretrain", "voc2007", "voc2012")


@click.command("prepare", cls=StageCommand)
@click.argument("name", type=click.Choice(SETS))
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder to make.",
)
@click.option(
    "--images",
    metavar="SPLIT=N,...",
    help="How many images to draw; default 120, 40, 60 (shapes), 300, 60 (shapes-pretrain).",
)
@seed_option
def command(name: str, out: Path, images: str | None, seed: int) -> None:
    """Draw the demo set, or fetch a public one by its usual download.

    "shapes" is drawn: boxes, masks, keypoints, crowds, empty images; "shapes-pretrain" holds other
    shapes to train a first network on. "voc2007" and "voc2012" are fetched from their home (1 and
    2 GB, checksums compared) with a recipe beside them. A set that is complete is left as it is.
    """
    started = time.monotonic()
    if name.startswith("voc"):
        from rcnnpipe.datasets.voc_download import fetch_voc

        if images is not None:
            raise click.UsageError(f"--images is for drawn sets; {name} is what it is")
        recipe = fetch_voc(out, name.removeprefix("voc"))
        click.echo(f"wrote {recipe} ({time.monotonic() - started:.1f} s)", err=True)
        return
    from rcnnpipe.datasets.shapes import COUNTS, draw_set, is_drawn
    from rcnnpipe.progress import track

    counts = dict(COUNTS[name]) if images is None else _counts(images)
    if is_drawn(out, name, counts, seed):
        say(f"{out} is complete: drawn with the same settings before")
        return
    total = sum(counts.values())
    for _ in track(draw_set(out, name, counts, seed), total, f"draw {name}"):
        pass
    split = ", ".join(f"{split} {count}" for split, count in counts.items())
    seconds = time.monotonic() - started
    click.echo(f"wrote {out} ({total} images: {split}; {seconds:.1f} s)", err=True)


def _counts(text: str) -> dict[str, int]:
    """``train=120,val=40`` as a mapping."""
    counts: dict[str, int] = {}
    for part in text.split(","):
        split, _, count = part.strip().partition("=")
        if not split.isidentifier() or not count.isdigit() or int(count) > 1_000_000 - 1:
            raise click.BadParameter(
                f"{part!r} is not SPLIT=NUMBER, such as train=120", param_hint="--images"
            )
        if split in counts:
            raise click.BadParameter(f"{split!r} is named twice", param_hint="--images")
        counts[split] = int(count)
    return counts
