"""extract-features: cache what the network makes of every region, any set of layers in one pass."""

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rcnnpipe.errors import RcnnpipeError, SettingError
from rcnnpipe.options import (
    ONE_IMAGE,
    CommaList,
    StageCommand,
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
    from rcnnpipe.artifacts.rows import RowWriter

VERSION = 2  # detectors pad their layers, VGG16 pools with sizes rounded up
# Options that choose regions and look at images, which --pooled does not.
_OF_IMAGES = (
    *("data", "split", "proposals", "max_proposals", "truth", "difficult", "crowd"),
    *("scales", "random_scales", "mirror", "seed", "images"),
)


@click.command("extract-features", cls=StageCommand)
@click.argument("data", type=click.Path(path_type=Path), required=False)
@split_option
@click.option(
    "--proposals",
    type=click.Path(path_type=Path),
    help="Regions, from propose; without them only the ground truth is taken.",
)
@click.option(
    "--pooled",
    type=click.Path(path_type=Path),
    help="Features with layer pool5, to run the layers behind it; no DATA then, no image touched.",
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
@images_option
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
    from rcnnpipe.extraction.maps import MapExtractor
    from rcnnpipe.extraction.regions import (
        Regions,
        bytes_needed,
        extract,
        mirrored,
        region_columns_of,
    )
    from rcnnpipe.models.folding import fold_batch_norm
    from rcnnpipe.models.weights import read_model_of_regions
    from rcnnpipe.proposals.selection import proposals_for
    from rcnnpipe.sharing import write_rows

    started = time.monotonic()
    out, layers = options["out"], list(dict.fromkeys(options["layers"]))
    if options["pooled"] is not None:
        rows = _run_behind(ctx, options)
        say(
            f"wrote {out} ({rows} regions, {', '.join(layers)}, {time.monotonic() - started:.0f} s)"
        )
        return
    if options["data"] is None:
        raise SettingError("extract-features needs DATA, or --pooled FEATURES")
    dataset = open_dataset(options["data"], options["split"])
    model, network = read_model_of_regions(options["model"])
    device = choose_device(options["device"], options["precision"])
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
        settings=stage_settings(ctx, (), ONE_IMAGE) | {"device": device.type},
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
    _check_disk(out, bytes_needed(rows, sizes), rows, options)

    extractor = extractor_for(network, layers, device, options)

    def produce(numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
        chosen = (replace(todo[i], boxes=described[i]["boxes"]) for i in numbers)
        for i, (_, found) in zip(numbers, extract(extractor, chosen, workers), strict=True):
            values = {layer: found.pop(layer) for layer in layers}
            yield described[i] | _layer_columns(values) | found

    workers = options["workers"]
    with torch.inference_mode():
        write_rows(
            *(out, header),
            {
                **region_columns(classes),
                **(PLACES if isinstance(extractor, MapExtractor) else {}),
                **_layer_layout(sizes),
            },
            [one.record.image_id for one in todo],
            np.array([one.record.size for one in todo]),
            produce,
            lambda writer: _finish(writer, layers),
            label="extract-features",
            compression=options["compression"],
            compress_workers=max(1, workers),
            together=options["images"],
        )
    seconds = time.monotonic() - started
    say(f"wrote {out} ({rows} regions, {', '.join(layers)}, {seconds:.0f} s)")


def _run_behind(ctx: click.Context, options: dict[str, Any]) -> int:
    """Features of layers behind pool5, from a file that holds pool5; returns how many regions."""
    import torch

    from rcnnpipe.artifacts.features import PLACES, open_features, region_columns
    from rcnnpipe.artifacts.store import make_header
    from rcnnpipe.devices import choose_device
    from rcnnpipe.extraction.maps import POOLED, layers_behind
    from rcnnpipe.extraction.regions import bytes_needed
    from rcnnpipe.models.weights import read_network, require_same_convolutions
    from rcnnpipe.ragged import rows_of
    from rcnnpipe.sharing import write_rows

    refuse_given(ctx, _OF_IMAGES, "with --pooled, whose regions are taken as they are")
    out, layers = options["out"], list(dict.fromkeys(options["layers"]))
    model, network = read_network(options["model"])
    device = choose_device(options["device"], options["precision"])
    network = network.to(device).eval()
    sizes = network.layer_sizes
    pooled_size = sizes[POOLED]
    behind = network.layer_names[network.layer_names.index(POOLED) :]
    sizes = {name: sizes[name] for name in _known(layers, behind)}
    with open_features(options["pooled"], options["workers"]) as source:
        require_same_convolutions(options["pooled"], source.header, options["model"], model)
        source.require_length(POOLED, pooled_size)
        header = make_header(
            "features",
            stage="extract-features",
            version=VERSION,
            settings=stage_settings(ctx, (), ONE_IMAGE) | {"device": device.type},
            inputs={"pooled": source.header, "model": model},
            classes=source.header.classes,
            software=["torch"],
        )
        _check_disk(out, bytes_needed(len(source.boxes), sizes), len(source.boxes), options)
        columns = region_columns(len(header.classes) - 1)
        columns |= PLACES if source.cells is not None else {}

        def produce(numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
            for i in numbers:
                rows = rows_of(source.offsets, i)
                pooled = torch.from_numpy(source.rows(POOLED, rows)).to(device).float()
                found = layers_behind(
                    *(network, layers, pooled, options["precision"], options["batch_size"])
                )
                values = {layer: value.cpu().numpy() for layer, value in found.items()}
                yield {name: getattr(source, name)[rows] for name in columns} | _layer_columns(
                    values
                )

        write_rows(
            *(out, header, columns | _layer_layout(sizes), source.image_ids, source.sizes),
            produce,
            lambda writer: _finish(writer, layers),
            label="extract-features",
            compression=options["compression"],
            compress_workers=max(1, options["workers"]),
        )
        return len(source.boxes)


def _layer_layout(sizes: Mapping[str, int]) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Columns of the layers and of their norms, as a RowWriter needs them."""
    import numpy as np

    layout: dict[str, tuple[Any, tuple[int, ...]]] = {
        f"layers/{name}": (np.float16, (size,)) for name, size in sizes.items()
    }
    return layout | {f"norms/{name}": (np.float32, ()) for name in sizes}


def _layer_columns(values: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of layers (R, D) and of their norms."""
    columns = {f"layers/{layer}": features for layer, features in values.items()}
    return columns | {f"norms/{layer}": _norms(features) for layer, features in values.items()}


def _finish(writer: "RowWriter", layers: Sequence[str]) -> None:
    from rcnnpipe.extraction.regions import mean_norm

    norms = {layer: writer.column(f"norms/{layer}") for layer in layers}
    means = {f"mean_norm/{layer}": mean_norm(norms[layer], writer.offsets) for layer in layers}
    writer.finish(attributes=means)


def _known(layers: Sequence[str], names: Sequence[str]) -> Sequence[str]:
    wrong = [layer for layer in layers if layer not in names]
    if wrong:
        raise RcnnpipeError(f"the network has no layer '{wrong[0]}', only {', '.join(names)}")
    return layers


def _check_disk(out: Path, needed: int, rows: int, options: Mapping[str, Any]) -> None:
    """Say what the file will take, and refuse to begin what cannot end.

    The finished file is put together beside the journal of the same size; compression commonly
    leaves two fifths of the features, so both fit into what they take uncompressed.
    """
    needed = 2 * needed if options["compression"] == "none" else needed
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
