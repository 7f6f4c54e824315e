"""train-svm: a linear SVM for each class on cached features, with hard-negative mining."""

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rcnnpipe.errors import DataError
from rcnnpipe.options import (
    StageCommand,
    json_option,
    out_option,
    say,
    seed_option,
    stage_settings,
    workers_option,
)
from rcnnpipe.systems.rcnn import SVM_LAYER

if TYPE_CHECKING:
    from rcnnpipe.linear.mining import Detector, Solver

VERSION = 1
_log = logging.getLogger(__name__)

# Columns of the report: heading, attribute of a detector, format.
_REPORT = (
    ("positives", "positives", "d"),
    ("seen", "negatives_seen", "d"),
    ("cached", "negatives_cached", "d"),
    ("fits", "fits", "d"),
    ("objective", "objective", ".6g"),
    ("gap", "gap", ".1e"),
    ("training AP", "average_precision", ".4f"),
)


@click.command("train-svm", cls=StageCommand)
@click.argument("features", type=click.Path(path_type=Path))
@click.option("--layer", default=SVM_LAYER, help="Whose features; a wrong name lists the file's.")
@click.option(
    "--solver",
    type=click.Choice(["dual", "liblinear"]),
    default="dual",
    help="dual is compiled and starts warm; liblinear is scikit-learn's, the reference.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(1e-6, 0.1),
    default=1e-5,
    help="Of dual: how far above the minimum the objective may be, relatively.",
)
@click.option(
    "--cost",
    type=click.FloatRange(0, min_open=True),
    default=1e-3,
    help="C: weight of the loss against the penalty, for features of mean norm 20.",
)
@click.option(
    "--positive-weight",
    type=click.FloatRange(0, min_open=True),
    default=2.0,
    help="How much more the loss of a positive counts.",
)
@click.option(
    "--bias-feature",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    help="The constant feature whose weight is the bias.",
)
@click.option(
    "--negative-overlap",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.3,
    help="A negative overlaps every object of the class by less.",
)
@click.option(
    "--thin",
    type=click.Choice(["none", "cells", "overlap"]),
    default="none",
    help="Negatives to leave out: none; those pooled from the same cells as another, or those that "
    "overlap another by more than 0.7 (SPP-net's code, and paper).",
)
@click.option(
    "--difficult",
    type=click.Choice(["keep", "drop"]),
    default="keep",
    help="Whether difficult objects are positives; the authors keep them.",
)
@click.option(
    "--hard",
    type=click.FloatRange(max=0, max_open=True),
    default=-1.0001,
    help="A negative that scores higher joins the cache.",
)
@click.option(
    "--easy",
    type=click.FloatRange(max=-1, max_open=True),
    default=-1.2,
    help="A cached negative that scores lower after a fit leaves it.",
)
@click.option(
    "--retrain-after",
    type=click.IntRange(min=0),
    default=2000,
    help="Fit again when more than this many negatives have joined.",
)
@click.option(
    "--passes",
    type=click.IntRange(min=1),
    default=1,
    help="Readings of the features at most; it ends when one brings nothing new.",
)
@seed_option
@workers_option
@json_option
@out_option("The SVM file.")
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Train a linear SVM for each class on one layer of FEATURES, mining hard negatives.

    Positives are the annotated objects of the class, negatives the regions that overlap all of them
    by less than 0.3. All classes share one reading of the file.
    """
    import numpy as np

    from rcnnpipe.artifacts.features import open_features
    from rcnnpipe.artifacts.store import make_header
    from rcnnpipe.artifacts.svm import write_svm
    from rcnnpipe.linear.cache import feature_scale, image_rows, positive_rows
    from rcnnpipe.linear.mining import Mining, train_detectors
    from rcnnpipe.progress import track

    started = time.monotonic()
    layer = options["layer"]
    mining = Mining(
        overlap=options["negative_overlap"],
        hard=options["hard"],
        easy=options["easy"],
        retrain_after=options["retrain_after"],
        passes=options["passes"],
    )
    with open_features(options["features"], options["workers"]) as features:
        header = make_header(
            "svm",
            stage="train-svm",
            version=VERSION,
            settings=stage_settings(ctx, _unused(options["solver"])),
            inputs=features.header.with_model(),
            classes=features.header.classes,
            software=["numba"] if options["solver"] == "dual" else ["scikit-learn"],
        )
        features.layer(layer)  # an unknown layer is told before anything is read
        features.warn_of_random_scales()
        positives = positive_rows(features, layer, difficult=options["difficult"] == "keep")
        names = header.classes[1:]
        if not any(len(rows) for rows in positives):
            raise DataError(
                f"{options['features']} has no annotated objects of {', '.join(names)}; extract "
                "features of an annotated split, with --truth"
            )
        scale, total = feature_scale(features, layer), int((np.diff(features.offsets) > 0).sum())
        detectors = train_detectors(
            lambda: track(image_rows(features, layer, options["thin"]), total, "train-svm"),
            positives,
            _solver(options),
            scale=scale,
            mining=mining,
            workers=options["workers"],
        )
    write_svm(
        options["out"],
        header,
        layer=layer,
        scale=scale,
        weights=np.stack([one.weights for one in detectors]),
        bias=np.array([one.bias for one in detectors], np.float32),
        report={
            name: np.array([getattr(one, name) for one in detectors]) for _, name, _ in _REPORT
        },
    )
    _tell(names, detectors, options["as_json"])
    _warn(names, detectors, options["tolerance"])
    say(f"wrote {options['out']} ({len(names)} classes, {time.monotonic() - started:.0f} s)")


def _unused(solver: str) -> list[str]:
    """Options that cannot change the result of a solver."""
    return ["tolerance"] if solver == "liblinear" else []


def _solver(options: dict[str, Any]) -> "Solver":
    from rcnnpipe.linear.svm import ROUGH, Costs, solve_dual, solve_liblinear

    costs = Costs(options["cost"], options["positive_weight"], options["bias_feature"])
    seed, tolerance = options["seed"], options["tolerance"]
    if options["solver"] == "liblinear":
        return lambda examples, alphas, last: solve_liblinear(examples, costs, seed=seed)
    rough = max(tolerance, ROUGH)
    return lambda examples, alphas, last: solve_dual(
        examples, costs, alphas=alphas, tolerance=tolerance if last else rough, seed=seed
    )


def _tell(names: Sequence[str], detectors: "Sequence[Detector]", as_json: bool) -> None:
    """The report: a table on stderr, or JSON on stdout."""
    rows = {
        name: {column: getattr(one, column) for _, column, _ in _REPORT}
        for name, one in zip(names, detectors, strict=True)
    }
    if as_json:
        finite = {
            name: {column: value if value == value else None for column, value in row.items()}
            for name, row in rows.items()
        }
        click.echo(json.dumps(finite, indent=1))
        return
    width = max(map(len, names))
    say(f"{'class':{width}} " + " ".join(f"{heading:>11}" for heading, _, _ in _REPORT))
    for name, row in rows.items():
        cells = " ".join(f"{row[column]:>11{form}}" for _, column, form in _REPORT)
        say(f"{name:{width}} {cells}")


def _warn(names: Sequence[str], detectors: "Sequence[Detector]", tolerance: float) -> None:
    """What is wrong with single SVMs."""
    for name, one in zip(names, detectors, strict=True):
        if one.gap > tolerance:
            _log.warning(
                "the SVM of %s stopped %.1e above its minimum, not %.1e; lower --cost, or take "
                "--solver liblinear",
                *(name, one.gap, tolerance),
            )
        if one.fits == 0:
            lacks = "no negatives" if one.positives else "no positives"
            say(f"{name} has {lacks}: it gets no SVM and will never be detected")
