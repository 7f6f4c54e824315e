"""pretrain: train a classifier for a network to start from."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

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
from rcnnpipe.systems.pretraining import PRETRAINING, Pretraining

if TYPE_CHECKING:
    from rcnnpipe.artifacts.store import Header
    from rcnnpipe.datasets import Record
    from rcnnpipe.models.backbones import Network
    from rcnnpipe.training.classifier import CropSource
    from rcnnpipe.training.distributed import Ranks
    from rcnnpipe.training.examples import Examples

VERSION = 1

_positive = click.IntRange(min=1)
_above_zero = click.FloatRange(min=0, min_open=True)
# These do not change the result, or are recorded by what they stand for.
_UNRECORDED = ("init", "device", "image_cache", "validate")


@click.command("pretrain", cls=StageCommand)
@data_argument
@split_option
@click.option("--network", default="alexnet", help="Name of a network; a wrong one lists them.")
@click.option(
    "--init",
    metavar="FILE|NAME",
    type=click.Path(),
    default="none",
    help="Weights: a model.h5, .pth, .npz or .safetensors file, torchvision's name, or none.",
)
@click.option("--epochs", type=click.IntRange(min=0), default=PRETRAINING.epochs)
@click.option("--batch-size", type=_positive, default=PRETRAINING.batch_size)
@click.option("--lr", type=_above_zero, default=PRETRAINING.learning_rate, help="Learning rate.")
@click.option(
    "--step",
    type=click.IntRange(min=0),
    default=PRETRAINING.step,
    help="Epochs until the rate changes; 0: never.",
)
@click.option("--gamma", type=_above_zero, default=PRETRAINING.gamma, help="Factor of that change.")
@click.option(
    "--momentum", type=click.FloatRange(0, 1, max_open=True), default=PRETRAINING.momentum
)
@click.option("--weight-decay", type=click.FloatRange(min=0), default=PRETRAINING.weight_decay)
@click.option(
    "--jitter",
    type=click.FloatRange(0, 1),
    default=PRETRAINING.jitter,
    help="How far windows stray from their objects, in parts of their sides.",
)
@click.option(
    "--background",
    type=click.FloatRange(0, 1, max_open=True),
    default=PRETRAINING.background,
    help="Share of a batch without an object.",
)
@click.option(
    "--mirror/--no-mirror", default=PRETRAINING.mirror, help="Mirror half of the windows."
)
@click.option("--validate", metavar="SPLIT", help="Tell the accuracy on this split at the end.")
@click.option("--image-cache", type=click.IntRange(min=0), default=1024, help="MiB of images kept.")
@curves_option
@precision_option
@device_option
@seed_option
@workers_option
@out_option("The model file.")
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Train a classifier on DATA: the annotated objects, or images in a folder for each class.

    A run that was stopped goes on from the last epoch and ends with the same bytes. Under torchrun
    every rank computes its share of each batch.
    """
    from rcnnpipe.training.distributed import join_ranks

    started = time.monotonic()
    with join_ranks(options["device"]) as ranks:
        what = _pretrain(ctx, options, ranks)
    say(f"wrote {options['out']} ({what}, {time.monotonic() - started:.0f} s)")


def _pretrain(ctx: click.Context, options: dict[str, Any], ranks: "Ranks") -> str:
    from rcnnpipe.artifacts.store import make_header
    from rcnnpipe.datasets import open_dataset
    from rcnnpipe.training.classifier import CropSource
    from rcnnpipe.training.examples import examples_of

    dataset = open_dataset(options["data"], options["split"])
    examples = examples_of(dataset)
    held_out = _held_out(options, examples)
    inputs: dict[str, Any] = {"data": dataset}
    network, resolved = _network(options, inputs, len(examples.classes))
    header = make_header(
        "model",
        stage="pretrain",
        version=VERSION,
        settings=stage_settings(ctx, _UNRECORDED)
        | resolved
        | {"device": ranks.device.type, "ranks": ranks.world},
        inputs=inputs,
        classes=examples.classes,
        software=["torch", "torchvision"],
    )
    source = CropSource(
        examples,
        dataset.records,
        network,
        _plan(options),
        ranks,
        seed=options["seed"],
        workers=_workers(options),
        cache_bytes=options["image_cache"] * 2**20,
    )
    say(
        f"{len(examples.boxes)} examples of {len(examples.classes) - 1} classes, "
        f"{source.iterations_of_epoch} iterations an epoch"
    )
    _train(options, source, header)
    if held_out is not None and ranks.first:
        _validate(options["validate"], replace(source, examples=held_out[0], records=held_out[1]))
    return f"{options['epochs']} epochs"


