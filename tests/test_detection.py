"""Selection and suppression, against slow references and by hand."""

import numpy as np
import pytest
import torch

from rcnnpipe.detection import (
    SoftmaxScorer,
    SvmScorer,
    candidates_of,
    class_thresholds,
    detect_regions,
    suppress,
)
from tests.reference import suppression

NO_LIMIT = 0


@pytest.mark.parametrize("seed", range(20))
def test_suppress_equals_the_reference(seed: int) -> None:
    random = np.random.default_rng(seed)
    count = int(random.integers(0, 60))
    corners = random.integers(0, 30, (count, 2))
    boxes = np.hstack((corners, corners + random.integers(1, 30, (count, 2)))).astype(np.float32)
    scores = random.integers(0, 10, count).astype(np.float32)  # with ties
    labels = random.integers(1, 4, count)
    overlap = float(random.choice([0.0, 0.3, 0.5]))
    found = suppress(boxes, scores, labels, overlap)
    expected = suppression.suppress(boxes, scores, labels, overlap)
    assert sorted(found.tolist()) == sorted(expected)
    assert (np.diff(scores[found]) <= 0).all()


def test_exactly_the_overlap_survives() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5]], np.float32)  # IoU exactly 1 / 2
    scores, labels = np.array([1, 0.5], np.float32), np.array([1, 1])
    assert suppress(boxes, scores, labels, 0.5).tolist() == [0, 1]
    assert suppress(boxes, scores, labels, 0.49).tolist() == [0]
    assert suppress(boxes[[0, 0]], scores, labels, 1).tolist() == [0, 1]


def test_candidates_by_class_threshold_and_number() -> None:
    scores = torch.tensor([[0.9, -1.0], [0.1, 2.0], [0.5, -torch.inf]])
    found = candidates_of(scores, threshold=0.2, most=1)
    assert found.regions.tolist() == [0, 1]
    assert found.labels.tolist() == [1, 2]
    found = candidates_of(scores, most=NO_LIMIT)
    assert found.labels.tolist() == [1, 1, 1, 2, 2]  # -inf is no candidate
    assert found.regions.tolist() == [0, 2, 1, 1, 0]


def test_thresholds_of_the_whole_set() -> None:
    scores = np.array([5, 4, 3, 2, 1, 9], np.float32)
    labels = np.array([1, 1, 1, 1, 1, 2])
    assert class_thresholds(scores, labels, 2, most=2).tolist() == [-np.inf, 4, -np.inf]
    assert class_thresholds(scores, labels, 2, NO_LIMIT).tolist() == [-np.inf] * 3


def test_scores_of_an_svm_and_of_a_classifier() -> None:
    weights, bias = torch.tensor([[1.0, 0], [0, 1], [1, 1]]), torch.tensor([0.0, 0, -1])
    svm = SvmScorer("fc7", weights, bias, scale=0.5)
    features = torch.tensor([[2.0, 4.0]]).half()
    torch.testing.assert_close(svm(features), torch.tensor([[1.0, 2.0, 2.0]]))
    logits = torch.log(torch.tensor([[2.0, 1.0, 5.0]])).half()
    expected = torch.tensor([[1 / 8, 5 / 8]])
    torch.testing.assert_close(SoftmaxScorer()(logits), expected, atol=1e-3, rtol=0)


def test_regression_moves_boxes_and_leaves_scores() -> None:
    class Shift:
        layer = "pool5"

        def __call__(
            self, features: torch.Tensor, boxes: torch.Tensor, labels: torch.Tensor
        ) -> torch.Tensor:
            return boxes + labels[:, None] * 100

    features = {"fc7": torch.tensor([[1.0], [2.0]]), "pool5": torch.zeros(2, 3)}
    scorer = SvmScorer("fc7", torch.tensor([[1.0], [-1.0]]), torch.zeros(2), scale=1.0)
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 5, 20, 20]])
    for refiner, shift in ((None, 0), (Shift(), 100)):
        found = detect_regions(features, boxes, (150, 1000), scorer, refiner, -np.inf, 100)
        assert found["scores"].tolist() == [2, 1, -1, -2]
        assert found["labels"].tolist() == [1, 1, 2, 2]
        assert found["boxes"][0, 0] == 5 + shift
        assert found["boxes"][:, 3].max() <= 150
