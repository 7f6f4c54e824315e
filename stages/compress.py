"""compress: truncated SVD of a model's fully connected layers, and what it costs and saves."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from rcnnpipe.errors import SettingError
from rcnnpipe.options import (
    CommaList,
    StageCommand,
    device_option,
    json_option,
    out_option,
    refuse_given,
    say,
    split_option,
    workers_option,
)

if TYPE_CHECKING:
    import torch

    from rcnnpipe.artifacts.store import Header
    from rcnnpipe.models.backbones import Network
    from rcnnpipe.models.detector import Detector

VERSION = 1

_SHARE = click.FloatRange(0, 1, min_open=True, max_open=True)
_MOST_DIGITS = 9  # of a rank
# Of the figures of an evaluation, those that the table shows.
_SHOWN = ("ap", "ap50", "voc_map_11_point", "voc_map_area")
_TITLES = {
    "layer": "layer",
    "size": "size",
    "rank": "rank",
    "energy": "energy",
    "weights_before": "weights",
    "weights_after": "after",
    "milliseconds_before": "ms of 300 rows",
    "milliseconds_after": "after",
}


def _parse_layers(
    ctx: click.Context, parameter: click.Parameter, words: Sequence[str]
) -> dict[str, int | None]:
    """Layer name -> rank, None where it is to be chosen."""
    asked: dict[str, int | None] = {}
    for word in words:
        name, colon, rank = word.partition(":")
        is_number = rank.isdecimal() and len(rank) <= _MOST_DIGITS and int(rank) > 0
        if not name or (colon and not is_number):
            told = "is neither LAYER nor LAYER:RANK, the rank a whole number above 0"
            raise click.BadParameter(f"{word!r} {told}", ctx, parameter)
        if name in asked:
            raise click.BadParameter(f"{name!r} stands there twice", ctx, parameter)
        asked[name] = int(rank) if colon else None
    return asked


@click.command("compress", cls=StageCommand)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--layers",
    type=CommaList(),
    required=True,
    callback=_parse_layers,
    metavar="LAYER[:RANK],...",
    help="Which layers, to which ranks, e.g. fc6:1024,fc7:256 (the paper's for VGG16).",
)
@click.option(
    "--energy",
    type=_SHARE,
    help="Smallest rank that keeps this share of the squared singular values.",
)
@click.option(
    "--time", "time_", type=_SHARE, help="Largest rank that takes this share of the layer's time."
)
@click.option(
    "--data", type=click.Path(path_type=Path), help="Measure average precision before and after."
)
@split_option
@click.option(
    "--proposals",
    type=click.Path(path_type=Path),
    help="Regions of --data; by default selective search finds them, twice.",
)
@device_option
@workers_option
@json_option
@out_option("The compressed model.")
@click.pass_context
def command(
    ctx: click.Context, /, model: Path, layers: dict[str, int | None], out: Path, **options: Any
) -> None:
    """Put two smaller layers in the place of each fully connected layer that is named.

    The weights W (u, v) of a layer are cut to rank t by a singular value decomposition: u v weights
    become t (u + v). Nothing is trained anew. Layers without a rank of their own take one by
    --energy or by --time, which measures on the device.

    With --data, regions are scored by the model's own probabilities as rcnnpipe detect does it,
    with the model before and after. SVMs and box regressions are of the model before; train new
    ones on features of the compressed one.
    """
    started = time.monotonic()
    _check_usage(ctx, layers, options)
    from rcnnpipe.devices import choose_device
    from rcnnpipe.models.detector import Detector
    from rcnnpipe.models.weights import read_model_of_regions

    header, whole = read_model_of_regions(model)
    # What has the fully connected layers: a detector behind its neck, or a network.
    body = whole.network if isinstance(whole, Detector) and whole.neck is None else whole
    outputs = whole.classes if isinstance(whole, Detector) else whole.outputs
    paths = _modules_of(model, body, layers)
    device = choose_device(options["device"])
    figures: dict[str, Any] = {}
    if options["data"] is not None:
        score = _scoring(model, header, outputs, options, device)
        figures["before"] = score(model)
    rows = [
        _compress_layer(body, name, paths[name], rank, options, device)
        for name, rank in layers.items()
    ]
    ranks = {row["layer"]: row["rank"] for row in rows}
    if options["data"] is not None:
        # Not from its place: that keeps what it held until all has gone well.
        with TemporaryDirectory() as folder:
            _write(Path(folder) / "model.h5", header, whole, ranks)
            figures["after"] = score(Path(folder) / "model.h5")
    _write(out, header, whole, ranks)
    _tell(rows, figures, options["as_json"])
    say(f"wrote {out} ({len(rows)} layers, {time.monotonic() - started:.0f} s)")


def _check_usage(
    ctx: click.Context, layers: dict[str, int | None], options: dict[str, Any]
) -> None:
    """Exactly one way to choose a rank, and only where one is to be chosen."""
    without = [name for name, rank in layers.items() if rank is None]
    if not without:
        refuse_given(ctx, ("energy", "time_"), "when every layer of --layers has a rank")
    elif options["energy"] is not None and options["time_"] is not None:
        raise SettingError("--energy and --time are two ways to choose a rank; give one of them")
    elif options["energy"] is None and options["time_"] is None:
        raise SettingError(
            f"there is no rank for {', '.join(without)}; write {without[0]}:RANK, or give --energy "
            "or --time"
        )
    if options["data"] is None:
        refuse_given(ctx, ("split", "proposals"), "without --data")


def _modules_of(
    path: Path, body: "Network | Detector", layers: dict[str, int | None]
) -> dict[str, str]:
    """Path of the linear module of each layer, whose ranks so far make sense."""
    from torch import nn

    from rcnnpipe.models.svd_ranks import require_saving

    known = body.linear_layers
    for name, rank in layers.items():
        if name not in known:
            what = "cannot be compressed" if name in body.layer_names else "does not exist"
            others = f"those to compress are {', '.join(known)}"
            if not known:
                others = "it has none to compress"
            raise SettingError(f"layer '{name}' of {path} {what}; {others}")
        linear = body.get_submodule(known[name])
        if not isinstance(linear, nn.Linear):
            raise SettingError(
                f"layer '{name}' of {path} is compressed already, to rank "
                f"{body.compressed[known[name]]}; compress the model it was made from"
            )
        require_saving(
            f"layer '{name}'",
            (linear.out_features, linear.in_features),
            1 if rank is None else rank,
        )
    return known


def _scoring(
    model: Path,
    header: "Header",
    outputs: int,
    options: dict[str, Any],
    device: "torch.device",
) -> Callable[[Path], dict[str, float]]:
    """What measures a model file on the data, which must be of the model's classes."""
    from rcnnpipe.datasets import open_dataset
    from rcnnpipe.scoring import score_model, truth_for

    dataset = open_dataset(options["data"], options["split"])
    truth = truth_for(model, header, outputs, dataset)
    return lambda path: score_model(
        path, dataset, truth, options["proposals"], device, options["workers"]
    )


