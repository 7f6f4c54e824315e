"""The command group. It finds a stage by its name and imports none until one is run."""

import importlib
import keyword
from typing import Any

import click

import rcnnpipe

# Name -> one line of help, in the order a pipeline runs them.
STAGES = {
    "prepare": "Draw the demo set, or fetch a public one by its usual download.",
    "check": "Find every fault of a data set; list what to leave out.",
    "pretrain": "Train a classifier for a network to start from.",
    "propose": "Boxes that may hold objects, for every image.",
    "finetune": "Train a system's network on a detection set.",
    "extract-features": "Cache the features of regions, any set of layers in one pass.",
    "train-svm": "Linear SVMs on cached features, with hard-negative mining.",
    "train-bbox-reg": "Ridge regression from features to better boxes.",
    "compress": "Truncated SVD of fully connected layers; what it costs and saves.",
    "import": "A detector of torchvision's as a model file.",
    "detect": "Score, refine and suppress regions: detections.",
    "evaluate": "Average precision of detections, recall of proposals.",
    "compare": "One table of what several systems reached.",
    "inspect": "What an artifact holds and where it came from.",
    "show": "Draw ground truth, proposals, detections and mistakes on images.",
    "export": "Write detections or models in the formats of other tools.",
}


def module_name(stage: str) -> str:
    """The file of a stage, by its name: Python's own words take an underscore behind them."""
    name = stage.replace("-", "_")
    return f"{name}_" if keyword.iskeyword(name) else name


class StageGroup(click.Group):
    """Stages by name: ``train-svm`` is the ``command`` of ``rcnnpipe.stages.train_svm``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in pipeline order."""
        return list(STAGES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the one stage that was asked for."""
        if cmd_name not in STAGES:
            return None
        module = importlib.import_module(f"rcnnpipe.stages.{module_name(cmd_name)}")
        command: click.Command = module.command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Suggest the nearest name for a misspelt one."""
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchCommand as error:
            raise click.NoSuchCommand(args[0], possibilities=STAGES, ctx=ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the stages without importing one."""
        with formatter.section("Stages, in pipeline order"):
            formatter.write_dl(list(STAGES.items()))


@click.group(
    cls=StageGroup,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(rcnnpipe.__version__, prog_name="rcnnpipe")
def main() -> None:
    """Region-based object detection, from R-CNN onwards, as stages that write files.

    Each stage reads artifacts (HDF5) and writes one. "rcnnpipe STAGE --help" explains a stage;
    "rcnnpipe inspect FILE" opens what it wrote.
    """
