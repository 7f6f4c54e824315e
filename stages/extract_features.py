"""extract-features: cache what the network makes of every region, any set of layers in one pass."""

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rcnnpipe.errors import RcnnpipeError
from rcnnpipe.options import (
    CommaList,
    StageCommand,
    data_argument,
    device_option,
    out_option,
    precision_option,
    say,
    scales_option,
    seed_option,
    split_option,
    stage_settings,
    workers_option,
)

if TYPE_CHECKING:
    from rcnnpipe.artifacts.rows import RowWriter

VERSION = 1


@click.command("extract-features", cls=StageCommand)
@data_argument
@split_option
@click.option(
    "--proposals",
    type=click.Path(path_type=Path),
    help="Regions, from propose; without them only the ground truth is taken.",
)
@click.option("--model", required=True, type=click.Path(path_type=Path), help="The network.")
@click.option(
    "--layers",
    type=CommaList(),
    default="pool5,fc7",
    help="Names of layers; a wrong name lists the network's.",
)
@click.option(
    "--difficult",
    type=click.Choice(["keep", "ignore", "drop"]),
    default="keep",
    help="Objects marked difficult; the authors keep them.",
)
@click.option(
    "--crowd",
    type=click.Choice(["keep", "ignore", "drop"]),
    default="ignore",
    help="Objects marked as a crowd.",
)
@click.option("--truth/--no-truth", default=True, help="Take the annotated objects as regions too.")
@click.option(
    "--max-proposals", type=click.IntRange(min=0), default=0, help="Best of an image; 0: all."
)
@scales_option
@click.option(
    "--random-scales",
    is_flag=True,
    help="Each region from a random scale, for fine-tuning to learn from; not for the SVMs.",
)
@click.option("--mirror", is_flag=True, help="All images once more, mirrored, under ID@mirrored.")
@click.option("--batch-size", type=click.IntRange(min=1), default=256, help="Windows at once.")
@click.option(
    "--compression",
    type=click.Choice(["gzip", "zstd", "none"]),
    default="gzip",
    help="Of the file.",
)
@seed_option
@precision_option
@device_option
@workers_option
@out_option("The features file.")
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Cache the features of all regions of DATA: proposals, and the annotated objects.

    Within an image the annotated objects come first. Features are float16. A run that was stopped
    goes on where it was.
    """
    import numpy as np
    import torch

    from rcnnpipe.artifacts.features import PLACES, region_columns
    from rcnnpipe.artifacts.store import make_header
    from rcnnpipe.datasets import open_dataset
    from rcnnpipe.datasets.policy import Policy, labels_under
    from rcnnpipe.devices import choose_device
    from rcnnpipe.extraction.choice import extractor_for
    from rcnnpipe.extraction.regions import (
        Regions,
        bytes_needed,
        extract,
        mean_norm,
        mirrored,
        region_columns_of,
    )
    from rcnnpipe.models.folding import fold_batch_norm
    from rcnnpipe.models.weights import read_network
    from rcnnpipe.proposals.selection import proposals_for
    from rcnnpipe.sharing import write_rows

    started = time.monotonic()
    out, layers = options["out"], list(options["layers"])
    dataset = open_dataset(options["data"], options["split"])
    model, network = read_network(options["model"])
    device = choose_device(options["device"])
    network = network.to(device).eval()
    fold_batch_norm(network)
    inputs: dict[str, Any] = {"data": dataset, "model": model}
    proposals = proposals_for(options["proposals"], dataset, options["max_proposals"], inputs)
    # Images without annotations are still looked at for the classes the network knows.
    names = dataset.classes if len(dataset.classes) > 1 else model.classes
    header = make_header(
        "features",
        stage="extract-features",
        version=VERSION,
        settings=stage_settings(ctx) | {"device": device.type},
        inputs=inputs,
        classes=names,
        software=["torch", "torchvision"],
    )
    classes = len(names) - 1
    all_sizes = network.layer_sizes
    sizes = {name: all_sizes[name] for name in _known(layers, network.layer_names)}
    policy = Policy(difficult=options["difficult"], crowd=options["crowd"])
    todo = [
        Regions(record, boxes) for record, boxes in zip(dataset.records, proposals, strict=True)
    ]
    if options["mirror"]:
        todo += [mirrored(one) for one in todo]
    described = [
        region_columns_of(
            *(one.record, labels_under(one.record, policy), one.boxes, classes, options["truth"])
        )
        for one in todo
    ]
    rows = sum(len(columns["boxes"]) for columns in described)
    _check_disk(out, bytes_needed(rows, sizes), rows, options["compression"])

    extractor = extractor_for(network, layers, device, options)

    def produce(numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
        chosen = (replace(todo[i], boxes=described[i]["boxes"]) for i in numbers)
        for i, (_, found) in zip(numbers, extract(extractor, chosen, workers), strict=True):
            values = {f"layers/{layer}": found.pop(layer) for layer in layers}
            norms = {f"norms/{layer}": _norms(values[f"layers/{layer}"]) for layer in layers}
            yield described[i] | values | norms | found

    def finish(writer: "RowWriter") -> None:
        norms = {layer: writer.column(f"norms/{layer}") for layer in layers}
        means = {f"mean_norm/{x}": mean_norm(norms[x], writer.offsets) for x in layers}
        writer.finish(attributes=means)

    workers = options["workers"]
    with torch.inference_mode():
        write_rows(
            *(out, header),
            {
                **region_columns(classes),
                **(PLACES if network.head else {}),
                **{f"layers/{name}": (np.float16, (size,)) for name, size in sizes.items()},
                **{f"norms/{name}": (np.float32, ()) for name in sizes},
            },
            [one.record.image_id for one in todo],
            np.array([one.record.size for one in todo]),
            produce,
            finish,
            label="extract-features",
            compression=options["compression"],
            compress_workers=max(1, workers),
        )
    seconds = time.monotonic() - started
    say(f"wrote {out} ({rows} regions, {', '.join(layers)}, {seconds:.0f} s)")


def _known(layers: Sequence[str], names: Sequence[str]) -> Sequence[str]:
    wrong = [layer for layer in layers if layer not in names]
    if wrong:
        raise RcnnpipeError(f"the network has no layer '{wrong[0]}', only {', '.join(names)}")
    return layers


def _check_disk(out: Path, needed: int, rows: int, compression: str) -> None:
    """Say what the file will take, and refuse to begin what cannot end.

    The finished file is put together beside the journal of the same size; compression commonly
    leaves two fifths of the features, so both fit into what they take uncompressed.
    """
    needed = 2 * needed if compression == "none" else needed
    free = shutil.disk_usage(out.parent).free
    gib = 2**30
    say(f"{rows} regions, up to {needed / gib:.2f} GiB of disk, {free / gib:.1f} GiB are free")
    if needed > free:
        raise RcnnpipeError(
            f"{out} may need {needed / gib:.1f} GiB, but only {free / gib:.1f} GiB are free in "
            f"{out.parent}; take fewer --layers or --max-proposals, or another disk"
        )


def _norms(features: Any) -> Any:
    import numpy as np

    values = features.astype(np.float32)
    return np.sqrt(np.einsum("rd,rd->r", values, values))
