"""What becomes of flagged objects in training and in evaluation."""

from pathlib import Path

import numpy as np
import pytest

from rcnnpipe.datasets.policy import (
    EVALUATION,
    TRAINING,
    Policy,
    labels_under,
    roles,
    training_labels,
)
from rcnnpipe.datasets.records import Record

# Objects: plain, difficult, truncated, crowd, difficult crowd.
DIFFICULT = np.array([0, 1, 0, 0, 1], bool)
TRUNCATED = np.array([0, 0, 1, 0, 0], bool)
CROWD = np.array([0, 0, 0, 1, 1], bool)
RECORD = Record(
    "a",
    Path("a.png"),
    (50, 50),
    np.tile([0.0, 0, 5, 5], (5, 1)),
    np.array([1, 2, 3, 1, 2]),
    DIFFICULT,
    TRUNCATED,
    CROWD,
    np.full(5, 25.0),
)


@pytest.mark.parametrize(
    ("policy", "truth", "ignored"),
    [
        (TRAINING, [1, 1, 1, 0, 0], [0, 0, 0, 1, 1]),
        (EVALUATION, [1, 0, 1, 0, 0], [0, 1, 0, 1, 1]),
        (Policy("drop", "keep", "keep"), [1, 0, 1, 1, 0], [0, 0, 0, 0, 0]),
        (Policy("drop", "ignore", "ignore"), [1, 0, 0, 0, 0], [0, 0, 1, 1, 0]),
    ],
)
def test_roles(policy: Policy, truth: list[int], ignored: list[int]) -> None:
    got = roles(RECORD, policy)
    assert got[0].tolist() == [bool(value) for value in truth]
    assert got[1].tolist() == [bool(value) for value in ignored]


def test_labels() -> None:
    assert labels_under(RECORD).tolist() == [1, 2, 3, -1, -1]
    assert labels_under(RECORD, EVALUATION).tolist() == [1, -1, 3, -1, -1]
    assert training_labels(RECORD, difficult="drop").tolist() == [1, 0, 3, -1, 0]
