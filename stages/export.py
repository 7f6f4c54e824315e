"""``rcnnpipe export``: detections, models and proposals in the formats of other tools."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rcnnpipe.errors import SettingError
from rcnnpipe.options import StageCommand, is_hdf5, refuse_given, say, scales_option, split_option
from rcnnpipe.systems.rcnn import MOST_PER_IMAGE, NMS_OVERLAP

if TYPE_CHECKING:
    from rcnnpipe.export.agreement import Pixels

VERSION = 1

# format -> (kind of artifact it takes, what --out names)
_FORMATS = {
    "coco": ("detections", "a .json file"),
    "voc": ("detections", "a folder"),
    "safetensors": ("model", "a .safetensors file"),
    "torchvision": ("model", "a .safetensors file"),
    "onnx": ("model", "an .onnx file"),
    "npz": ("proposals", "a .npz file"),
    "json": ("proposals", "a .json file"),
}

# What the graph of ONNX has in it, as in rcnnpipe detect, and what it is compared on.
_RULES = ("score_threshold", "nms_overlap", "max_per_image", "max_detections")
_OF_ONNX = ("verify", "scales", *_RULES)

_HELP = """Write an artifact in a format of other tools.

\b
detections  coco         COCO result json; needs --data for its category ids
            voc          comp4_det_SPLIT_CLASS.txt in the folder --out; needs --split
model       safetensors  tensors, with the architecture in the metadata
            torchvision  the same of a detector, by the names of its fasterrcnn_resnet50_fpn
            onnx         a detector as a graph: image (1, 3, H, W) float32 RGB 0..255 in, and of a
                         Fast R-CNN proposals (R, 4); boxes, scores and labels out, as detect finds
                         them with the same options and --max-per-set 0; written only if
                         onnxruntime finds the same as PyTorch in the images of --verify
proposals   npz, json    boxes x1 y1 x2 y2 and scores for every image id
"""


@click.command("export", cls=StageCommand, help=_HELP)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--format", "format_", type=click.Choice(list(_FORMATS)), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File or folder.")
@click.option("--data", type=click.Path(path_type=Path), help="The data set of the detections.")
@split_option
@click.option(
    "--digits",
    type=click.IntRange(1, 17),
    default=6,
    help="Decimals in VOC's files; 6 as the authors' code prints, 9 to lose nothing.",
)
@click.option(
    "--verify",
    type=click.Path(path_type=Path),
    help="ONNX: data set (with --split), folder or image to compare on; by default drawn scenes.",
)
@scales_option
@click.option(
    "--score-threshold",
    type=click.FloatRange(0, 1),
    default=0.05,
    help="ONNX: drop candidates that score no more.",
)
@click.option(
    "--nms-overlap",
    type=click.FloatRange(0, 1),
    default=NMS_OVERLAP,
    help="ONNX: IoU above which the worse box goes; 1 suppresses nothing.",
)
@click.option(
    "--max-per-image",
    type=click.IntRange(min=0),
    default=MOST_PER_IMAGE,
    help="ONNX: candidates for a class before suppression; 0: all.",
)
@click.option(
    "--max-detections",
    type=click.IntRange(min=0),
    default=100,
    help="ONNX: best of an image over all classes after suppression; 0: all.",
)
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Read the one kind of artifact a format takes, and write it."""
    started = time.monotonic()
    file, format_, out = options["file"], options["format_"], options["out"]
    kind, place = _FORMATS[format_]
    if (format_ == "voc" and out.is_file()) or (format_ != "voc" and out.is_dir()):
        raise SettingError(f"--format {format_} writes {place}, which {out} is not")
    if out.is_file() and is_hdf5(out):
        raise SettingError(f"{out} is an artifact, so it is not replaced by {place}; name another")
    if format_ != "onnx":
        refuse_given(ctx, _OF_ONNX, "but with --format onnx")
    if format_ != "voc":
        refuse_given(ctx, ("digits",), "but with --format voc")
    out.parent.mkdir(parents=True, exist_ok=True)
    if kind == "detections":
        what = _export_detections(
            *(file, format_, out, options["data"], options["split"], options["digits"])
        )
    elif kind == "model":
        what = _export_model(file, format_, out, options)
    else:
        what = _export_proposals(file, format_, out)
    say(f"wrote {out} ({what}, {time.monotonic() - started:.1f} s)")


def _export_proposals(file: Path, format_: str, out: Path) -> str:
    from rcnnpipe.artifacts.proposals import read_proposals
    from rcnnpipe.report import box_files

    proposals = read_proposals(file)
    write = box_files.write_npz if format_ == "npz" else box_files.write_json
    write(out, proposals)
    return f"{len(proposals.boxes)} boxes"


def _export_model(file: Path, format_: str, out: Path, options: dict[str, Any]) -> str:
    from rcnnpipe.artifacts.model import read_model
    from rcnnpipe.report import weight_files

    if format_ == "onnx":
        return _export_onnx(file, out, options)
    writes = {
        "safetensors": weight_files.write_safetensors,
        "torchvision": weight_files.write_torchvision,
    }
    return f"{writes[format_](out, read_model(file))} tensors"


def _export_onnx(file: Path, out: Path, options: dict[str, Any]) -> str:
    from rcnnpipe.artifacts.model import read_model
    from rcnnpipe.export.graph import DetectionRules
    from rcnnpipe.export.onnx_file import write_onnx

    rules = DetectionRules(**{name: options[name] for name in _RULES})
    images = None
    if options["verify"] is not None:
        images = _images(options["verify"], options["split"])
    return f"equal on {write_onnx(out, read_model(file), rules, options['scales'], images)}"


def _images(data: Path, split: str | None) -> "Iterator[Pixels]":
    from rcnnpipe.datasets import open_dataset
    from rcnnpipe.datasets.pixels import read_pixels
    from rcnnpipe.progress import track

    records = open_dataset(data, split).records
    return (read_pixels(record) for record in track(records, len(records), "verify"))


def _export_detections(
    file: Path, format_: str, out: Path, data: Path | None, split: str | None, digits: int
) -> str:
    from rcnnpipe.artifacts.detections import read_detections
    from rcnnpipe.datasets import open_dataset
    from rcnnpipe.report.result_files import write_coco_results, write_comp4

    detections = read_detections(file)
    count = f"{len(detections.boxes)} detections"
    if format_ == "voc":
        if not split:
            raise SettingError("--format voc needs --split NAME: it is part of the files' names")
        paths = write_comp4(out, detections, split, digits)
        return f"{count}, {len(paths)} classes"
    if data is None:
        raise SettingError("--format coco needs --data: category ids are the data set's own")
    dataset = open_dataset(data, split, need_images=False)
    _, are_integers = write_coco_results(out, file, detections, dataset)
    if not are_integers:
        say("image ids are no numbers here, so they stay text; COCO's own tools expect numbers")
    return count
