"""detect: score, cap, refine and suppress regions, from pixels or from a feature cache."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rcnnpipe.detect_options import (
    OFF,
    check_suppression,
    suppression_of,
    suppression_options,
    unused,
)
from rcnnpipe.errors import ArtifactError, SettingError
from rcnnpipe.options import (
    StageCommand,
    data_argument,
    device_option,
    images_option,
    out_option,
    precision_option,
    refuse_given,
    say,
    scales_option,
    seed_option,
    split_option,
    stage_settings,
    workers_option,
)
from rcnnpipe.systems.rcnn import MOST_PER_IMAGE, MOST_PER_SET
from rcnnpipe.systems.soft_nms import GREEDY

if TYPE_CHECKING:
    from rcnnpipe.artifacts.rows import Array, RowWriter
    from rcnnpipe.artifacts.store import Header
    from rcnnpipe.datasets import Dataset

VERSION = 2  # detectors pad their layers, VGG16 pools with sizes rounded up

# What --candidates have behind them, and what they do not need.
_OF_SCORING = (
    *("scales", "flip", "refine", "score_threshold", "max_per_image", "max_proposals"),
    *("suppress_first", "images"),
)
_OF_THE_NETWORK = ("seed", "batch_size", "precision", "device")


@click.command("detect", cls=StageCommand)
@data_argument
@split_option
@click.option("--model", type=click.Path(path_type=Path), help="The network, to go by pixels.")
@click.option("--features", type=click.Path(path_type=Path), help="A feature cache instead of it.")
@click.option(
    "--candidates",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Detections made with --keep-candidates, to suppress anew; several are put together.",
)
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
@suppression_options
@click.option(
    "--max-detections",
    type=click.IntRange(min=0),
    default=0,
    help="Best of an image over all classes after suppression; 0: all, py-faster-rcnn: 100.",
)
@click.option("--max-proposals", type=click.IntRange(min=0), default=0, help="Best of an image.")
@click.option("--batch-size", type=click.IntRange(min=1), default=256, help="Windows at once.")
@images_option
@click.option(
    "--suppress-first",
    is_flag=True,
    help="Suppress within each class before the caps as well, as SPP-net does; R-CNN caps first.",
)
@click.option(
    "--flip",
    is_flag=True,
    help="Look at each image mirrored as well; what is found in both is put together.",
)
@click.option("--keep-candidates", is_flag=True, help="Store what was there before suppression.")
@seed_option
@scales_option
@precision_option
@device_option
@workers_option
@out_option("The detections file.")
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Find objects in DATA: a data set, a folder of images, or one image.

    Regions come from --proposals, from --features, or from selective search on the spot. Scores are
    the SVM's margins, or the network's probabilities. Scores are never changed by the regression,
    and nothing is suppressed before the caps. Of several --scales each given region takes the one
    that suits its size; a network that finds its regions looks at all, and puts together what it
    finds.
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
    if sum(bool(options[name]) for name in ("model", "features", "candidates")) != 1:
        raise SettingError(
            "detect needs one of --model (from pixels), --features (from a cache) and --candidates "
            "(to suppress anew)"
        )
    check_suppression(ctx, options)
    dataset = open_dataset(options["data"], options["split"])
    if options["candidates"]:
        _suppress_anew(ctx, dataset, options)
        say(f"wrote {out} ({len(dataset.records)} images, {time.monotonic() - started:.0f} s)")
        return
    if options["features"] is not None:
        refuse_given(
            ctx,
            ("proposals", "max_proposals", "scales", "flip", "images"),
            "with --features, whose regions are taken as they are",
        )
    device = choose_device(options["device"], options["precision"])
    workers = options["workers"]
    threshold = options["score_threshold"]
    with open_source(dataset, options, device, workers) as source:
        header = make_header(
            "detections",
            stage="detect",
            version=VERSION,
            settings=stage_settings(ctx, unused(options), OFF) | {"device": device.type},
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
                    options["nms_overlap"] if options["suppress_first"] else 1.0,
                    source.smallest(dataset.records[i].size),
                )

        with torch.inference_mode():
            write_rows(
                *(out, header, COLUMNS, dataset.image_ids),
                dataset.sizes,
                produce,
                lambda writer: _finish(writer, out, header, options),
                label="detect",
                together=options["images"],
            )
    seconds = time.monotonic() - started
    say(f"wrote {out} ({len(dataset.records)} images, {seconds:.0f} s)")


def _finish(writer: "RowWriter", out: Path, header: "Header", options: dict[str, Any]) -> None:
    """Cap and suppress over the whole set; the journal held the candidates."""
    from rcnnpipe.artifacts.detections import COLUMNS

    candidates = {name: writer.column(name) for name in COLUMNS}
    _write(out, header, options, writer.images(), candidates, writer.offsets)
    writer.clear()


def _write(
    out: Path,
    header: "Header",
    options: dict[str, Any],
    images: "dict[str, Array]",
    candidates: "dict[str, Array]",
    offsets: "Array",
) -> None:
    """Cap and suppress candidates (C, ...) of all images, and write what remains."""
    from rcnnpipe.artifacts.store import write_artifact
    from rcnnpipe.ragged import offsets_of
    from rcnnpipe.suppression import select

    classes = len(header.classes) - 1
    rules = (options["max_per_set"], suppression_of(options), options["max_detections"])
    columns, counts = select(candidates, offsets, classes, *rules)
    arrays = images | {"offsets": offsets_of(counts)} | columns
    if options["keep_candidates"]:
        arrays |= {f"candidates/{name}": column for name, column in candidates.items()}
        arrays["candidates/offsets"] = offsets
    write_artifact(out, header, arrays)


def _suppress_anew(ctx: click.Context, dataset: "Dataset", options: dict[str, Any]) -> None:
    """Detections from candidates that were kept, of one run or of several models together."""
    from rcnnpipe.artifacts.detections import read_candidates
    from rcnnpipe.artifacts.store import encode_strings, make_header, require_same_classes
    from rcnnpipe.detection import gather_candidates

    refuse_given(
        ctx,
        (*_OF_SCORING, "proposals", "svm", "bbox_reg"),
        "with --candidates, whose scores and boxes are as they are",
    )
    paths = options["candidates"]
    found = [read_candidates(path) for path in paths]
    first = found[0].header
    for path, other in zip(paths[1:], found[1:], strict=True):
        require_same_classes(str(paths[0]), first.classes, str(path), other.classes)
    if options["suppression"] != GREEDY:
        for path, one in zip(paths, found, strict=True):
            if "svm" in one.header.inputs or (one.scores < 0).any():
                raise ArtifactError(
                    f"{path} holds margins of an SVM, and --suppression {options['suppression']} "
                    "lowers probabilities; leave it out"
                )
    header = make_header(
        "detections",
        stage="detect",
        version=VERSION,
        settings=stage_settings(ctx, (*_OF_SCORING, *_OF_THE_NETWORK, *unused(options)), OFF),
        inputs={"data": dataset}
        | {f"candidates-{number}": one.header for number, one in enumerate(found, start=1)},
        classes=first.classes,
        software=["torch", "torchvision"],
    )
    candidates, offsets = gather_candidates(paths, found, dataset)
    images = {
        "image_ids": encode_strings(dataset.image_ids),
        "sizes": dataset.sizes,
    }
    _write(options["out"], header, options, images, candidates, offsets)
