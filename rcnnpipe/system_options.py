"""Options whose defaults are a system's constants; which options mean something in which system."""

import logging
import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import click

from rcnnpipe.errors import SettingError
from rcnnpipe.options import CommaList, refuse_given
from rcnnpipe.systems import fast, faster, fpn, rcnn, sppnet
from rcnnpipe.systems.rcnn import Sampling, Solver

_log = logging.getLogger(__name__)

# What each system's options are where none are given.
SYSTEMS = {
    "rcnn": (rcnn.SAMPLING, rcnn.SOLVER),
    "sppnet": (sppnet.SAMPLING, sppnet.SOLVER),
    "fast": (fast.SAMPLING, fast.SOLVER),
    "rpn": (faster.SAMPLING, faster.RPN_SOLVER),
    "faster": (faster.SAMPLING, faster.SOLVER),
    "fpn": (fpn.SAMPLING, fpn.SOLVER),
}
# Images of a batch, where batches are of images.
IMAGES = {
    "fast": fast.IMAGES,
    "rpn": faster.RPN_IMAGES,
    "faster": faster.IMAGES,
    "fpn": fpn.IMAGES,
}
# What becomes of objects marked difficult.
DIFFICULT = {**dict.fromkeys(SYSTEMS, "keep"), **dict.fromkeys(("rpn", "faster"), faster.DIFFICULT)}
_REGIONS = ("batch_size", "foreground", "foreground_overlap", "background_overlap")
_DETECTORS = ("fast", "rpn", "faster", "fpn")
_WITH_RPN = ("rpn", "faster", "fpn")
# Options that have a meaning in some systems alone.
_OF = {
    **dict.fromkeys(("data", "split", "network"), ("rcnn", *_DETECTORS)),
    **dict.fromkeys(("difficult", "crowd"), ("rcnn", *_DETECTORS)),
    **dict.fromkeys(("image_cache", "channels_last"), ("rcnn", *_DETECTORS)),
    **dict.fromkeys(("proposals", "max_proposals"), ("rcnn", "fast")),
    **dict.fromkeys(("crop", "padding"), ("rcnn",)),
    **dict.fromkeys(("features", "memory"), ("sppnet",)),
    **dict.fromkeys(("classifier_lr_multiplier",), ("rcnn", "sppnet")),
    **dict.fromkeys(("scale_jitter", "photometric", "random_crop"), _DETECTORS),
    **dict.fromkeys(("images", "scales", "longest", "pooling"), _DETECTORS),
    **dict.fromkeys(
        ("box_weight", "box_beta", "new_outputs", "first_values"), ("fast", "faster", "fpn")
    ),
    **dict.fromkeys((*_REGIONS, "background_from"), ("rcnn", "sppnet", "fast", "faster", "fpn")),
    **dict.fromkeys(("anchor_sizes", "straddle", "rpn_loss"), _WITH_RPN),
    **dict.fromkeys(("pre_nms", "post_nms"), ("faster", "fpn")),
    **dict.fromkeys(("lateral", "top_down", "finest_only", "shared_heads"), ("fpn",)),
    **dict.fromkeys(("validate", "validate_every", "patience"), ("rcnn", "fast", "faster", "fpn")),
    **dict.fromkeys(("validate_proposals",), ("rcnn", "fast")),
}
_OF_VALIDATION = ("validate_every", "validate_proposals", "patience")
_OF_STEPS = ("step", "gamma")
# Options that are not recorded while they ask for nothing.
OFF = {
    **dict.fromkeys(("clip", "average", "validate", "patience"), None),
    **dict.fromkeys(("scale_jitter", "shared_heads"), None),
    **dict.fromkeys(("photometric", "random_crop"), False),
    **{"optimizer": "sgd", "schedule": "step", "warm_up": 0, "channels_last": True},
    **{
        "max_proposals": 0,
        "box_beta": fast.BETA,
        "rpn_loss": "code",
        "first_values": fast.FIRST_VALUES[0],
    },
}
_NEEDED = {
    "rcnn": ("data", "proposals"),
    "sppnet": ("features",),
    "fast": ("data", "proposals"),
    **dict.fromkeys(_WITH_RPN, ("data",)),
}
_MADE_BY = {
    "data": "name the data set",
    "proposals": "run rcnnpipe propose first",
    "features": "run rcnnpipe extract-features --layers pool5 first",
}

# Options that stand for a constant of the system -> the field of its rules.
FIELDS = {
    "iterations": "iterations",
    "batch_size": "batch_size",
    "foreground": "foreground",
    "foreground_overlap": "foreground_overlap",
    "background_overlap": "background_overlap",
    "background_from": "background_from",
    "mirror": "mirror",
    "lr": "learning_rate",
    "step": "step",
    "gamma": "gamma",
    "momentum": "momentum",
    "weight_decay": "weight_decay",
    "bias_lr_multiplier": "bias_multiplier",
    "classifier_lr_multiplier": "classifier_multiplier",
    "optimizer": "optimizer",
    "schedule": "schedule",
    "warm_up": "warm_up",
    "clip": "clip",
    "average": "average",
}


