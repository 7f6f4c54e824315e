"""From a fresh trainer to a model file: go on where an earlier run was stopped, train, write."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from rcnnpipe.artifacts.model import write_model
from rcnnpipe.artifacts.store import Header
from rcnnpipe.progress import track
from rcnnpipe.training.checkpoints import unfinished
from rcnnpipe.training.curves import write_curves
from rcnnpipe.training.loop import Batch, LossFunction, Trainer, train
from rcnnpipe.training.stopping import SMALLER_BATCH, KeepBad
from rcnnpipe.training.validation import Validation

_log = logging.getLogger(__name__)
Piece = TypeVar("Piece")


class Trained(Protocol):
    """What ends in a model file."""

    def settings(self) -> dict[str, Any]:
        """From which it is built again."""

    def tensors(self) -> dict[str, np.ndarray[Any, Any]]:
        """Its values."""


class Batches(Protocol[Piece]):
    """A source of batches."""

    def batches(self, start: int, stop: int) -> Iterator[Batch[Piece]]:
        """The batches of iterations ``start`` up to, not including, ``stop``."""


def train_model(
    out: Path,
    header: Header,
    model: Trained,
    trainer: Trainer,
    source: Batches[Piece],
    loss: LossFunction[Piece],
    iterations: int,
    *,
    label: str,
    checkpoint_every: int,
    log_every: int,
    curves: Path | None = None,
    validation: Validation | None = None,
    remedy: str = SMALLER_BATCH,
    keep_bad: KeepBad = None,
) -> int:
    """Train up to the end and write the model; returns how many iterations.

    Args:
        out: the model file.
        header: of it.
        model: what is trained, for the file.
        trainer: fresh.
        source: of batches.
        loss: of a batch's piece.
        iterations: where to stop, counted from the very beginning.
        label: of the stage, for its progress.
        checkpoint_every, log_every, remedy, keep_bad: as in :func:`train`.
        curves: a CSV file for them, or None.
        validation: judges the model meanwhile; the file holds the best values then.
    """
    first = trainer.ranks.first
    with unfinished(out, header.id, first=first) as folder:
        trainer.resume(folder, validation)
        steps = train(
            trainer,
            source.batches(trainer.iteration, iterations),
            loss,
            iterations,
            folder=folder,
            checkpoint_every=checkpoint_every,
            log_every=log_every,
            validation=validation,
            remedy=remedy,
            keep_bad=keep_bad,
        )
        for _ in track(steps, iterations, label, "iteration", trainer.iteration):
            pass
        if first:
            found = {name: np.array(values) for name, values in trainer.curves.items()}
            with trainer.outcome():
                tensors = _best(validation, trainer.iteration < iterations) or model.tensors()
                write_model(out, header, model.settings(), tensors, found)
            if curves is not None:
                write_curves(curves, trainer.curves)
    return trainer.iteration


def _best(validation: Validation | None, early: bool) -> dict[str, np.ndarray[Any, Any]] | None:
    """The values that were best, and a word on them; None where nothing was judged."""
    if validation is None or validation.best is None:
        return None
    _log.info(
        "%sthe model has the weights after iteration %d, the best: AP %.4f",
        *("ended early; " if early else "", validation.best_iteration, validation.best),
    )
    return validation.best_tensors
