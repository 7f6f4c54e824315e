"""train-bbox-reg: for each class, ridge regression from cached features to better boxes."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rcnnpipe.errors import ArtifactError, DataError
from rcnnpipe.options import (
    StageCommand,
    json_option,
    out_option,
    say,
    stage_settings,
    workers_option,
)
from rcnnpipe.systems.rcnn import REGRESSION_LAYER

if TYPE_CHECKING:
    from rcnnpipe.linear.ridge import Regressor

VERSION = 1

# Columns of the report: heading, attribute of a regressor, format.
_REPORT = (
    ("examples", "examples", "d"),
    ("IoU before", "overlap_before", ".4f"),
    ("IoU after", "overlap_after", ".4f"),
)


@click.command("train-bbox-reg", cls=StageCommand)
@click.argument("features", type=click.Path(path_type=Path))
@click.option(
    "--layer", default=REGRESSION_LAYER, help="Whose features; a wrong name lists the file's."
)
@click.option(
    "--penalty",
    type=click.FloatRange(0, min_open=True),
    default=1000.0,
    help="Lambda of the ridge regression, for features of mean norm 20.",
)
@click.option(
    "--min-overlap",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.6,
    help="Regions that overlap an object by more are examples.",
)
@click.option(
    "--whiten/--no-whiten",
    default=True,
    help="Whiten the targets, as the authors' code does; the paper does not say so.",
)
@click.option(
    "--widths",
    type=click.Choice(["inclusive", "continuous"]),
    default="inclusive",
    help="inclusive: x2 - x1 of the first and the last pixel, as the authors' code.",
)
@workers_option
@json_option
@out_option("The box regression file.")
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Train box regression for each class on one layer of FEATURES.

    A region that overlaps an object by more than 0.6 learns to become it. The file is read once.
    """
    import numpy as np

    from rcnnpipe.artifacts.bbox_reg import write_bbox_reg
    from rcnnpipe.artifacts.features import open_features
    from rcnnpipe.artifacts.store import make_header
    from rcnnpipe.linear.cache import feature_scale, image_rows
    from rcnnpipe.linear.examples import choose_examples, collect_features
    from rcnnpipe.linear.ridge import train_regressor
    from rcnnpipe.linear.rows import finite_rows, stored
    from rcnnpipe.progress import track

    started = time.monotonic()
    layer, pixel = options["layer"], 1.0 if options["widths"] == "inclusive" else 0.0
    with open_features(options["features"], options["workers"]) as features:
        header = make_header(
            "bbox-reg",
            stage="train-bbox-reg",
            version=VERSION,
            settings=stage_settings(ctx),
            inputs=features.header.with_model(),
            classes=features.header.classes,
            software=["scipy", "torch"],
        )
        features.layer(layer)  # an unknown layer is told before anything is read
        features.warn_of_random_scales()
        names, scale = header.classes[1:], feature_scale(features, layer)
        choice = choose_examples(features, options["min_overlap"], pixel)
        if len(choice.rows) == 0:
            raise DataError(
                f"{options['features']} has no region that overlaps an object by more than "
                f"{options['min_overlap']:g}; lower --min-overlap or extract more proposals"
            )
        total = int((np.diff(features.offsets) > 0).sum())
        images = track(image_rows(features, layer), total, "train-bbox-reg")
        rows = collect_features(images, choice, features.layers[layer], options["out"].parent)
        if not finite_rows(stored(rows)).all():
            raise ArtifactError(
                f"{options['features']} has features that are no finite numbers in layer "
                f"'{layer}'; look at it with rcnnpipe inspect and extract them again"
            )
        regions, objects = features.boxes[choice.rows], features.boxes[choice.objects]
    regressors = []
    for number in track(range(len(names)), len(names), "train-bbox-reg", unit="class"):
        own = slice(int(choice.offsets[number]), int(choice.offsets[number + 1]))
        regressors.append(
            train_regressor(
                *(rows[own], regions[own], objects[own]),
                scale=scale,
                penalty=options["penalty"],
                whiten=options["whiten"],
                pixel=pixel,
            )
        )
    write_bbox_reg(
        options["out"],
        header,
        layer=layer,
        scale=scale,
        pixel=pixel,
        weights=np.stack([one.weights for one in regressors]),
        bias=np.stack([one.bias for one in regressors]),
        mean=np.stack([one.whitening.mean for one in regressors]),
        whitening=np.stack([one.whitening.transform for one in regressors]),
        report={
            name: np.array([getattr(one, name) for one in regressors]) for _, name, _ in _REPORT
        },
    )
    _tell(names, regressors, options["as_json"])
    say(f"wrote {options['out']} ({len(names)} classes, {time.monotonic() - started:.0f} s)")


def _tell(names: Sequence[str], regressors: "Sequence[Regressor]", as_json: bool) -> None:
    """The report: a table on stderr, or JSON on stdout."""
    rows = {
        name: {column: getattr(one, column) for _, column, _ in _REPORT}
        for name, one in zip(names, regressors, strict=True)
    }
    if as_json:
        finite = {
            name: {column: value if value == value else None for column, value in row.items()}
            for name, row in rows.items()
        }
        click.echo(json.dumps(finite, indent=1))
        return
    width = max(map(len, names))
    say(f"{'class':{width}} " + " ".join(f"{heading:>10}" for heading, _, _ in _REPORT))
    for name, row in rows.items():
        cells = " ".join(f"{row[column]:>10{form}}" for _, column, form in _REPORT)
        say(f"{name:{width}} {cells}")
    for name, one in zip(names, regressors, strict=True):
        if one.examples == 0:
            say(f"{name} has no examples: its boxes stay as they are")
