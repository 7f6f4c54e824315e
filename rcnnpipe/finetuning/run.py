"""What every fine-tuning shares: the header of the model, and the loop that ends with its file."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from rcnnpipe.artifacts.model import write_model
from rcnnpipe.artifacts.store import Header, Identified, make_header
from rcnnpipe.progress import track
from rcnnpipe.systems.rcnn import Sampling, Solver
from rcnnpipe.training.checkpoints import unfinished
from rcnnpipe.training.curves import write_curves
from rcnnpipe.training.distributed import Ranks
from rcnnpipe.training.loop import Batch, LossFunction, Trainer, train
from rcnnpipe.training.stopping import SMALLER_BATCH, keep_batch
from rcnnpipe.training.validation import Validation

_log = logging.getLogger(__name__)
Piece = TypeVar("Piece")


class Trained(Protocol):
    """What ends in a model file."""

    def settings(self) -> dict[str, Any]:
        """From which it is built again."""

    def tensors(self) -> dict[str, np.ndarray[Any, Any]]:
        """Its values."""


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
        batches: "Batches[Piece]",
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
        options, iterations = self.options, self.solver.iterations
        with unfinished(options["out"], header.id, first=self.ranks.first) as folder:
            trainer.resume(folder, validation)
            steps = train(
                trainer,
                batches.batches(trainer.iteration, iterations),
                loss,
                iterations,
                folder=folder,
                checkpoint_every=options["checkpoint_every"],
                log_every=options["log_every"],
                validation=validation,
                remedy=remedy,
                keep_bad=lambda iteration: self._keep_bad(batches, iteration),
            )
            for _ in track(steps, iterations, "finetune", "iteration", trainer.iteration):
                pass
            if self.ranks.first:
                curves = {name: np.array(values) for name, values in trainer.curves.items()}
                with trainer.outcome():
                    tensors = _best(validation, trainer.iteration < iterations) or model.tensors()
                    write_model(options["out"], header, model.settings(), tensors, curves)
                if options["curves"] is not None:
                    write_curves(options["curves"], trainer.curves)
        return trainer.iteration

    def _keep_bad(self, batches: "Batches[Piece]", iteration: int) -> Path | None:
        """The first rank's share of a batch, in a file beside the output."""
        if not self.ranks.first:
            return None
        out: Path = self.options["out"]
        path = out.with_name(out.name + ".bad-batch.npz")
        return keep_batch(path, lambda: next(batches.batches(iteration, iteration + 1)))


def _best(validation: Validation | None, early: bool) -> dict[str, np.ndarray[Any, Any]] | None:
    """The values that were best, and a word on them; None where nothing was judged."""
    if validation is None or validation.best is None:
        return None
    _log.info(
        "%sthe model has the weights after iteration %d, the best: AP %.4f",
        *("ended early; " if early else "", validation.best_iteration, validation.best),
    )
    return validation.best_tensors


class Batches(Protocol[Piece]):
    """A source of batches."""

    def batches(self, start: int, stop: int) -> Iterator[Batch[Piece]]:
        """The batches of iterations ``start`` up to, not including, ``stop``."""
