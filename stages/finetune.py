"""finetune: train a system's network on a detection set."""

import time
from pathlib import Path
from typing import Any

import click

from rcnnpipe.options import (
    NumberList,
    StageCommand,
    curves_option,
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
from rcnnpipe.system_options import (
    IMAGES,
    OFF,
    SYSTEMS,
    augmentation_options,
    complete_options,
    rules_of,
    system_option,
    unrecorded,
)
from rcnnpipe.systems.fast import BETA, FIRST_VALUES
from rcnnpipe.systems.rcnn import CROPS

# 2: detectors pad their layers, VGG16 pools with sizes rounded up. 3: boxes are float32 before they
# are mirrored; --first-values torchvision holds for fully connected layers of FPN.
VERSION = 3

_count = click.IntRange(min=0)
_positive = click.IntRange(min=1)
_share = click.FloatRange(0, 1)
_above_zero = click.FloatRange(min=0, min_open=True)
_not_negative = click.FloatRange(min=0)
_flags = click.Choice(["keep", "ignore", "drop"])
# These do not change the result, or are recorded by what they stand for.
_UNRECORDED = (
    *("init", "network", "padding", "scale_lr"),
    *("device", "checkpoint_every", "image_cache", "memory"),
)


@click.command("finetune", cls=StageCommand)
@click.argument("data", type=click.Path(path_type=Path), required=False)
@split_option
@click.option(
    "--system", type=click.Choice(list(SYSTEMS)), default="rcnn", help="Whose rules to follow."
)
@click.option("--proposals", type=click.Path(path_type=Path), help="Regions, from propose.")
@click.option(
    "--max-proposals", type=_count, default=0, help="Best of an image to learn from; 0: all."
)
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
@click.option(
    "--images",
    type=_positive,
    help="Images of a batch, of systems that look at whole images.",
    show_default=", ".join(f"{count} {name}" for name, count in IMAGES.items()),
)
@scales_option
@click.option(
    "--longest",
    type=_positive,
    help="Most pixels of an image's longer side; by default 5/3 of the largest scale.",
    show_default=False,
)
@click.option(
    "--pooling",
    type=click.Choice(["pool", "align"]),
    show_default="pool",
    help="Of regions from maps: RoIPool, which rounds to cells, or RoIAlign.",
)
@click.option(
    "--box-weight",
    type=_not_negative,
    default=1.0,
    help="Of a detector's box regression in the loss; 0 trains the classification alone.",
)
@click.option(
    "--box-beta",
    type=_not_negative,
    default=BETA,
    help="Where the smooth L1 loss of that regression turns linear; torchvision has 0.1111.",
)
@click.option(
    "--new-outputs",
    is_flag=True,
    help="Start a detector of --init with new outputs of regions.",
)
@click.option(
    "--first-values",
    type=click.Choice(FIRST_VALUES),
    default=OFF["first_values"],
    help="Of new layers of regions: outputs N(0, .01) for classes and N(0, .001) for boxes, fpn's "
    "layers before them within sqrt(3 / inputs); or all within 1 / sqrt(inputs), biases too.",
)
@click.option(
    "--anchor-sizes",
    type=NumberList(),
    help="Sides of the RPN's anchors in pixels of the resized image; fpn: one for each map.",
    show_default="the paper's",
)
@click.option(
    "--pre-nms",
    type=_positive,
    help="Best boxes of the RPN, of each map, that are suppressed in training.",
    show_default="12000 faster, 2000 fpn",
)
@click.option(
    "--post-nms",
    type=_positive,
    help="Best boxes after it: the proposals of an image in training.",
    show_default="2000 faster, 1000 fpn",
)
@click.option(
    "--straddle",
    type=click.Choice(["drop", "keep"]),
    help="Anchors over the border: not learnt from, or like others.",
    show_default="drop faster and rpn, keep fpn",
)
@click.option(
    "--rpn-loss",
    type=click.Choice(["code", "paper"]),
    default="code",
    help="Of the RPN's boxes: as the authors' code weighs and bends it, or as the paper says.",
)
@click.option(
    "--lateral/--no-lateral",
    default=None,
    help="fpn: its lateral connections.",
    show_default="lateral",
)
@click.option(
    "--top-down/--no-top-down",
    default=None,
    help="fpn: its way from coarse to fine.",
    show_default="top-down",
)
@click.option(
    "--finest-only/--every-level",
    default=None,
    help="fpn: its finest map alone.",
    show_default="every-level",
)
@click.option(
    "--shared-heads/--separate-heads",
    default=None,
    help="fpn: one head of the RPN for all maps, or one for each.",
    show_default="shared-heads",
)
@click.option(
    "--train-from",
    metavar="LAYER",
    help="Lower layers keep their weights; outputs: all but those and the RPN; deltas: all but the "
    "box regression, for training stage by stage.",
    show_default="all; of detectors as in the papers",
)
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
    show_default="mirror, but for sppnet",
)
@augmentation_options
@click.option(
    "--difficult",
    type=_flags,
    help="Objects marked difficult.",
    show_default="keep; rpn and faster: drop",
)
@click.option("--crowd", type=_flags, default="ignore", help="Objects marked as a crowd.")
@system_option("--lr", _above_zero, "Learning rate.")
@click.option(
    "--scale-lr",
    is_flag=True,
    help="Multiply --lr by the size of the batch over that of the paper.",
)
@system_option("--classifier-lr-multiplier", _not_negative, "Of the new classifier.")
@system_option(
    "--bias-lr-multiplier",
    _not_negative,
    "Of biases, which also have no weight decay.",
)
@system_option("--optimizer", click.Choice(["sgd", "adamw"]), "adamw: by default at 1e-4 and .05.")
@system_option("--schedule", click.Choice(["step", "cosine"]), "Of the rate; cosine: down to 0.")
@system_option("--warm-up", _count, "First iterations, in which the rate grows from a third.")
@system_option("--step", _count, "Iterations until the rate changes.")
@system_option("--gamma", _above_zero, "Factor of that change.")
@system_option("--momentum", click.FloatRange(0, 1, max_open=True), "adamw: its first beta.")
@system_option("--weight-decay", _not_negative)
@system_option("--clip", _above_zero, "Largest L2 norm of all gradients together.")
@system_option(
    "--average",
    click.FloatRange(0, 1, min_open=True, max_open=True),
    "Decay of a moving average of the weights, which the model then has; lower at first.",
)
@click.option("--validate", metavar="SPLIT", help="Detect on it meanwhile; the best weights stay.")
@click.option("--validate-every", type=_positive, default=1000, help="Iterations; and at the end.")
@click.option(
    "--validate-proposals", type=click.Path(path_type=Path), help="Regions of that split."
)
@click.option(
    "--patience",
    type=_positive,
    help="End training after so many validations without a better AP.",
    show_default="never",
)
@click.option(
    "--accumulate",
    type=_positive,
    default=1,
    help="Parts a batch is computed in, to save memory; detectors average regions within each.",
)
@click.option(
    "--log-every", type=_positive, default=100, help="Iterations of a point of the curves."
)
@click.option("--checkpoint-every", type=_positive, default=500, help="Iterations.")
@click.option("--image-cache", type=_count, default=1024, help="MiB of decoded images to keep.")
@click.option("--memory", type=_positive, default=1024, help="sppnet: MiB of features to keep.")
@curves_option
@precision_option
@click.option(
    "--channels-last/--channels-first",
    default=True,
    help="Order of maps in memory. On CPUs, ResNets may learn faster channels first.",
)
@device_option
@seed_option
@workers_option
@out_option("The model file.")
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Fine-tune a network on windows of DATA: its proposals and its annotated objects.

    --system sppnet learns from --features instead and touches no image: the convolutions stay as
    they are, the fully connected layers of the model that made the features are trained. fast, rpn,
    faster and fpn learn from whole images, from whose maps each region is pooled; what comes out is
    a detector, which scores and moves regions itself. rpn trains the part that finds regions alone
    (propose --method rpn), faster and fpn train all at once.

    With --validate the model has the weights whose average precision (COCO's, with the settings of
    detect) was best on that split; AP and AP50 are among the curves.

    A run that was stopped goes on from its last checkpoint and ends with the same bytes. Under
    torchrun every rank computes its share of each batch.
    """
    from rcnnpipe.finetuning.images import finetune_on_images
    from rcnnpipe.finetuning.rows import finetune_on_rows
    from rcnnpipe.finetuning.run import Run
    from rcnnpipe.finetuning.windows import finetune_on_windows
    from rcnnpipe.training.distributed import join_ranks

    started = time.monotonic()
    complete_options(ctx, options)
    work = {
        "rcnn": finetune_on_windows,
        "sppnet": finetune_on_rows,
    }.get(options["system"], finetune_on_images)
    settings = stage_settings(ctx, (*_UNRECORDED, *unrecorded(options)), OFF)
    with join_ranks(options["device"], options["precision"]) as ranks:
        done = work(Run(options, settings, VERSION, *rules_of(options), ranks))
    seconds = time.monotonic() - started
    say(f"wrote {options['out']} ({done} iterations, {seconds:.0f} s)")
