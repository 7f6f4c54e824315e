"""How well a classifier tells classes apart: top-1 and top-5, each class, which is taken for which.

Vocabulary: T examples, K classes. Labels are 1..K; answers 0..K, because a classifier of K + 1
outputs may also answer background, which is wrong of every example.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rcnnpipe.errors import ArtifactError, some_of

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_MANY = 5  # ILSVRC's second measure: the right class is among the five best answers


@dataclass(frozen=True)
class Answers:
    """What a classifier said of T examples.

    Attributes:
        classes: (K + 1) names, ``classes[0] == "background"``.
        labels: (T,) 1..K, the truth.
        told: (T,) 0..K, the best answer; of equal ones the first.
        ranks: (T,) answers that are better than the truth.
    """

    classes: tuple[str, ...]
    labels: Integers
    told: Integers
    ranks: Integers

    @property
    def has_top5(self) -> bool:
        """Whether there are so many classes that a place among the best five means something."""
        return len(self.classes) - 1 >= _MANY

    @property
    def right(self) -> int:
        """Examples whose best answer is the truth."""
        return int((self.ranks == 0).sum())

    def metrics(self) -> dict[str, float]:
        """Accuracies and errors, 0 to 1, of all examples; the mean over the classes that have any.

        Top-5 is left out of fewer than five classes.
        """
        figures = {"examples": len(self.labels)} | _both("top1", self.ranks < 1)
        if self.has_top5:
            figures |= _both("top5", self.ranks < _MANY)
        each = [(self.ranks[self.labels == label] < 1).mean() for label in np.unique(self.labels)]
        return figures | {"mean_class_accuracy": float(np.mean(each))}

    def per_class(self) -> list[dict[str, Any]]:
        """Class, examples, accuracies; these are missing where a class has no example."""
        rows = []
        for label, name in enumerate(self.classes[1:], start=1):
            ranks = self.ranks[self.labels == label]
            row: dict[str, Any] = {"class": name, "examples": len(ranks)}
            if len(ranks):
                row["top1_accuracy"] = float((ranks < 1).mean())
                if self.has_top5:
                    row["top5_accuracy"] = float((ranks < _MANY).mean())
            rows.append(row)
        return rows

    def confusion(self) -> Integers:
        """(K, K + 1) examples of each class 1..K that each answer 0..K was given."""
        outputs = len(self.classes)
        cells = np.bincount((self.labels - 1) * outputs + self.told, minlength=outputs**2 - outputs)
        return cells.reshape(-1, outputs).astype(np.int64)

    def confusion_csv(self) -> bytes:
        """The confusion matrix as CSV: a row for each true class, a column for each answer."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["true class", *self.classes])
        for name, counts in zip(self.classes[1:], self.confusion().tolist(), strict=True):
            writer.writerow([name, *counts])
        return text.getvalue().encode()


def _both(name: str, right: npt.NDArray[np.bool_]) -> dict[str, float]:
    accuracy = float(right.mean())
    return {f"{name}_accuracy": accuracy, f"{name}_error": 1 - accuracy}


def answers_of(
    classes: Sequence[str], labels: Integers, found: Iterable[tuple[Integers, Floats]]
) -> Answers:
    """Answers by what a classifier found.

    Args:
        classes: (K + 1) names, background first.
        labels: (T,) 1..K.
        found: row numbers (t,) and probabilities (t, K + 1) of a few examples at a time; every row
            once.
    """
    told, ranks = np.full(len(labels), -1), np.full(len(labels), -1)
    for rows, probabilities in found:
        told[rows], ranks[rows] = ranked(probabilities, labels[rows])
    assert (told >= 0).all(), "a row without probabilities"
    return Answers(tuple(classes), labels, told, ranks)


def ranked(probabilities: Floats, labels: Integers) -> tuple[Integers, Integers]:
    """The best answer to each of some examples, and how many are better than the truth.

    Args:
        probabilities: (T, K + 1); of equal ones the first counts as better.
        labels: (T,) 1..K.

    Returns:
        told (T,) and ranks (T,); ranks are 0 where what is told is the truth.
    """
    own = np.take_along_axis(probabilities, labels[:, None], axis=1)  # (T, 1)
    before = np.arange(probabilities.shape[1]) < labels[:, None]
    better = (probabilities > own) | ((probabilities == own) & before)
    return probabilities.argmax(axis=1), better.sum(axis=1)


def labels_among(
    labels: Integers, names: Sequence[str], data: str, known: Sequence[str], model: str
) -> Integers:
    """Labels (T,) in the numbering of a model, whose classes are told by their names.

    Args:
        labels: (T,) 1..K in the numbering of the data.
        names: its classes; those without an example may be unknown to the model.
        data: what it is called in messages.
        known: classes of the model.
        model: what it is called.

    Raises:
        ArtifactError: there are examples of classes that the model does not know.
    """
    used = np.unique(labels).tolist()
    unknown = [names[label] for label in used if names[label] not in known[1:]]
    if len(unknown) == len(used):
        raise ArtifactError(
            f"{model} and {data} have no class in common: {some_of(known[1:])} against "
            f"{some_of(unknown)}; judge it on classes that it was trained on"
        )
    if unknown:
        raise ArtifactError(
            f"{data} has examples of classes that {model} does not know ({some_of(unknown)}; "
            f"it knows {some_of(known[1:])}); leave them out with 'rename' in a recipe, or train "
            "on them"
        )
    numbers = np.zeros(len(names), np.int64)
    for label in used:
        numbers[label] = known.index(names[label])
    return numbers[labels]
