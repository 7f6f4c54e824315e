"""``rcnnpipe show``: what is known about images, and how windows become cells, drawn."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rcnnpipe.errors import SettingError
from rcnnpipe.options import (
    CommaList,
    StageCommand,
    data_argument,
    device_option,
    refuse_given,
    say,
    scales_option,
    seed_option,
    split_option,
)
from rcnnpipe.system_options import AUGMENTATION, augmentation_options

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from rcnnpipe.datasets import Record
    from rcnnpipe.extraction.maps import MapExtractor
    from rcnnpipe.report.mapping import Mapper

VERSION = 1
_OF_MARKS = ("proposals", "detections", "model", "threshold", "kinds", "top")
_OF_MAPPING = ("windows", "given", "scales", "device")

_HELP = """Draw what is known about images, side by side.

Panels: ground truth (with masks and keypoints), proposals (the best one of each object in colour,
with its IoU and rank), detections, and mistakes: duplicate, localisation (IoU .1 to .5),
confusion with another class, background; and missed objects.

With --model, a network with a pyramid: how windows are mapped. A row for each window: the image
and the scale that is chosen; the map of that scale and the window's cells; the pyramid's bins over
these cells and their maxima. Windows are some of the best proposals, well apart in size; where
there are no proposals, of the annotated objects.

With --draws, --mirror, --photometric, --random-crop or --scale-jitter: what finetune sees of an
image with these settings, drawn anew for each panel, with boxes, masks and keypoints. Crowds are
ignored and difficult objects are as others, which is finetune's default but for rpn and faster.

--out DIR gets a picture for each image, and without --model a contact sheet; --out FILE.png one
picture of all.
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


class _Window(click.ParamType[tuple[float, float, float, float]]):
    """A box x1,y1,x2,y2 with an area."""

    name = "x1,y1,x2,y2"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, float, float, float]:
        try:
            x1, y1, x2, y2 = map(float, str(value).split(","))
            is_window = 0 < x2 - x1 < math.inf and 0 < y2 - y1 < math.inf
        except ValueError:
            is_window = False
        if not is_window:
            self.fail(
                f"{value!r} is no window; give x1,y1,x2,y2 in pixels, x1 below x2 and y1 below y2",
                param,
                ctx,
            )
        return x1, y1, x2, y2


