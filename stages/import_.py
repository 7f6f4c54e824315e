"""import: a detector of torchvision's as a model of ours."""

import time
from pathlib import Path
from typing import Any

import click

from rcnnpipe.options import StageCommand, out_option, say

VERSION = 1

_NETWORKS = (
    *("resnet50", "resnet18", "resnet101"),
    *("mobilenet_v3_large", "mobilenet_v3_large_320"),
)
# fasterrcnn_resnet50_fpn_coco-258fb6c6.pth: torchvision names its files by their SHA-256, and sets
# the epsilon of this one's batch norms to 0 in code.
_WITHOUT_EPSILON = "258fb6c6"


@click.command("import", cls=StageCommand)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--format", "format_", type=click.Choice(["torchvision"]), default="torchvision", help="Whose."
)
@click.option(
    "--network",
    type=click.Choice(_NETWORKS),
    default=_NETWORKS[0],
    help="Below the feature pyramid; 320 is the same at that size, as its file does not tell.",
)
@click.option(
    "--classes",
    required=True,
    metavar="FILE|A,B,...|coco",
    help="Names in the order of the outputs, without the background; a file has one in a line.",
)
@click.option(
    "--epsilon",
    type=click.FloatRange(min=0),
    help="What batch norms add to variances.",
    show_default="1e-05; 0 for torchvision's released fasterrcnn_resnet50_fpn",
)
@out_option("The model file.")
def command(
    file: Path, format_: str, network: str, classes: str, epsilon: float | None, out: Path
) -> None:
    """Read the detector in FILE: a .pth, .safetensors or .npz of torchvision's Faster R-CNN.

    What detect makes of it then equals torchvision's own detections with --score-threshold 0.05
    --nms-overlap 0.5 --max-per-image 0 --max-per-set 0 --max-detections 100.
    """
    from rcnnpipe.artifacts.foreign import foreign_file
    from rcnnpipe.artifacts.model import write_model
    from rcnnpipe.artifacts.store import make_header
    from rcnnpipe.class_names import class_names
    from rcnnpipe.models import torchvision_detectors

    started = time.monotonic()
    names = ("background", *class_names(classes))
    weights = foreign_file(file)
    if epsilon is None:
        released = weights.id.startswith(_WITHOUT_EPSILON)
        epsilon = 0.0 if released else torchvision_detectors.EPSILON
    detector = torchvision_detectors.read_detector(file, network, len(names), epsilon)
    settings: dict[str, Any] = {"network": network, "format": format_, "epsilon": epsilon}
    header = make_header(
        "model",
        stage="import",
        version=VERSION,
        settings=settings,
        inputs={"weights": weights},
        classes=names,
        software=["torch", "torchvision"],
    )
    write_model(out, header, detector.settings(), detector.tensors())
    say(f"wrote {out} ({len(names) - 1} classes, {time.monotonic() - started:.1f} s)")
