import numpy as np
import pytest

from rcnnpipe.evaluation.recall import evaluate_proposals
from tests.evaluation.made import drawn, truth
from tests.reference.recall import greedy, overlaps_of

# Sheet 10.5, inclusive pixels there, continuous edges here
A, B = (0, 0, 100, 100), (0, 20, 100, 120)
P1, P2 = (0, 8, 100, 108), (0, 30, 100, 80)


def test_worked_example() -> None:
    made = truth([(0, 1, A), (0, 1, B)])
    covered = evaluate_proposals(made, np.array([P1, P2], np.float32), np.array([0, 2]), (1, 2))
    np.testing.assert_allclose(covered.own[1], [0.851852, 0.5], atol=5e-7)
    np.testing.assert_allclose(covered.best[1], [0.851852, 0.785714], atol=5e-7)
    assert covered.average_recall(2) == pytest.approx(0.45)
    assert covered.own[1].mean() == pytest.approx(0.675926, abs=5e-7)
    assert covered.mean_average_best_overlap(2) == pytest.approx(0.818783, abs=5e-7)
    assert covered.recall(0.5, 2) == 1
    assert covered.recall(0.7, 2) == 0.5
    # The first proposal alone
    np.testing.assert_allclose(covered.own[0], [0.851852, 0], atol=5e-7)


def test_of_equal_overlaps_the_first_object_is_served_first() -> None:
    """Both objects overlap the first proposal by .5; only the second has another."""
    made = truth([(0, 1, (0, 0, 10, 10)), (0, 1, (10, 0, 20, 10))])
    boxes = np.array([(0, 0, 20, 10), (16, 0, 20, 10)])
    covered = evaluate_proposals(made, boxes, np.array([0, 2]), (2,))
    np.testing.assert_allclose(covered.own[0], [0.5, 0.4])


def test_threshold_that_is_no_float_is_reached_exactly() -> None:
    """An arange of thresholds holds .8500000000000003, which an overlap of .85 fails."""
    made = truth([(0, 1, (0, 0, 100, 100))])
    covered = evaluate_proposals(made, np.array([(0, 0, 85, 100)]), np.array([0, 1]), (1,))
    assert covered.average_recall(1) == pytest.approx(0.8)


@pytest.mark.parametrize("seed", range(10))
def test_equals_slow_reference(seed: int) -> None:
    made, found = drawn(seed)
    order = np.argsort(found.images, kind="stable")
    offsets = np.searchsorted(found.images[order], np.arange(len(made.image_ids) + 1))
    boxes = found.boxes[order]
    covered = evaluate_proposals(made, boxes, offsets, (3, 10, 1000))
    own, best = [], []
    for image in range(len(made.image_ids)):
        objects = made.boxes[(made.images == image) & ~made.ignored]
        for limit in (3, 10, 1000):
            proposals = boxes[offsets[image] : offsets[image + 1]][:limit]
            overlaps = overlaps_of(objects, proposals)
            own.append((limit, greedy(overlaps)))
            best.append((limit, overlaps.max(axis=0, initial=0)))
    for row, limit in enumerate((3, 10, 1000)):
        np.testing.assert_allclose(covered.own[row], _of(own, limit), atol=1e-12)
        np.testing.assert_allclose(covered.best[row], _of(best, limit), atol=1e-12)


def _of(parts: list[tuple[int, np.ndarray]], limit: int) -> np.ndarray:  # type: ignore[type-arg]
    return np.concatenate([values for at, values in parts if at == limit])


def test_images_without_proposals_still_count() -> None:
    made = truth([(0, 1, A), (1, 1, A)], images=2)
    covered = evaluate_proposals(made, np.array([A], np.float32), np.array([0, 1, 1]))
    assert covered.recall(0.5, 2000) == 0.5
    assert covered.proposals == 0.5


def test_mean_over_classes_leaves_out_empty_ones() -> None:
    made = truth([(0, 1, A), (0, 1, A), (0, 2, (200, 200, 300, 300))], classes=3)
    covered = evaluate_proposals(made, np.array([A], np.float32), np.array([0, 1]))
    np.testing.assert_array_equal(covered.average_best_overlap(100), [np.nan, 1, 0, np.nan])
    assert covered.mean_average_best_overlap(100) == 0.5


def test_crowds_and_difficult_objects_need_no_proposal() -> None:
    made = truth([(0, 1, A), (0, 1, B), (0, 1, (300, 300, 400, 400))], crowd=[1], difficult=[2])
    covered = evaluate_proposals(made, np.array([A], np.float32), np.array([0, 1]))
    assert covered.own.shape[1] == 1
    assert covered.recall(0.5, 1) == 1


def test_recall_by_size_and_by_overlap() -> None:
    made = truth([(0, 1, (0, 0, 10, 10)), (0, 1, (100, 100, 300, 300))])
    boxes = np.array([(100, 100, 300, 260)], np.float32)  # IoU .8 with the large one
    covered = evaluate_proposals(made, boxes, np.array([0, 1]))
    assert covered.average_recall(1000, (0, 32**2)) == 0
    assert covered.average_recall(1000, (96**2, 1e10)) == pytest.approx(0.7)
    assert np.isnan(covered.average_recall(1000, (32**2 + 1, 96**2 - 1)))
    curve = covered.recall_by_iou(1000)
    assert curve[0] == 0.5
    assert curve[-1] == 0
    assert (np.diff(curve) <= 0).all()
