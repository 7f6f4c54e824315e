"""finetune: train a system's network on a detection set."""

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rcnnpipe.errors import SettingError
from rcnnpipe.options import (
    StageCommand,
    curves_option,
    device_option,
    out_option,
    precision_option,
    say,
    seed_option,
    split_option,
    stage_settings,
    workers_option,
)
from rcnnpipe.system_options import SYSTEMS, complete_options, rules_of, system_option
from rcnnpipe.systems.rcnn import CROPS, Solver

if TYPE_CHECKING:
    from rcnnpipe.artifacts.store import Header
    from rcnnpipe.models.backbones import Network
    from rcnnpipe.training.cached import RowSource
    from rcnnpipe.training.distributed import Ranks
    from rcnnpipe.training.finetuning import WindowSource
    from rcnnpipe.training.windows import Windows

VERSION = 1
_log = logging.getLogger(__name__)

_count = click.IntRange(min=0)
_positive = click.IntRange(min=1)
_share = click.FloatRange(0, 1)
_above_zero = click.FloatRange(min=0, min_open=True)
_not_negative = click.FloatRange(min=0)
_flags = click.Choice(["keep", "ignore", "drop"])
# These do not change the result, or are recorded by what they stand for.
_UNRECORDED = ("init", "network", "padding", "device", "checkpoint_every", "image_cache", "memory")


