"""What every fine-tuning shares: the header of the model, and the loop that ends with its file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rcnnpipe.artifacts.store import Header, Identified, make_header
from rcnnpipe.systems.rcnn import Sampling, Solver
from rcnnpipe.training.distributed import Ranks
from rcnnpipe.training.loop import LossFunction, Trainer
from rcnnpipe.training.model_run import Batches, Trained, train_model
from rcnnpipe.training.stopping import SMALLER_BATCH, keep_batch
from rcnnpipe.training.validation import Validation

Piece = TypeVar("Piece")


@dataclass(frozen=True)
class Run:
    """One run of the stage.

    Attributes:
        options: all of them, complete.
        settings: those that are recorded.
        version: of the stage.
        sampling, solver: the rules that the options stand for.
        ranks: this process among all.
    """

    options: Mapping[str, Any]
    settings: Mapping[str, Any]
    version: int
    sampling: Sampling
    solver: Solver
    ranks: Ranks

    def header(
        self,
        inputs: Mapping[str, Identified],
        classes: Sequence[str],
        resolved: Mapping[str, Any],
    ) -> Header:
        """Of the model to be made; ``resolved`` are settings that took a default late."""
        return make_header(
            "model",
            stage="finetune",
            version=self.version,
            settings={
                **self.settings,
                **resolved,
                "device": self.ranks.device.type,
                "ranks": self.ranks.world,
            },
            inputs=inputs,
            classes=classes,
            software=["torch", "torchvision"],
        )

    def train(
        self,
        header: Header,
        model: Trained,
        trainer: Trainer,
        batches: Batches[Piece],
        loss: LossFunction[Piece],
        validation: Validation | None = None,
        remedy: str = SMALLER_BATCH,
    ) -> int:
        """Train up to the end and write the model; returns how many iterations.

        Args:
            header: of the file.
            model: what is trained, for the file.
            trainer: fresh; it goes on where an earlier run was stopped.
            batches: any iteration by its number.
            loss: of a batch's piece.
            validation: judges the model meanwhile; the file holds the best values then.
            remedy: what to do where the memory does not suffice.
        """
        options = self.options
        return train_model(
            *(options["out"], header, model, trainer, batches, loss, self.solver.iterations),
            label="finetune",
            checkpoint_every=options["checkpoint_every"],
            log_every=options["log_every"],
            curves=options["curves"],
            validation=validation,
            remedy=remedy,
            keep_bad=lambda iteration: self._keep_bad(batches, iteration),
        )

    def _keep_bad(self, batches: Batches[Piece], iteration: int) -> Path | None:
        """The first rank's share of a batch, in a file beside the output."""
        if not self.ranks.first:
            return None
        out: Path = self.options["out"]
        path = out.with_name(out.name + ".bad-batch.npz")
        return keep_batch(path, lambda: next(batches.batches(iteration, iteration + 1)))