def _workers(options: dict[str, Any]) -> int:
    given: int | None = options["workers"]
    return cores() if given is None else given


def _plan(options: dict[str, Any]) -> Pretraining:
    names = ["epochs", "batch_size", "step", "gamma", "momentum", "weight_decay"]
    names += ["jitter", "background", "mirror"]
    return Pretraining(learning_rate=options["lr"], **{name: options[name] for name in names})


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
    network.replace_classifier(outputs, random)
    return network, resolved


def _train(options: dict[str, Any], source: "CropSource", header: "Header") -> None:
    import numpy as np

    from rcnnpipe.artifacts.model import write_model
    from rcnnpipe.artifacts.store import partial_of
    from rcnnpipe.progress import track
    from rcnnpipe.systems.rcnn import Solver
    from rcnnpipe.training.checkpoints import drop_checkpoint
    from rcnnpipe.training.classifier import ClassLoss
    from rcnnpipe.training.curves import write_curves
    from rcnnpipe.training.finetuning import new_trainer
    from rcnnpipe.training.loop import train

    out, network, plan, ranks = options["out"], source.network, source.plan, source.ranks
    epoch = source.iterations_of_epoch
    iterations = plan.epochs * epoch
    solver = Solver(
        iterations=iterations,
        learning_rate=plan.learning_rate,
        step=plan.step * epoch,
        gamma=plan.gamma,
        momentum=plan.momentum,
        weight_decay=plan.weight_decay,
        bias_multiplier=plan.bias_multiplier,
        classifier_multiplier=1.0,
    )
    folder = partial_of(out) / header.id
    trainer = new_trainer(network, solver, ranks, options["precision"], options["seed"])
    trainer.resume(folder)
    steps = train(
        trainer,
        source.batches(trainer.iteration, iterations),
        ClassLoss(network, plan.batch_size, ranks.device),
        iterations,
        folder=folder,
        checkpoint_every=epoch,
        log_every=epoch,
    )
    for _ in track(steps, iterations, "pretrain", "iteration", trainer.iteration):
        pass
    network.eval()
    if not ranks.first:
        return
    curves = {name: np.array(values) for name, values in trainer.curves.items()}
    write_model(out, header, network.settings(), network.tensors(), curves)
    if options["curves"] is not None:
        write_curves(options["curves"], trainer.curves)
    drop_checkpoint(folder)


def _held_out(
    options: dict[str, Any], trained: "Examples"
) -> "tuple[Examples, Sequence[Record]] | None":
    """Examples and images of the split to validate on, looked at before any work is done."""
    from rcnnpipe.artifacts.store import require_same_classes
    from rcnnpipe.datasets import open_dataset
    from rcnnpipe.training.examples import examples_of

    split = options["validate"]
    if split is None:
        return None
    dataset = open_dataset(options["data"], split)
    examples = examples_of(dataset)
    names = (f"split {options['split']}", trained.classes)
    require_same_classes(*names, f"split {split}", examples.classes)
    return examples, dataset.records


def _validate(split: str, source: "CropSource") -> None:
    from rcnnpipe.training.classifier import top1

    counts = list(top1(source.network, source, source.plan.batch_size, source.workers))
    right, total = (sum(count) for count in zip(*counts, strict=True))
    say(f"accuracy on {split}: {right / total:.4f} ({right} of {total})")
