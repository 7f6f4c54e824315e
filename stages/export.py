"""``rcnnpipe export``: detections, models and proposals in the formats of other tools."""

import time
from pathlib import Path

import click

from rcnnpipe.errors import SettingError
from rcnnpipe.options import StageCommand, say, split_option

VERSION = 1

# format -> (kind of artifact it takes, what --out names)
_FORMATS = {
    "coco": ("detections", "a .json file"),
    "voc": ("detections", "a folder"),
    "safetensors": ("model", "a .safetensors file"),
    "torchvision": ("model", "a .safetensors file"),
    "npz": ("proposals", "a .npz file"),
    "json": ("proposals", "a .json file"),
}

_HELP = """Write an artifact in a format of other tools.

\b
detections  coco         COCO result json; needs --data for its category ids
            voc          comp4_det_SPLIT_CLASS.txt in the folder --out; needs --split
model       safetensors  tensors, with the architecture in the metadata
            torchvision  the same of a detector, by the names of its fasterrcnn_resnet50_fpn
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
def command(
    file: Path, format_: str, out: Path, data: Path | None, split: str | None, digits: int
) -> None:
    """Read the one kind of artifact a format takes, and write it."""
    from rcnnpipe.report import box_files, weight_files

    started = time.monotonic()
    kind, place = _FORMATS[format_]
    if (format_ == "voc" and out.is_file()) or (format_ != "voc" and out.is_dir()):
        raise SettingError(f"--format {format_} writes {place}, which {out} is not")
    out.parent.mkdir(parents=True, exist_ok=True)
    if kind == "detections":
        what = _export_detections(file, format_, out, data, split, digits)
    elif kind == "model":
        from rcnnpipe.artifacts.model import read_model

        writes = {
            "safetensors": weight_files.write_safetensors,
            "torchvision": weight_files.write_torchvision,
        }
        what = f"{writes[format_](out, read_model(file))} tensors"
    else:
        from rcnnpipe.artifacts.proposals import read_proposals

        proposals = read_proposals(file)
        write = box_files.write_npz if format_ == "npz" else box_files.write_json
        write(out, proposals)
        what = f"{len(proposals.boxes)} boxes"
    say(f"wrote {out} ({what}, {time.monotonic() - started:.1f} s)")


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
