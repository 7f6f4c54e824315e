"""detect: score, cap, refine and suppress regions, from pixels or from a feature cache."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rcnnpipe.errors import SettingError
from rcnnpipe.options import (
    StageCommand,
    cores,
    data_argument,
    device_option,
    out_option,
    precision_option,
    say,
    seed_option,
    split_option,
    stage_settings,
    workers_option,
)

if TYPE_CHECKING:
    from rcnnpipe.artifacts.rows import RowWriter

VERSION = 1

# rcnn_test.m: at most 100 candidates for a class in an image, 40 on average over the set.
MOST_PER_IMAGE, MOST_PER_SET = 100, 40


@click.command("detect", cls=StageCommand)
@data_argument
@split_option
@click.option("--model", type=click.Path(path_type=Path), help="The network, to go by pixels.")
@click.option("--features", type=click.Path(path_type=Path), help="A feature cache instead of it.")
@click.option(
    "--proposals",
    type=click.Path(path_type=Path),
    help="Regions; by default selective search finds them.",
)
@click.option(
    "--svm", type=click.Path(path_type=Path), help="Scores; by default the network's own softmax."
)
@click.option("--bbox-reg", type=click.Path(path_type=Path), help="Moves boxes; by default none.")
@click.option("--refine/--no-refine", default=True, help="Whether to use --bbox-reg.")
@click.option(
    "--score-threshold", type=float, default=None, help="Drop candidates that score no more."
)
@click.option(
    "--max-per-image",
    type=click.IntRange(min=0),
    default=MOST_PER_IMAGE,
    help="Candidates for a class in an image before suppression; 0: all.",
)
@click.option(
    "--max-per-set",
    type=click.IntRange(min=0),
    default=MOST_PER_SET,
    help="The same for a class over all images, on average; 0: all.",
)
@click.option(
    "--nms-overlap",
    type=click.FloatRange(0, 1),
    default=0.3,
    help="IoU above which the worse box goes; 1 suppresses nothing.",
)
@click.option("--max-proposals", type=click.IntRange(min=0), default=0, help="Best of an image.")
@click.option("--batch-size", type=click.IntRange(min=1), default=256, help="Windows at once.")
@click.option("--keep-candidates", is_flag=True, help="Store what was there before suppression.")
@seed_option
@precision_option
@device_option
@workers_option
@out_option("The detections file.")
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Find objects in DATA: a data set, a folder of images, or one image.

    Regions come from --proposals, from --features, or from selective search on the spot. Scores are
    the SVM's margins, or the network's probabilities. Scores are never changed by the regression,
    and nothing is suppressed before the caps.
    """
    import numpy as np
    import torch

    from rcnnpipe.artifacts.detections import COLUMNS
    from rcnnpipe.artifacts.store import make_header
    from rcnnpipe.datasets import open_dataset
    from rcnnpipe.detection import detect_regions
    from rcnnpipe.detection_sources import open_source
    from rcnnpipe.devices import choose_device
    from rcnnpipe.sharing import write_rows

    started = time.monotonic()
    out = options["out"]
    if (options["model"] is None) == (options["features"] is None):
        raise SettingError("detect needs either --model (from pixels) or --features (from a cache)")
    dataset = open_dataset(options["data"], options["split"])
    device = choose_device(options["device"])
    workers = cores() if options["workers"] is None else options["workers"]
    threshold = options["score_threshold"]
    with open_source(dataset, options, device, workers) as source:
        header = make_header(
            "detections",
            stage="detect",
            version=VERSION,
            settings=stage_settings(ctx) | {"device": device.type},
            inputs=source.inputs,
            classes=source.classes,
            software=["torch", "torchvision"],
        )

        def produce(numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
            for i, (boxes, features) in zip(numbers, source.regions(numbers), strict=True):
                yield detect_regions(
                    features,
                    boxes,
                    dataset.records[i].size,
                    source.scorer,
                    source.refiner,
                    -np.inf if threshold is None else threshold,
                    options["max_per_image"],
                )

        with torch.inference_mode():
            write_rows(
                *(out, header, COLUMNS, dataset.image_ids),
                np.array([record.size for record in dataset.records]),
                produce,
                lambda writer: _finish(writer, out, header, options),
                label="detect",
            )
    seconds = time.monotonic() - started
    say(f"wrote {out} ({len(dataset.records)} images, {seconds:.0f} s)")


def _finish(writer: "RowWriter", out: Path, header: Any, options: dict[str, Any]) -> None:
    """Cap and suppress over the whole set; the journal held the candidates."""
    from rcnnpipe.artifacts.detections import COLUMNS
    from rcnnpipe.artifacts.store import write_artifact
    from rcnnpipe.detection import select
    from rcnnpipe.ragged import offsets_of

    candidates = {name: writer.column(name) for name in COLUMNS}
    classes = len(header.classes) - 1
    columns, counts = select(
        candidates, writer.offsets, classes, options["max_per_set"], options["nms_overlap"]
    )
    arrays = writer.images() | {"offsets": offsets_of(counts)} | columns
    if options["keep_candidates"]:
        arrays |= {f"candidates/{name}": column for name, column in candidates.items()}
        arrays["candidates/offsets"] = writer.offsets
    write_artifact(out, header, arrays)
    writer.clear()
