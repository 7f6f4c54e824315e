"""propose: boxes that may hold objects, whatever they are, for every image of a data set."""

import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rcnnpipe.options import (
    ONE_IMAGE,
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

if TYPE_CHECKING:
    from rcnnpipe.proposals.precomputed import PrecomputedBoxes
    from rcnnpipe.proposals.spread import Proposer

VERSION = 1
MIN_SIZE = 20  # pixels, of boxes that no network proposes

# Method -> the options that only it reads, and the packages whose versions can change its boxes.
METHODS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "selective-search": (("strategy",), ("pillow",)),
    "opencv-fast": ((), ("pillow", "opencv-contrib-python-headless")),
    "opencv-quality": ((), ("pillow", "opencv-contrib-python-headless")),
    "selectivesearch": ((), ("pillow", "selectivesearch", "scikit-image")),
    "windows": (("overlap",), ()),
    "precomputed": (("boxes", "columns", "origin", "inclusive"), ()),
    "rpn": (("scales", "images", "precision", "device"), ("torch", "torchvision")),
}


@click.command("propose", cls=StageCommand)
@data_argument
@split_option
@click.option(
    "--method",
    type=click.Choice(list(METHODS)),
    default="selective-search",
    help="selective-search is our own; selectivesearch is the package of that name.",
)
@click.option(
    "--strategy",
    type=click.Choice(["fast", "quality"]),
    default="fast",
    help="Of selective-search: 8 or 80 hierarchies; quality is meant for more boxes.",
)
@click.option(
    "--max-boxes", type=click.IntRange(min=1), default=2000, help="Best of an image kept."
)
@click.option(
    "--min-size",
    type=click.IntRange(min=0),
    show_default=f"{MIN_SIZE}; of rpn: the model's own",
    help="Least width and height of a box.",
)
@click.option(
    "--resize-width",
    type=click.IntRange(min=20, max=10_000),
    help="Search images at this width instead of their own (the authors: 500 for ILSVRC).",
)
@click.option(
    "--overlap",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.75,
    help="Of windows: the share of its side a window shares with the next.",
)
@click.option(
    "--boxes",
    type=click.Path(path_type=Path),
    help="Of precomputed: a .mat, .json or .npz file, or a folder with ID.mat, ... for each image.",
)
@click.option(
    "--columns",
    type=click.Choice(["x1y1x2y2", "y1x1y2x2", "xywh"]),
    default="x1y1x2y2",
    help="Of precomputed: their order; a fifth column is a score.",
)
@click.option(
    "--origin",
    type=click.IntRange(0, 1),
    default=0,
    help="Of precomputed: number of the first pixel; MATLAB's is 1.",
)
@click.option(
    "--inclusive/--exclusive",
    default=False,
    help="Of precomputed: x2 and y2 are the last pixel inside, or lie one past it.",
)
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    help="Of rpn: a detector with an RPN, from finetune --system rpn, faster or fpn.",
)
@scales_option
@images_option
@precision_option
@device_option
@seed_option
@workers_option
@out_option("The proposals file.")
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Propose boxes for every image of DATA, ranked, best first.

    The same image, settings and seed give the same boxes, by any number of workers. A run that
    was stopped goes on where it was.
    """
    _check_usage(ctx, options)

    from rcnnpipe.artifacts.proposals import COLUMNS
    from rcnnpipe.artifacts.store import make_header, open_artifact
    from rcnnpipe.datasets import open_dataset
    from rcnnpipe.proposals.spread import propose_all
    from rcnnpipe.sharing import write_rows

    started = time.monotonic()
    out, method = options["out"], options["method"]
    dataset = open_dataset(options["data"], options["split"])
    records = dataset.records
    others = {name for key, (names, _) in METHODS.items() if key != method for name in names}
    if method != "rpn" and options["min_size"] is None:
        options["min_size"] = ctx.params["min_size"] = MIN_SIZE
    settings = stage_settings(ctx, others, ONE_IMAGE)
    precomputed, rpn = None, None
    inputs: dict[str, Any] = {"data": dataset}
    if method == "rpn":
        from rcnnpipe.extraction.rpn import open_rpn

        rpn = open_rpn(options, inputs)
        assert rpn.proposals is not None
        settings |= {"device": rpn.device.type, "min-size": rpn.proposals.min_size}
    elif method == "precomputed":
        precomputed = _open_boxes(options)
        precomputed.check(records)
        settings["boxes"] = precomputed.digest(records)
    header = make_header(
        "proposals",
        stage="propose",
        version=VERSION,
        settings=settings,
        inputs=inputs,
        classes=(),
        software=METHODS[method][1],
    )
    workers = max(1, options["workers"])

    def produce(numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
        todo = [records[number] for number in numbers]
        if rpn is not None:
            from rcnnpipe.extraction.rpn import propose_by

            yield from propose_by(rpn, todo, options["workers"])
            return
        limits: dict[str, Any] = {
            "max_boxes": options["max_boxes"],
            "min_size": options["min_size"],
        }
        if precomputed is not None:
            for record in todo:
                yield precomputed.propose(record, **limits)._asdict()
            return
        proposer, prepare = _proposer(method, options, limits)
        for proposed in propose_all(proposer, todo, options["seed"], workers, prepare):
            yield proposed._asdict()

    write_rows(
        *(out, header, COLUMNS, dataset.image_ids),
        dataset.sizes,
        produce,
        lambda writer: writer.finish(),
        label="propose",
        together=options["images"],
    )
    if precomputed is not None and precomputed.left_out:
        say(
            f"{precomputed.left_out} boxes are left out, because a side is below --min-size "
            f"{options['min_size']:g}"
        )
    with open_artifact(out, "proposals") as (_, file):
        total = int(file["offsets"][-1])
    mean, seconds = total / max(len(records), 1), time.monotonic() - started
    say(f"wrote {out} ({len(records)} images, {mean:.0f} boxes each, {seconds:.0f} s)")


def _check_usage(ctx: click.Context, options: dict[str, Any]) -> None:
    if (options["boxes"] is not None) != (options["method"] == "precomputed"):
        raise click.UsageError("--method precomputed and --boxes FILE go together", ctx)
    if (options["model"] is not None) != (options["method"] == "rpn"):
        raise click.UsageError("--method rpn and --model FILE go together", ctx)
    if options["method"] == "rpn":
        refuse_given(ctx, ("resize_width",), "with --method rpn, which has --scales")
    else:
        refuse_given(ctx, METHODS["rpn"][0], "without --method rpn")
    if options["resize_width"] is not None and options["method"] == "precomputed":
        raise click.UsageError("--resize-width has no meaning for precomputed boxes", ctx)


def _open_boxes(options: dict[str, Any]) -> "PrecomputedBoxes":
    from rcnnpipe.proposals.precomputed import BoxFormat, PrecomputedBoxes

    form = BoxFormat(options["columns"], options["origin"], options["inclusive"])
    return PrecomputedBoxes(options["boxes"], form)


def _proposer(
    method: str, options: dict[str, Any], limits: dict[str, Any]
) -> tuple["Proposer", Any]:
    """The chosen method with its settings, and what compiles it, where it is compiled."""
    from rcnnpipe.proposals import adapters, windows
    from rcnnpipe.proposals.scaling import propose_at_width

    prepare, proposer = None, partial(windows.propose, overlap=options["overlap"], **limits)
    if method == "selective-search":
        from rcnnpipe.proposals import selective_search

        prepare = selective_search.compile_functions
        strategy = selective_search.STRATEGIES[options["strategy"]]
        proposer = partial(selective_search.propose, strategy=strategy, **limits)
    elif method == "selectivesearch":
        proposer = partial(adapters.selectivesearch_package, **limits)
    elif method.startswith("opencv-"):
        mode: Any = method.removeprefix("opencv-")
        proposer = partial(adapters.opencv, mode=mode, **limits)
    if options["resize_width"] is not None:
        proposer = partial(propose_at_width, proposer=proposer, width=options["resize_width"])
    return proposer, prepare
