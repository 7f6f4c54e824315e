"""Judging the network now and then while it is trained: the best weights are kept, others end it.

The judge is handed values, never the network in training, so that judging changes nothing there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, Any]


class Judge(Protocol):
    """Measures a model on images that it does not learn from."""

    def __call__(self, tensors: Mapping[str, Array], /) -> dict[str, float]:
        """Figures by name, the same on every rank.

        Args:
            tensors: of the model as its file would hold them.
        """


class Model(Protocol):
    """What is judged."""

    def tensors(self) -> dict[str, Array]:
        """Its values for the model file; they may share memory with it."""


@dataclass
class Validation:
    """When to judge, what was best, and whether training has come to its end.

    Attributes:
        model: the network in training.
        judge: of its values.
        every: iterations between two looks; the last iteration is always followed by one.
        patience: after so many looks without a better figure training ends; None never ends it.
        figure: which of the judge's figures counts, the more the better.
        best: the best figure so far, None before the first look.
        best_iteration: how many iterations it had taken; of equal ones the first.
        best_tensors: the model's values then.
        worse: looks since.
    """

    model: Model
    judge: Judge
    every: int
    patience: int | None = None
    figure: str = "ap"
    best: float | None = None
    best_iteration: int = 0
    best_tensors: dict[str, Array] = field(default_factory=dict)
    worse: int = 0

    def due(self, iteration: int, iterations: int) -> bool:
        """Whether to look after an iteration, counted from 1, of so many."""
        return iteration % self.every == 0 or iteration == iterations

    @property
    def ended(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.worse >= self.patience

    def look(self, iteration: int) -> dict[str, float]:
        """Judge the model's values as they are; returns the figures."""
        tensors = {name: np.array(values) for name, values in self.model.tensors().items()}
        figures = self.judge(tensors)
        reached = figures[self.figure]
        if self.best is None or reached > self.best:
            self.best, self.best_iteration, self.worse = reached, iteration, 0
            self.best_tensors = tensors
        else:
            self.worse += 1
        return figures

    def state(self) -> dict[str, Any]:
        """JSON values for a checkpoint; the best tensors go beside them."""
        return {"best": self.best, "best_iteration": self.best_iteration, "worse": self.worse}

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, Array]) -> None:
        """Go on from a checkpoint's state and best tensors."""
        self.best, self.best_iteration = state["best"], state["best_iteration"]
        self.worse, self.best_tensors = state["worse"], dict(tensors)