def _compress_layer(
    body: "Network | Detector",
    name: str,
    path: str,
    rank: int | None,
    options: dict[str, Any],
    device: "torch.device",
) -> dict[str, Any]:
    """Compress one layer in place; the row of the table that tells of it."""
    from torch import nn

    from rcnnpipe.models import svd_ranks
    from rcnnpipe.models.compression import decompose

    linear = body.get_submodule(path)
    assert isinstance(linear, nn.Linear)
    size = (linear.out_features, linear.in_features)

    def seconds(rank: int | None) -> float:
        return svd_ranks.seconds_for(size, rank, device)

    if rank is None and options["time_"] is not None:
        rank = svd_ranks.rank_for_time(f"layer '{name}'", size, options["time_"], seconds)
    say(f"{name}: singular values of {size[0]} x {size[1]} weights")
    factors = decompose(linear.weight)
    if rank is None:
        rank = svd_ranks.rank_for_energy(factors.values, options["energy"])
        most = svd_ranks.largest_rank(size)
        if rank > most:
            raise SettingError(
                f"--energy {options['energy']:g} of layer '{name}' takes rank {rank}, which saves "
                f"no weights; the largest rank that does, {most}, keeps "
                f"{svd_ranks.kept_energy(factors.values, most):.3f}"
            )
    body.compress(path, rank, factors)
    return {
        "layer": name,
        "size": list(size),
        "rank": rank,
        "energy": svd_ranks.kept_energy(factors.values, rank),
        "error": svd_ranks.approximation_error(factors.values, rank),
        "weights_before": svd_ranks.weights_of(size),
        "weights_after": svd_ranks.weights_of(size, rank),
        "milliseconds_before": 1000 * seconds(None),
        "milliseconds_after": 1000 * seconds(rank),
    }


def _write(
    path: Path, before: "Header", whole: "Network | Detector", ranks: dict[str, int]
) -> None:
    """The model file; it records the ranks, however they were chosen."""
    from rcnnpipe.artifacts.model import write_model
    from rcnnpipe.artifacts.store import make_header

    header = make_header(
        "model",
        stage="compress",
        version=VERSION,
        settings={"ranks": ranks},
        inputs={"model": before},
        classes=before.classes,
        software=["torch"],
    )
    write_model(path, header, whole.settings(), whole.tensors())


def _tell(rows: list[dict[str, Any]], figures: dict[str, Any], as_json: bool) -> None:
    from rcnnpipe.report.text import table

    told = [row | {"size": " x ".join(map(str, row["size"]))} for row in rows]
    for line in table(list(_TITLES.values()), [[row[name] for name in _TITLES] for row in told]):
        say(line)
    if figures:
        say("")
        names = [name for name in _SHOWN if name in figures["before"]]
        each = [(name, figures["before"][name], figures["after"][name]) for name in names]
        for line in table(("", "before", "after"), each):
            say(line)
    if as_json:
        document = figures | {"layers": {row["layer"]: row for row in rows}}
        click.echo(json.dumps(document, indent=2, sort_keys=True))