class FactorRange(CommaList):
    """Two factors above 0 in one word, the smaller first."""

    name = "min,max"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A tuple of two numbers."""
        words = super().convert(value, param, ctx)
        try:
            low, high = map(float, words)
        except ValueError:
            low, high = math.nan, math.nan
        if not 0 < low <= high < math.inf:
            self.fail(f"{value!r} is no range MIN,MAX of factors above 0", param, ctx)
        return low, high


AUGMENTATION = ("scale_jitter", "photometric", "random_crop")


def augmentation_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of :data:`AUGMENTATION`: how whole images are changed at random."""
    options = (
        click.option(
            "--scale-jitter",
            type=FactorRange(),
            help="Images become so many times their usual size, drawn for each; e.g. 0.5,1.5.",
            show_default="none",
        ),
        click.option(
            "--photometric", is_flag=True, help="Change brightness, contrast and colours (SSD)."
        ),
        click.option(
            "--random-crop", is_flag=True, help="Show parts of images with objects (SSD)."
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def system_option(flag: str, type: Any, help: str = "") -> Any:
    """An option whose default is a constant of the systems in which it has a meaning."""
    option = flag.strip("-").replace("-", "_")
    field = FIELDS[option]
    values = {
        name: next(getattr(rule, field) for rule in SYSTEMS[name] if hasattr(rule, field))
        for name in _OF.get(option, SYSTEMS)
    }
    same = len(set(values.values())) == 1
    shown = [_shown(value) + ("" if same else f" {name}") for name, value in values.items()]
    return click.option(
        flag, type=type, help=help, show_default=shown[0] if same else ", ".join(shown)
    )


def _shown(value: Any) -> str:
    if isinstance(value, int | float):
        return f"{value:g}"
    return "none" if value is None else str(value)


def complete_options(ctx: click.Context, options: dict[str, Any]) -> None:
    """Give every option of the system its value; refuse those of other systems.

    Raises:
        SettingError: an option is missing, or has no meaning in this system.
    """
    system = options["system"]
    refuse_given(ctx, without_meaning(system), f"with --system {system}")
    for name in _NEEDED[system]:
        if options[name] is None:
            flag = "DATA" if name == "data" else f"--{name}"
            raise SettingError(f"--system {system} needs {flag}; {_MADE_BY[name]}")
    _complete_validation(ctx, options)
    if options["schedule"] == "cosine":
        refuse_given(ctx, _OF_STEPS, "with --schedule cosine")
    sampling, solver = SYSTEMS[system]
    if options["optimizer"] == "adamw":
        refuse_given(ctx, ("scale_lr",), "with --optimizer adamw")
        solver = replace(solver, **rcnn.ADAMW)
    _tell_of_the_rate(options)
    for name, field in FIELDS.items():
        if options[name] is None:
            rule = sampling if hasattr(sampling, field) else solver
            options[name] = ctx.params[name] = getattr(rule, field)
    for name, values in (("images", IMAGES), ("difficult", DIFFICULT)):
        if options[name] is None:
            options[name] = ctx.params[name] = values.get(system)
    if options["scale_lr"]:
        options["lr"] = ctx.params["lr"] = _scaled_rate(options)
    if system == "sppnet" and options["mirror"]:
        raise SettingError(
            "--mirror has no meaning with --system sppnet, whose images are not at hand; give it "
            "to rcnnpipe extract-features"
        )


def _complete_validation(ctx: click.Context, options: dict[str, Any]) -> None:
    if options["validate"] is None:
        refuse_given(ctx, _OF_VALIDATION, "without --validate")
    elif options["system"] in _OF["validate_proposals"] and not options["validate_proposals"]:
        raise SettingError(
            f"--validate needs --validate-proposals with --system {options['system']}; run "
            f"rcnnpipe propose on the split {options['validate']} first"
        )


def _tell_of_the_rate(options: dict[str, Any]) -> None:
    """Goyal et al. 2017, 2.1: a batch of another size wants another rate, and other iterations."""
    name, usual = _batch_of(options["system"])
    _, solver = SYSTEMS[options["system"]]
    told = options["lr"] or options["scale_lr"] or options["optimizer"] == "adamw"
    if told or options[name] in (None, usual):
        return
    _log.info(
        "--%s %d instead of %d: --lr %.3g, and iterations, steps and warm-up times %.3g, would be "
        "in proportion",
        *(name.replace("_", "-"), options[name], usual),
        *(solver.learning_rate * options[name] / usual, usual / options[name]),
    )


def _scaled_rate(options: dict[str, Any]) -> float:
    """The learning rate in proportion to the batch; nothing else changes."""
    name, usual = _batch_of(options["system"])
    rate: float = options["lr"] * (options[name] / usual)
    flag = name.replace("_", "-")
    _log.info("learning rate %.3g: --%s %d, where %d is usual", rate, flag, options[name], usual)
    return rate


def _batch_of(system: str) -> tuple[str, int]:
    """The option that a batch's size is, and its value in the system's paper."""
    if system in IMAGES:
        return "images", IMAGES[system]
    return "batch_size", SYSTEMS[system][0].batch_size


def without_meaning(system: str) -> list[str]:
    """Options that have no meaning in a system."""
    return [name for name, systems in _OF.items() if system not in systems]


def unrecorded(options: dict[str, Any]) -> list[str]:
    """Of completed options those that cannot change the result, whatever their values."""
    names = without_meaning(options["system"])
    names += _OF_STEPS if options["schedule"] == "cosine" else ()
    names += ("validate_every",) if options["validate"] is None else ()
    return names


def rules_of(options: dict[str, Any]) -> tuple[Sampling, Solver]:
    """The rules that completed options stand for."""

    def made(kind: Any) -> Any:
        names = {field.name for field in fields(kind)}
        return kind(**{field: options[x] for x, field in FIELDS.items() if field in names})

    return made(Sampling), made(Solver)
