"""A chain of Faster R-CNN and FPN on drawn images: its commands, settings and files."""

from pathlib import Path

from click.testing import Result

from rcnnpipe.datasets import open_dataset
from tests.stages.made import ON_CPU, Files, run
from tests.stages.test_finetune import coco_of
from tests.training.made import write_proposals

TUNING = (
    *("--scales", 72, "--iterations", 8, "--images", 2, "--lr", 0.003),
    *("--log-every", 4, "--checkpoint-every", 3, *ON_CPU),
)
REGIONS = ("--batch-size", 64, "--foreground", 16)
SYSTEMS: dict[str, tuple[object, ...]] = {
    "rpn": ("--system", "rpn"),
    "faster": ("--system", "faster", *REGIONS),
    "fpn": ("--system", "fpn", *REGIONS),
}
DETECTORS = ("faster", "fpn")
# What propose is told to find the very regions that a detector looks at itself.
OWN = {
    "faster": ("--max-boxes", 300, "--min-size", 4),
    "fpn": ("--max-boxes", 1000, "--min-size", 0),
}
OUTPUTS = ("class_scores", "box_deltas")
CLASSES = ("background", "red", "green")
EVERY = ("--nms-overlap", 1, "--max-per-set", 0, "--max-per-image", 0)  # every candidate stays


class Chain(Files):
    """The files of a chain that ran, by name; and the commands that made them."""

    def finetune(self, system: str, out: Path, *more: object, **how: bool) -> Result:
        words = ("finetune", *self.data, *SYSTEMS[system], *TUNING, "--init", self.weights)
        return run(*words, *more, "--out", out, **how)

    def propose(self, model: Path, out: Path, *more: object, **how: bool) -> Result:
        words = ("propose", *self.data, "--method", "rpn", "--model", model, *ON_CPU)
        return run(*words, *more, "--out", out, **how)


def make_chain(folder: Path, iterations: int = 8) -> Chain:
    """``weights``; ``rpn`` and what it proposes, ``found``; two detectors, their own proposals.

    ``proposals`` stand for selective search's.
    """
    dataset = open_dataset(coco_of(folder / "data", 8), "train")
    write_proposals(folder / "proposals.h5", dataset)
    chain = Chain(folder)
    few = ("--network", "demo", "--epochs", 1, "--batch-size", 8, *ON_CPU)
    run("pretrain", *chain.data, *few, "--out", chain.weights)
    for system in SYSTEMS:
        chain.finetune(system, folder / f"{system}.h5", "--iterations", iterations)
    chain.propose(chain.rpn, chain.found, "--min-size", 6)
    for system in DETECTORS:
        model = folder / f"{system}.h5"
        chain.propose(model, folder / f"own-{system}.h5", *OWN[system])
        chain.detect(folder / f"detections-{system}.h5", "--model", model)
    return chain
