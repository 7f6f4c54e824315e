"""Candidates of regions, against slow references and by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rcnnpipe.artifacts.columns import ImageList
from rcnnpipe.artifacts.detections import Detections, read_detections
from rcnnpipe.detection import (
    SoftmaxScorer,
    SvmScorer,
    candidates_of,
    detect_regions,
    gather_candidates,
    suppress_candidates,
)
from rcnnpipe.errors import ArtifactError
from tests.artifacts_made import make_detections
from tests.reference import suppression

NO_LIMIT = 0


def test_candidates_by_class_threshold_and_number() -> None:
    scores = torch.tensor([[0.9, -1.0], [0.1, 2.0], [0.5, -torch.inf]])
    found = candidates_of(scores, threshold=0.2, most=1)
    assert found.regions.tolist() == [0, 1]
    assert found.labels.tolist() == [1, 2]
    found = candidates_of(scores, most=NO_LIMIT)
    assert found.labels.tolist() == [1, 1, 1, 2, 2]  # -inf is no candidate
    assert found.regions.tolist() == [0, 2, 1, 1, 0]


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


def shifted(*places: float) -> torch.Tensor:
    """Boxes of 10 x 10, each moved to the right: two that are 5 apart overlap by 1 / 3."""
    return torch.tensor([[x, 0.0, x + 10, 10] for x in places])


def test_candidates_are_suppressed_within_their_class() -> None:
    # Region 0 beats 1 (IoU 1/3) in class 1, and 1 beats 0 in class 2; 2 lies apart.
    boxes = shifted(0, 5, 50)
    scores = torch.tensor([[0.9, 0.2], [0.8, 0.7], [0.1, 0.3]])
    found = candidates_of(scores, most=NO_LIMIT)
    kept = suppress_candidates(found, boxes, 0.3, NO_LIMIT)
    assert kept.regions.tolist() == [0, 2, 1, 2]
    assert kept.labels.tolist() == [1, 1, 2, 2]
    torch.testing.assert_close(kept.scores, torch.tensor([0.9, 0.1, 0.7, 0.3]))
    # IoU of 1/3 survives an overlap of 0.34.
    kept = suppress_candidates(found, boxes, 0.34, NO_LIMIT)
    assert kept.regions.tolist() == [0, 1, 2, 1, 2, 0]


def test_candidates_are_capped_after_their_suppression() -> None:
    # By score 0, 1, 2, 3; 1 goes because of 0. The best two that remain are 0 and 2.
    boxes = shifted(0, 5, 50, 100)
    scores = torch.tensor([[4.0, 1], [3, -torch.inf], [2, 2], [1, 3]])
    found = candidates_of(scores, most=NO_LIMIT)
    kept = suppress_candidates(found, boxes, 0.3, 2)
    assert kept.regions.tolist() == [0, 2, 3, 2]
    assert kept.labels.tolist() == [1, 1, 2, 2]
    assert kept.scores.tolist() == [4, 2, 3, 2]
    first = candidates_of(scores, most=2)  # R-CNN caps first: 0 and 1
    assert first.regions.tolist() == [0, 1, 3, 2]
    for most in (3, 100):
        assert suppress_candidates(found, boxes, 0.3, most).regions.tolist() == [0, 2, 3, 3, 2, 0]


def test_no_candidates_are_suppressed_to_none() -> None:
    none = candidates_of(torch.zeros(0, 3))
    kept = suppress_candidates(none, torch.zeros(0, 4), 0.3, 5)
    assert [len(part) for part in (kept.regions, kept.scores, kept.labels)] == [0, 0, 0]


@pytest.mark.parametrize("seed", range(10))
def test_suppressed_candidates_equal_the_reference(seed: int) -> None:
    random = np.random.default_rng(seed)
    count, classes, most = int(random.integers(1, 40)), 3, int(random.integers(0, 6))
    corners = random.integers(0, 20, (count, 2))
    boxes = np.hstack((corners, corners + random.integers(1, 20, (count, 2)))).astype(np.float32)
    scores = torch.from_numpy(random.permutation(count * classes).reshape(count, classes)).float()
    found = candidates_of(scores, 5, NO_LIMIT)
    kept = suppress_candidates(found, torch.from_numpy(boxes), 0.3, most)
    expected = []
    for label in range(1, classes + 1):
        own = scores[:, label - 1].numpy()
        rows = np.flatnonzero(own > 5)
        best = suppression.suppress(boxes[rows], own[rows], np.full(len(rows), label), 0.3)
        best = sorted(best, key=lambda row: -own[rows[row]])[: most or None]
        expected += [(int(rows[row]), label) for row in best]
    assert list(zip(kept.regions.tolist(), kept.labels.tolist(), strict=True)) == expected
    assert torch.equal(kept.scores, scores[kept.regions, kept.labels - 1])


def test_suppression_before_the_cap_when_detecting() -> None:
    features = {"logits": torch.tensor([[0.0, 3], [0, 2], [0, 1]])}

    def left_edges(most: int, **more: Any) -> list[float]:
        size, scorer = (20, 100), SoftmaxScorer()
        boxes = shifted(0, 5, 50)
        found = detect_regions(features, boxes, size, scorer, None, -np.inf, most, **more)
        return [float(x) for x in found["boxes"][:, 0]]

    assert left_edges(2) == [0, 5]
    assert left_edges(2, suppress_first=0.3) == [0, 50]
    assert left_edges(NO_LIMIT, suppress_first=0.3) == [0, 50]
    assert left_edges(NO_LIMIT, suppress_first=1) == [0, 5, 50]


def test_boxes_are_suppressed_where_they_were_and_moved_after() -> None:
    class Together:
        layer = "pool5"

        def __call__(
            self, features: torch.Tensor, boxes: torch.Tensor, labels: torch.Tensor
        ) -> torch.Tensor:
            return torch.zeros_like(boxes) + torch.tensor([0, 0, 4, 4])

    features = {"logits": torch.tensor([[0.0, 3], [0, 2], [0, 1]]), "pool5": torch.zeros(3, 1)}
    scorer, boxes = SoftmaxScorer(), shifted(0, 5, 50)
    found = detect_regions(features, boxes, (20, 100), scorer, Together(), -np.inf, 0, 0.3)
    assert found["boxes"].tolist() == [[0, 0, 4, 4]] * 2


def stored(path: Path, ids: tuple[str, ...], counts: tuple[int, ...], first: float) -> Detections:
    """Detections whose scores are first, first + 1, ... in the order of the file."""
    scores = np.arange(sum(counts), dtype=np.float32) + np.float32(first)
    layout: dict[str, Any] = {
        "image_ids": ids,
        "counts": counts,
        "sizes": np.full((len(ids), 2), 9),
    }
    return read_detections(make_detections(path, scores=scores, **layout))


def images(*ids: str) -> ImageList:
    return ImageList(ids, np.full((len(ids), 2), 9))


def test_candidates_of_several_files_are_put_together(tmp_path: Path) -> None:
    # One file in another order than the other, with an image more.
    paths = [tmp_path / "one.h5", tmp_path / "two.h5"]
    one = stored(paths[0], ("a", "b", "c"), (2, 0, 1), 0)  # a: 0 1, c: 2
    two = stored(
        paths[1], ("c", "x", "b", "a"), (1, 2, 1, 2), 10
    )  # c: 10, x: 11 12, b: 13, a: 14 15
    columns, offsets = gather_candidates(paths, [one, two], images("b", "a", "c"))
    assert columns["scores"].tolist() == [13, 0, 1, 14, 15, 2, 10]
    assert offsets.tolist() == [0, 1, 5, 7]
    rows = [3, 0, 1, 4, 5, 2, 0]
    files = [two, one, one, two, two, one, two]
    for name in ("boxes", "labels"):
        expected = [getattr(file, name)[row] for file, row in zip(files, rows, strict=True)]
        np.testing.assert_array_equal(columns[name], expected)
        assert columns[name].dtype == getattr(one, name).dtype
    columns, offsets = gather_candidates(paths[:1], [one], images("c"))
    assert (columns["scores"].tolist(), offsets.tolist()) == ([2], [0, 1])
    columns, offsets = gather_candidates(paths, [one, two], images())
    assert (columns["boxes"].shape, offsets.tolist()) == ((0, 4), [0])
    with pytest.raises(ArtifactError, match=r"one\.h5 has no candidates for 1 of 2 images.*'x'"):
        gather_candidates(paths, [one, two], images("a", "x"))
    with pytest.raises(ArtifactError, match=r"one\.h5 has candidates for a 9 x 9 image 'a'.*7 x 8"):
        gather_candidates(paths, [one, two], ImageList(("a",), np.array([[8, 7]])))
