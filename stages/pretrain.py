"""pretrain: train a classifier for a network to start from."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rcnnpipe.errors import SettingError
from rcnnpipe.options import (
    NumberList,
    StageCommand,
    curves_option,
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
from rcnnpipe.systems.pretraining import PRETRAINING, Pretraining

if TYPE_CHECKING:
    from rcnnpipe.artifacts.store import Header
    from rcnnpipe.datasets import Record
    from rcnnpipe.models.backbones import Network
    from rcnnpipe.training.classifier import CropSource
    from rcnnpipe.training.distributed import Ranks
    from rcnnpipe.training.examples import Examples

VERSION = 1
_NETWORK = "alexnet"

_positive = click.IntRange(min=1)
_above_zero = click.FloatRange(min=0, min_open=True)
# These do not change the result, or are recorded by what they stand for.
_UNRECORDED = ("init", "device", "image_cache", "validate")


@click.command("pretrain", cls=StageCommand)
@data_argument
@split_option
@click.option(
    "--network",
    help="Name of a network; a wrong one lists them, and a model of ours as --init knows its own.",
    show_default=_NETWORK,
)
@click.option(
    "--init",
    metavar="FILE|NAME",
    type=click.Path(),
    default="none",
    help="Weights: a model.h5, .pth, .npz or .safetensors file, torchvision's name, or none.",
)
@click.option(
    "--pyramid",
    type=NumberList(),
    help="Pool the last map by so many bins a side, 1,2,3,6 in the paper, under new fc layers.",
    show_default=False,
)
@click.option(
    "--pyramid-training",
    type=click.Choice(["windows", "bins"]),
    help="Training pools by equal windows, as the paper, or by the bins of all other stages.",
    show_default="windows",
)
@click.option("--map", metavar="LAYER", help="The map that the pyramid pools.", show_default="last")
@click.option(
    "--hidden",
    type=_positive,
    help="Outputs of the fully connected layers on the pyramid.",
    show_default="the network's own, or 4096",
)
@scales_option
@click.option(
    "--reference",
    type=_above_zero,
    help="Side of the square that scaled regions should be nearest to; the authors' code: 208.",
    show_default="the network's window",
)
@click.option(
    "--scale-choice",
    type=click.Choice(["nearest-area", "nearest-scale"]),
    help="What nearest means: by area as in the paper, or by scale as in the code.",
    show_default="nearest-area",
)
@click.option(
    "--projection",
    type=click.Choice(["paper", "authors"]),
    help="From pixels to cells: as in the paper, or as in the code, whose cells are fewer.",
    show_default="paper",
)
@click.option(
    "--sizes",
    type=NumberList(),
    help="Sides of the windows of one epoch after another, again and again; the paper: 224,180.",
    show_default="the network's window",
)
@click.option(
    "--random-size",
    metavar="LOW-HIGH",
    callback=lambda ctx, param, value: _range(value),
    help="Draw a side from these for the windows of each epoch; the paper: 180-224.",
    show_default=False,
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
    with join_ranks(options["device"], options["precision"]) as ranks:
        what = _pretrain(ctx, options, ranks)
    say(f"wrote {options['out']} ({what}, {time.monotonic() - started:.0f} s)")


def _pretrain(ctx: click.Context, options: dict[str, Any], ranks: "Ranks") -> str:
    from rcnnpipe.artifacts.store import make_header
    from rcnnpipe.datasets import open_dataset
    from rcnnpipe.training.classifier import CropSource
    from rcnnpipe.training.examples import examples_of
    from rcnnpipe.training.initial import PYRAMID_OPTIONS, calibrate
    from rcnnpipe.training.sizes import require_sizes

    plan = _plan(options)
    dataset = open_dataset(options["data"], options["split"])
    examples = examples_of(dataset)
    held_out = _held_out(options, examples)
    inputs: dict[str, Any] = {"data": dataset}
    network, resolved = _network(options, inputs, len(examples.classes))
    require_sizes(network, plan)
    # The pyramid is recorded as the head that its options make.
    left_out = (*_UNRECORDED, *PYRAMID_OPTIONS)
    header = make_header(
        "model",
        stage="pretrain",
        version=VERSION,
        settings=stage_settings(ctx, left_out, {"sizes": None, "random_size": None})
        | resolved
        | {"device": ranks.device.type, "ranks": ranks.world},
        inputs=inputs,
        classes=examples.classes,
        software=["torch", "torchvision"],
    )
    source = CropSource(
        *(examples, dataset.records, network, plan, ranks),
        seed=options["seed"],
        workers=options["workers"],
        cache_bytes=options["image_cache"] * 2**20,
    )
    say(
        f"{len(examples.boxes)} examples of {len(examples.classes) - 1} classes, "
        f"{source.iterations_of_epoch} iterations an epoch"
    )
    if options["pyramid"] is not None and options["init"] != "none":
        calibrate(network, source.sample())
    _train(options, source, header)
    if held_out is not None and ranks.first:
        _validate(options["validate"], replace(source, examples=held_out[0], records=held_out[1]))
    return f"{options['epochs']} epochs"


def _plan(options: dict[str, Any]) -> Pretraining:
    if options["sizes"] is not None and options["random_size"] is not None:
        raise SettingError("--sizes and --random-size exclude each other; give one of them")
    names = ["epochs", "batch_size", "step", "gamma", "momentum", "weight_decay"]
    names += ["jitter", "background", "mirror", "random_size"]
    given = {name: options[name] for name in names}
    return Pretraining(learning_rate=options["lr"], sizes=options["sizes"] or (), **given)


def _range(value: str | None) -> tuple[int, int] | None:
    """LOW-HIGH as two numbers above 0."""
    if value is None:
        return None
    low, _, high = (part.strip() for part in value.partition("-"))
    if not (low.isdecimal() and high.isdecimal() and 0 < int(low) <= int(high)):
        raise click.BadParameter(f"'{value}' is not LOW-HIGH, two whole numbers above 0")
    return int(low), int(high)


def _network(
    options: dict[str, Any], inputs: dict[str, Any], outputs: int
) -> tuple["Network", dict[str, Any]]:
    """The network to train, its source among the inputs; and settings that took their defaults."""
    from rcnnpipe.training.initial import initial_network, on_pyramid

    knows = Path(options["init"]).suffix == ".h5"
    name = options["network"] or (None if knows else _NETWORK)
    network, random, resolved = initial_network(name, options["init"], options["seed"], inputs)
    network, recorded = on_pyramid(network, options, random)
    network.replace_classifier(outputs, random)
    return network, resolved | recorded | {"network": network.name}


def _train(options: dict[str, Any], source: "CropSource", header: "Header") -> None:
    from rcnnpipe.training.classifier import ClassLoss, solver_of
    from rcnnpipe.training.finetuning import new_trainer
    from rcnnpipe.training.model_run import train_model

    network, epoch, ranks = source.network, source.iterations_of_epoch, source.ranks
    solver = solver_of(source.plan, epoch)
    trainer = new_trainer(network, solver, ranks, options["precision"], options["seed"])
    loss = ClassLoss(network, source.windows_of_batch, ranks.device)
    train_model(
        *(options["out"], header, network, trainer, source, loss, solver.iterations),
        label="pretrain",
        checkpoint_every=epoch,
        log_every=epoch,
        curves=options["curves"],
        remedy="lower --batch-size",
    )
    network.eval()


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
    from rcnnpipe.training.classifying import answers_by_crops

    answers = answers_by_crops(source)
    right, total = answers.right, len(answers.labels)
    say(f"accuracy on {split}: {right / total:.4f} ({right} of {total})")
