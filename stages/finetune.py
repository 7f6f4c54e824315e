"""finetune: train a system's network on a detection set."""

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rcnnpipe.errors import SettingError
from rcnnpipe.options import (
    StageCommand,
    cores,
    curves_option,
    data_argument,
    device_option,
    out_option,
    precision_option,
    say,
    seed_option,
    split_option,
    stage_settings,
    workers_option,
)
from rcnnpipe.systems.rcnn import CROPS, SAMPLING, SOLVER, Sampling, Solver

if TYPE_CHECKING:
    from rcnnpipe.artifacts.store import Header
    from rcnnpipe.datasets import Dataset
    from rcnnpipe.models.backbones import Network
    from rcnnpipe.training.distributed import Ranks
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
_UNRECORDED = ("init", "network", "padding", "device", "checkpoint_every", "image_cache")


@click.command("finetune", cls=StageCommand)
@data_argument
@split_option
@click.option(
    "--system", type=click.Choice(["rcnn"]), default="rcnn", help="Whose rules to follow."
)
@click.option("--proposals", type=click.Path(path_type=Path), help="Regions, from propose.")
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
@click.option("--iterations", type=_count, default=SOLVER.iterations, help="0: no fine-tuning.")
@click.option("--batch-size", type=_positive, default=SAMPLING.batch_size, help="Windows at once.")
@click.option(
    "--foreground", type=_count, default=SAMPLING.foreground, help="Windows of objects in a batch."
)
@click.option(
    "--foreground-overlap",
    type=_share,
    default=SAMPLING.foreground_overlap,
    help="IoU from which on a window is an object.",
)
@click.option(
    "--background-overlap",
    type=_share,
    default=SAMPLING.background_overlap,
    help="IoU below which a window is background.",
)
@click.option("--mirror/--no-mirror", default=SAMPLING.mirror, help="Mirror half of the windows.")
@click.option("--difficult", type=_flags, default="keep", help="Objects marked difficult.")
@click.option("--crowd", type=_flags, default="ignore", help="Objects marked as a crowd.")
@click.option("--lr", type=_above_zero, default=SOLVER.learning_rate, help="Learning rate.")
@click.option(
    "--classifier-lr-multiplier",
    type=_not_negative,
    default=SOLVER.classifier_multiplier,
    help="Of the new classifier.",
)
@click.option(
    "--bias-lr-multiplier",
    type=_not_negative,
    default=SOLVER.bias_multiplier,
    help="Of biases, which also have no weight decay.",
)
@click.option("--step", type=_count, default=SOLVER.step, help="Iterations until the rate changes.")
@click.option("--gamma", type=_above_zero, default=SOLVER.gamma, help="Factor of that change.")
@click.option("--momentum", type=click.FloatRange(0, 1, max_open=True), default=SOLVER.momentum)
@click.option("--weight-decay", type=_not_negative, default=SOLVER.weight_decay)
@click.option(
    "--accumulate", type=_positive, default=1, help="Parts a batch is computed in, to save memory."
)
@click.option(
    "--log-every", type=_positive, default=100, help="Iterations of a point of the curves."
)
@click.option("--checkpoint-every", type=_positive, default=500, help="Iterations.")
@click.option("--image-cache", type=_count, default=1024, help="MiB of decoded images to keep.")
@curves_option
@precision_option
@device_option
@seed_option
@workers_option
@out_option("The model file.")
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Fine-tune a network on windows of DATA: its proposals and its annotated objects.

    A run that was stopped goes on from its last checkpoint and ends with the same bytes. Under
    torchrun every rank computes its share of each batch.
    """
    from rcnnpipe.training.distributed import join_ranks

    started = time.monotonic()
    if options["proposals"] is None:
        raise SettingError("--system rcnn needs --proposals; run rcnnpipe propose first")
    with join_ranks(options["device"]) as ranks:
        done = _finetune(ctx, options, ranks)
    seconds = time.monotonic() - started
    say(f"wrote {options['out']} ({done} iterations, {seconds:.0f} s)")


def _finetune(ctx: click.Context, options: dict[str, Any], ranks: "Ranks") -> int:
    from rcnnpipe.artifacts.store import make_header
    from rcnnpipe.datasets import open_dataset
    from rcnnpipe.progress import track
    from rcnnpipe.proposals.selection import proposals_for
    from rcnnpipe.training.windows import check_sampling, gather_windows, label_windows

    sampling, solver = _sampling(options), _solver(options)
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
    say(
        f"{len(windows.foreground)} foreground and {len(windows.background)} background windows "
        f"of {len(dataset.records)} images"
    )
    return _train(options, solver, sampling, windows, dataset, network, header, ranks)


def _sampling(options: dict[str, Any]) -> Sampling:
    names = ("batch_size", "foreground", "foreground_overlap", "background_overlap", "mirror")
    return Sampling(**{name: options[name] for name in names})


def _solver(options: dict[str, Any]) -> Solver:
    return Solver(
        iterations=options["iterations"],
        learning_rate=options["lr"],
        step=options["step"],
        gamma=options["gamma"],
        momentum=options["momentum"],
        weight_decay=options["weight_decay"],
        bias_multiplier=options["bias_lr_multiplier"],
        classifier_multiplier=options["classifier_lr_multiplier"],
    )


def _network(
    options: dict[str, Any], inputs: dict[str, Any], outputs: int
) -> tuple["Network", dict[str, Any]]:
    """The network to train, its source among the inputs; and settings that took their defaults."""
    import torch

    from rcnnpipe.artifacts.foreign import foreign_file
    from rcnnpipe.artifacts.store import open_artifact
    from rcnnpipe.models.tensor_files import READERS
    from rcnnpipe.models.weights import load_network
    from rcnnpipe.randomness import generator
    from rcnnpipe.training.finetuning import prepare_network

    init = options["init"]
    resolved: dict[str, Any] = {}
    if Path(init).suffix == ".h5":
        with open_artifact(Path(init), "model") as (header, _):
            inputs["init"] = header
    elif Path(init).suffix in READERS:
        inputs["init"] = foreign_file(Path(init))
    else:
        resolved["init"] = init
    key = int(generator(options["seed"], "initial weights").integers(2**63))
    random = torch.Generator().manual_seed(key)
    network = load_network(options["network"], init, random)
    prepare_network(
        network,
        outputs,
        random,
        crop=options["crop"],
        padding=options["padding"],
        train_from=options["train_from"],
        keep_statistics=init != "none",
    )
    return network, resolved | {"network": network.name, "padding": network.crop.padding}


def _train(
    options: dict[str, Any],
    solver: Solver,
    sampling: Sampling,
    windows: "Windows",
    dataset: "Dataset",
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
    from rcnnpipe.training.finetuning import WindowLoss, WindowSource, new_trainer
    from rcnnpipe.training.loop import train

    out = options["out"]
    folder = partial_of(out) / header.id
    trainer = new_trainer(network, solver, ranks, options["precision"], options["seed"])
    trainer.resume(folder)
    source = WindowSource(
        windows,
        dataset.records,
        network,
        sampling,
        ranks,
        seed=options["seed"],
        accumulate=options["accumulate"],
        workers=cores() if options["workers"] is None else options["workers"],
        cache_bytes=options["image_cache"] * 2**20,
    )
    steps = train(
        trainer,
        source.batches(trainer.iteration, solver.iterations),
        WindowLoss(network, sampling.batch_size),
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