@click.command("finetune", cls=StageCommand)
@click.argument("data", type=click.Path(path_type=Path), required=False)
@split_option
@click.option(
    "--system", type=click.Choice(list(SYSTEMS)), default="rcnn", help="Whose rules to follow."
)
@click.option("--proposals", type=click.Path(path_type=Path), help="Regions, from propose.")
@click.option(
    "--features",
    type=click.Path(path_type=Path),
    help="sppnet: what the model of --init made of the regions, with layer pool5.",
)
@click.option("--network", help="Name of a network; a model of ours as --init knows its own.")
@click.option(
    "--init",
    metavar="FILE|NAME",
    type=click.Path(),
    default="none",
    help="Weights: a model.h5, .pth, .npz or .safetensors file, torchvision's name, or none.",
)
@click.option("--crop", type=click.Choice(list(CROPS)), default="warp", help="Shape of windows.")
@click.option(
    "--padding",
    type=_count,
    help="Context in window pixels; by default the network's own, 16 of 227.",
    show_default=False,
)
@click.option("--train-from", metavar="LAYER", help="Lower layers keep their weights.")
@system_option("--iterations", _count, "0: no fine-tuning.")
@system_option("--batch-size", _positive, "Windows at once.")
@system_option("--foreground", _count, "Windows of objects in a batch.")
@system_option(
    "--foreground-overlap",
    _share,
    "IoU from which on a window is an object.",
)
@system_option("--background-overlap", _share, "IoU below which a window is background.")
@system_option("--background-from", _share, "IoU from which on it is.")
@click.option(
    "--mirror/--no-mirror",
    default=None,
    help="Mirror half of the windows; sppnet: see --mirror of extract-features.",
    show_default="mirror rcnn",
)
@click.option("--difficult", type=_flags, default="keep", help="Objects marked difficult.")
@click.option("--crowd", type=_flags, default="ignore", help="Objects marked as a crowd.")
@system_option("--lr", _above_zero, "Learning rate.")
@system_option("--classifier-lr-multiplier", _not_negative, "Of the new classifier.")
@system_option(
    "--bias-lr-multiplier",
    _not_negative,
    "Of biases, which also have no weight decay.",
)
@system_option("--step", _count, "Iterations until the rate changes.")
@system_option("--gamma", _above_zero, "Factor of that change.")
@system_option("--momentum", click.FloatRange(0, 1, max_open=True))
@system_option("--weight-decay", _not_negative)
@click.option(
    "--accumulate", type=_positive, default=1, help="Parts a batch is computed in, to save memory."
)
@click.option(
    "--log-every", type=_positive, default=100, help="Iterations of a point of the curves."
)
@click.option("--checkpoint-every", type=_positive, default=500, help="Iterations.")
@click.option("--image-cache", type=_count, default=1024, help="MiB of decoded images to keep.")
@click.option("--memory", type=_positive, default=1024, help="sppnet: MiB of features to keep.")
@curves_option
@precision_option
@device_option
@seed_option
@workers_option
@out_option("The model file.")
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Fine-tune a network on windows of DATA: its proposals and its annotated objects.

    --system sppnet learns from --features instead and touches no image: the convolutions stay as
    they are, the fully connected layers of the model that made the features are trained.

    A run that was stopped goes on from its last checkpoint and ends with the same bytes. Under
    torchrun every rank computes its share of each batch.
    """
    from rcnnpipe.training.distributed import join_ranks

    started = time.monotonic()
    complete_options(ctx, options)
    work = {"rcnn": _finetune_on_windows, "sppnet": _finetune_on_features}[options["system"]]
    with join_ranks(options["device"], options["precision"]) as ranks:
        done = work(ctx, options, ranks)
    seconds = time.monotonic() - started
    say(f"wrote {options['out']} ({done} iterations, {seconds:.0f} s)")


def _finetune_on_features(ctx: click.Context, options: dict[str, Any], ranks: "Ranks") -> int:
    from rcnnpipe.artifacts.features import open_features
    from rcnnpipe.artifacts.store import make_header
    from rcnnpipe.extraction.maps import POOLED
    from rcnnpipe.models.weights import require_made_by
    from rcnnpipe.training.cached import RowSource, windows_of
    from rcnnpipe.training.windows import check_sampling

    sampling, solver = rules_of(options)
    check_sampling(sampling, ranks.world * options["accumulate"])
    if Path(options["init"]).suffix != ".h5":
        raise SettingError(
            f"--system sppnet needs --init MODEL.h5, the model that made {options['features']}; "
            "rcnnpipe pretrain --pyramid makes one"
        )
    with open_features(options["features"], options["workers"]) as features:
        inputs: dict[str, Any] = {"features": features.header}
        trained_from = options["train_from"] or "fc6"
        options = options | {"train_from": trained_from}
        network, resolved = _network(options, inputs, len(features.header.classes))
        require_made_by(options["features"], features.header, Path(options["init"]), inputs["init"])
        names = network.layer_names
        if network.head is None or trained_from not in names[names.index(POOLED) + 1 :]:
            behind = "fc6, fc7 and logits, of a model with a pyramid"
            raise SettingError(f"only what follows pool5 learns from its features: {behind}")
        features.require_length(POOLED, network.layer_sizes[POOLED])
        header = make_header(
            "model",
            stage="finetune",
            version=VERSION,
            settings=stage_settings(ctx, _UNRECORDED)
            | resolved
            | {"device": ranks.device.type, "ranks": ranks.world, "train-from": trained_from},
            inputs=inputs,
            classes=features.header.classes,
            software=["torch", "torchvision"],
        )
        windows = windows_of(features, sampling)
        _tell_windows(windows, len(features.image_ids))
        source = RowSource(
            *(windows, features, POOLED, sampling, ranks),
            seed=options["seed"],
            accumulate=options["accumulate"],
            memory=options["memory"] * 2**20,
        )
        return _train(options, solver, source, POOLED, network, header, ranks)


def _tell_windows(windows: "Windows", images: int) -> None:
    say(
        f"{len(windows.foreground)} foreground and {len(windows.background)} background windows "
        f"of {images} images"
    )


def _finetune_on_windows(ctx: click.Context, options: dict[str, Any], ranks: "Ranks") -> int:
    from rcnnpipe.artifacts.store import make_header
    from rcnnpipe.datasets import open_dataset
    from rcnnpipe.progress import track
    from rcnnpipe.proposals.selection import proposals_for
    from rcnnpipe.training.finetuning import WindowSource
    from rcnnpipe.training.windows import check_sampling, gather_windows, label_windows

    sampling, solver = rules_of(options)
    check_sampling(sampling, ranks.world * options["accumulate"])
    dataset = open_dataset(options["data"], options["split"])
    inputs: dict[str, Any] = {"data": dataset}
    boxes = proposals_for(options["proposals"], dataset, 0, inputs)
    network, resolved = _network(options, inputs, len(dataset.classes))
    header = make_header(
        "model",
        stage="finetune",
        version=VERSION,
        settings=stage_settings(ctx, _UNRECORDED)
        | resolved
        | {"device": ranks.device.type, "ranks": ranks.world},
        inputs=inputs,
        classes=dataset.classes,
        software=["torch", "torchvision"],
    )
    if dataset.id not in inputs["proposals"].lineage:
        _log.warning(
            "%s was made for another data set or split; its images are told by their ids",
            options["proposals"],
        )
    policy = {"difficult": options["difficult"], "crowd": options["crowd"]}
    classes = len(dataset.classes) - 1
    labelled = label_windows(dataset.records, boxes, classes, sampling, policy)
    tracked = track(labelled, len(dataset.records), "label windows")
    windows = gather_windows(tracked, sampling)
    _tell_windows(windows, len(dataset.records))
    source = WindowSource(
        *(windows, dataset.records, network, sampling, ranks),
        seed=options["seed"],
        accumulate=options["accumulate"],
        workers=options["workers"],
        cache_bytes=options["image_cache"] * 2**20,
    )
    return _train(options, solver, source, "image", network, header, ranks)


def _network(
    options: dict[str, Any], inputs: dict[str, Any], outputs: int
) -> tuple["Network", dict[str, Any]]:
    """The network to train, its source among the inputs; and settings that took their defaults."""
    from rcnnpipe.training.finetuning import prepare_network
    from rcnnpipe.training.initial import initial_network

    network, random, resolved = initial_network(
        options["network"], options["init"], options["seed"], inputs
    )
    prepare_network(
        network,
        outputs,
        random,
        crop=options["crop"],
        padding=options["padding"],
        train_from=options["train_from"],
        keep_statistics=options["init"] != "none",
    )
    return network, resolved | {"network": network.name, "padding": network.crop.padding}


def _train(
    options: dict[str, Any],
    solver: Solver,
    source: "WindowSource | RowSource",
    layer: str,
    network: "Network",
    header: "Header",
    ranks: "Ranks",
) -> int:
    import numpy as np

    from rcnnpipe.artifacts.model import write_model
    from rcnnpipe.artifacts.store import partial_of
    from rcnnpipe.progress import track
    from rcnnpipe.training.checkpoints import drop_checkpoint
    from rcnnpipe.training.curves import write_curves
    from rcnnpipe.training.finetuning import WindowLoss, new_trainer
    from rcnnpipe.training.loop import train

    out = options["out"]
    folder = partial_of(out) / header.id
    trainer = new_trainer(network, solver, ranks, options["precision"], options["seed"])
    trainer.resume(folder)
    steps = train(
        trainer,
        source.batches(trainer.iteration, solver.iterations),
        WindowLoss(network, options["batch_size"], layer),
        solver.iterations,
        folder=folder,
        checkpoint_every=options["checkpoint_every"],
        log_every=options["log_every"],
    )
    done = trainer.iteration
    for _ in track(steps, solver.iterations, "finetune", "iteration", done):
        pass
    if ranks.first:
        curves = {name: np.array(values) for name, values in trainer.curves.items()}
        write_model(out, header, network.settings(), network.tensors(), curves)
        if options["curves"] is not None:
            write_curves(options["curves"], trainer.curves)
        drop_checkpoint(folder)
    return solver.iterations
