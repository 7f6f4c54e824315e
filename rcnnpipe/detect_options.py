"""Options of ``detect`` that say what becomes of boxes that overlap; which mean something.

An option that is not in use is not recorded, so that an equal result records equal settings.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from rcnnpipe.errors import SettingError
from rcnnpipe.options import ONE_IMAGE, Decorated, refuse_given
from rcnnpipe.systems.rcnn import NMS_OVERLAP
from rcnnpipe.systems.soft_nms import FLOOR, GAUSSIAN, GREEDY, KINDS, LINEAR, SIGMA

if TYPE_CHECKING:
    from rcnnpipe.suppression import Suppression

# What has no meaning with each kind of suppression.
_UNUSED = {GREEDY: ("sigma", "soft_floor"), LINEAR: ("sigma",), GAUSSIAN: ("nms_overlap",)}
# Options that are not recorded while they ask for nothing.
OFF = {"suppression": GREEDY, "class_agnostic": False, "flip": False, **ONE_IMAGE}


def suppression_options(command: Decorated) -> Decorated:
    """The options of suppression, in the order of the help."""
    options = (
        click.option(
            "--nms-overlap",
            type=click.FloatRange(0, 1),
            default=NMS_OVERLAP,
            help="IoU above which the worse box goes, or its score falls; 1 suppresses nothing.",
        ),
        click.option(
            "--suppression",
            type=click.Choice(KINDS),
            default=GREEDY,
            help="Whether worse boxes go, or their scores fall by 1 - IoU or by a Gaussian of it.",
        ),
        click.option(
            "--sigma",
            type=click.FloatRange(min=0, min_open=True),
            default=SIGMA,
            help="Of --suppression gaussian: scores fall by exp(-IoU^2 / sigma).",
        ),
        click.option(
            "--soft-floor",
            type=click.FloatRange(min=0),
            default=FLOOR,
            help="Boxes whose scores fall below it go.",
        ),
        click.option(
            "--class-agnostic",
            is_flag=True,
            help="Suppress over all classes at once: the better box of any class wins.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def check_suppression(ctx: click.Context, options: Mapping[str, Any]) -> None:
    """Refuse what has no meaning with the kind of suppression.

    Raises:
        SettingError: names the option.
    """
    kind = options["suppression"]
    refuse_given(ctx, _UNUSED[kind], f"with --suppression {kind}")
    if kind == GREEDY:
        return
    refuse_given(ctx, ("suppress_first",), f"with --suppression {kind}, which follows the caps")
    if options["svm"] is not None:
        raise SettingError(
            f"--suppression {kind} lowers probabilities, which margins of an SVM are not; leave it "
            "or --svm out"
        )


def unused(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Options that have no meaning with the kind of suppression."""
    return _UNUSED[options["suppression"]]


def suppression_of(options: Mapping[str, Any]) -> "Suppression":
    """What the options stand for."""
    from rcnnpipe.suppression import Suppression

    return Suppression(
        overlap=options["nms_overlap"],
        kind=options["suppression"],
        sigma=options["sigma"],
        floor=options["soft_floor"],
        class_agnostic=options["class_agnostic"],
    )