@click.command("show", cls=StageCommand, help=_HELP)
@data_argument
@split_option
@click.option("--proposals", type=click.Path(path_type=Path), help="A proposals file to draw.")
@click.option("--detections", type=click.Path(path_type=Path), help="A detections file to draw.")
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    help="A network with a pyramid, to draw how it maps windows.",
)
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
@click.option(
    "--top",
    type=click.IntRange(min=0),
    default=50,
    help="Best proposals to draw, or to choose windows from.",
)
@click.option(
    "--windows",
    type=click.IntRange(min=1),
    help="Windows of an image to map.",
    show_default="3",
)
@click.option(
    "--window",
    "given",
    type=_Window(),
    multiple=True,
    help="A window to map, in pixels of the image, instead of chosen ones; repeatable.",
)
@click.option(
    "--draws",
    type=click.IntRange(1, 100),
    help="Panels of what training sees of each image.",
    show_default="3, with one of the next options",
)
@click.option(
    "--mirror/--no-mirror",
    default=None,
    help="Whether training also sees images mirrored.",
    show_default="mirror",
)
@augmentation_options
@scales_option
@device_option
@click.option("--size", type=click.IntRange(64, 4096), default=640, help="Longer side of a panel.")
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Choose images, look up what is known about them, draw and write."""
    started = time.monotonic()
    out: Path = options["out"]
    is_file = out.suffix.lower() == ".png"
    if out.is_dir() if is_file else out.is_file():
        raise SettingError(f"--out {out} must be a folder, or a file that ends in .png")
    written = _work_for(ctx, options)(options, is_file)
    pictures = "picture" if len(written) == 1 else "pictures"
    say(f"wrote {out} ({len(written)} {pictures}, {time.monotonic() - started:.1f} s)")


def _work_for(
    ctx: click.Context, options: dict[str, Any]
) -> Callable[[dict[str, Any], bool], list[Path]]:
    """What is drawn, by which options are given; those without a use are refused."""
    asked = any(options[name] for name in ("draws", *AUGMENTATION))
    if asked or options["mirror"] is not None:  # --no-mirror says something too
        refuse_given(ctx, _OF_MARKS + _OF_MAPPING, "where what training sees is drawn")
        return _show_training
    if options["model"]:
        others = ("detections", "kinds", "threshold")
        refuse_given(ctx, others, "with --model, which draws how windows are mapped")
        return _show_mapping
    refuse_given(ctx, _OF_MAPPING, "without --model, a network with a pyramid")
    return _show_marks


def _show_training(options: dict[str, Any], as_one: bool) -> list[Path]:
    """What training sees of images."""
    from rcnnpipe.finetuning.training_views import DRAWS, Training, draw_training
    from rcnnpipe.report.show import Show, choose
    from rcnnpipe.training.augmentation import Augmentation

    dataset = Show.open(options["data"], options["split"], None, None, None).dataset
    records = choose(dataset, options["images"], options["count"], options["seed"])
    training = Training(
        Augmentation(**{name: options[name] for name in AUGMENTATION}),
        *(options["mirror"] is not False, options["draws"] or DRAWS, options["seed"]),
    )
    size, out = options["size"], options["out"]
    return draw_training(dataset, records, training, out, size=size, as_one=as_one)


def _show_marks(options: dict[str, Any], as_one: bool) -> list[Path]:
    """What is known about images."""
    from rcnnpipe.report.show import Show, choose, draw

    known = Show.open(
        *(options["data"], options["split"], options["proposals"], options["detections"]),
        options["threshold"],
    )
    chosen = choose(known.dataset, options["images"], options["count"], options["seed"])
    for note in known.notes:
        say(note)
    return draw(
        *(known, chosen, known.panels(options["kinds"]), options["out"]),
        size=options["size"],
        top=options["top"],
        as_one=as_one,
    )


def _show_mapping(options: dict[str, Any], as_one: bool) -> list[Path]:
    """How a network with a pyramid maps windows."""
    from rcnnpipe.report.mapping_show import WINDOWS, draw_mappings, windows_chosen, windows_given
    from rcnnpipe.report.show import Show, choose

    if options["given"] and options["windows"]:
        raise SettingError("--windows chooses windows and --window gives them; leave one out")
    mapper = _open_mapper(options)
    known = Show.open(options["data"], options["split"], options["proposals"], None, None)
    records = choose(known.dataset, options["images"], options["count"], options["seed"])
    windows = [
        windows_given(record, options["given"])
        if options["given"]
        else windows_chosen(known, record, options["windows"] or WINDOWS, options["top"])
        for record in records
    ]
    return draw_mappings(
        *(mapper, records, windows, options["out"]), size=options["size"], as_one=as_one
    )


def _open_mapper(options: dict[str, Any]) -> "Mapper":
    """The network of --model, which must have a pyramid."""
    from dataclasses import replace

    from rcnnpipe.devices import choose_device
    from rcnnpipe.extraction.maps import POOLED, MapExtractor
    from rcnnpipe.models.folding import fold_batch_norm
    from rcnnpipe.models.projection import geometry_of
    from rcnnpipe.models.weights import read_network
    from rcnnpipe.report.mapping import Mapper

    _, network = read_network(options["model"])
    head = network.head
    if head is None:
        raise SettingError(
            f"{options['model']} has no pyramid and looks at warped windows instead of a map; "
            "rcnnpipe pretrain --pyramid 1,2,3,6 makes a network with one"
        )
    device = choose_device(options["device"])
    network = network.to(device).eval()
    fold_batch_norm(network)
    view = replace(head.view, scales=options["scales"]) if options["scales"] else head.view
    geometry = geometry_of(network, head.map)
    extractor = MapExtractor(network, [POOLED], device, view, geometry)
    return Mapper(_maps_of(extractor), head.map, view, geometry, head.pyramid.levels)


def _maps_of(
    extractor: "MapExtractor",
) -> "Callable[[Record, npt.NDArray[np.uint8], int], Tensor]":
    """The very maps from which features are extracted."""
    import numpy as np
    import torch

    from rcnnpipe.extraction.regions import Regions

    none = np.empty((0, 4), np.float32)

    @torch.inference_mode()
    def map_of(record: "Record", image: "npt.NDArray[np.uint8]", scale: int) -> "Tensor":
        pixels = torch.from_numpy(image).to(extractor.device).permute(2, 0, 1)
        return extractor._map(pixels, scale, Regions(record, none)).cpu()

    return map_of
