import numpy as np
import pytest

from rcnnpipe.errors import ArtifactError
from rcnnpipe.evaluation.classification import Answers, answers_of, labels_among, ranked

CLASSES = ("background", "cat", "dog", "emu")
MANY = ("background", *"abcdef")


def test_ranks_count_better_answers() -> None:
    probabilities = np.array([[0.1, 0.6, 0.2, 0.1], [0.4, 0.3, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25]])
    told, ranks = ranked(probabilities, np.array([1, 3, 2]))
    assert told.tolist() == [1, 0, 0]  # of equal ones the first, as argmax
    assert ranks.tolist() == [0, 3, 2]


def test_answers_come_in_any_order() -> None:
    probabilities = np.eye(4)[[1, 3, 2]]
    labels = np.array([1, 2, 2])
    parts = [(np.array([2, 0]), probabilities[[2, 0]]), (np.array([1]), probabilities[[1]])]
    answers = answers_of(CLASSES, labels, parts)
    assert answers.told.tolist() == [1, 3, 2]
    assert answers.ranks.tolist() == [0, 3, 0]  # emu; equal to dog and before it, two


def test_metrics_by_hand() -> None:
    # cat: right, background; dog: right, emu, dog; no emu
    labels, told = np.array([1, 1, 2, 2, 2]), np.array([1, 0, 2, 3, 2])
    answers = Answers(CLASSES, labels, told, np.array([0, 1, 0, 2, 0]))
    assert answers.right == 3
    assert answers.metrics() == pytest.approx(
        {
            "examples": 5,
            "top1_accuracy": 0.6,
            "top1_error": 0.4,
            "mean_class_accuracy": (1 / 2 + 2 / 3) / 2,
        }
    )
    assert answers.per_class() == [
        {"class": "cat", "examples": 2, "top1_accuracy": 0.5},
        {"class": "dog", "examples": 3, "top1_accuracy": pytest.approx(2 / 3)},
        {"class": "emu", "examples": 0},
    ]
    assert answers.confusion().tolist() == [[1, 1, 0, 0], [0, 0, 2, 1], [0, 0, 0, 0]]
    assert answers.confusion_csv() == (
        b"true class,background,cat,dog,emu\ncat,1,1,0,0\ndog,0,0,2,1\nemu,0,0,0,0\n"
    )


def test_top5_of_five_classes_and_more() -> None:
    answers = Answers(MANY, np.array([1, 1, 6, 6]), np.array([1, 2, 3, 4]), np.array([0, 4, 5, 6]))
    figures = answers.metrics()
    assert (figures["top5_accuracy"], figures["top5_error"]) == (0.5, 0.5)
    assert [row.get("top5_accuracy") for row in answers.per_class()] == [1, *[None] * 4, 0]
    assert Answers(MANY[:6], answers.labels, answers.told, answers.ranks).has_top5
    assert not Answers(MANY[:5], answers.labels, answers.told, answers.ranks).has_top5


def test_labels_follow_the_names() -> None:
    labels = np.array([2, 1, 2])
    found = labels_among(labels, ("background", "emu", "cat", "unused"), "set", CLASSES, "m.h5")
    assert found.tolist() == [1, 3, 1]


def test_classes_that_are_unknown_are_told() -> None:
    names = ("background", "cow", "cat")
    with pytest.raises(
        ArtifactError, match=r"m\.h5 and set have no class in common: cat, dog, emu"
    ):
        labels_among(np.array([1]), names, "set", CLASSES, "m.h5")
    with pytest.raises(ArtifactError, match=r"m.h5 does not know \(cow; it knows cat, dog, emu\)"):
        labels_among(np.array([1, 2]), names, "set", CLASSES, "m.h5")
    numbers = ("background", *map(str, range(20)))
    with pytest.raises(ArtifactError, match="0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 10 more against cow"):
        labels_among(np.array([1]), names, "set", numbers, "m.h5")
