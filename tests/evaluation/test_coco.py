import json
from dataclasses import replace

import numpy as np
import pytest

from rcnnpipe.datasets import open_dataset
from rcnnpipe.evaluation.coco import CocoRules, evaluate_coco
from rcnnpipe.evaluation.columns import Truth, truth_of
from rcnnpipe.evaluation.results import Region, read_coco_results
from rcnnpipe.evaluation.scores import Rules, evaluate_detections
from tests.evaluation.made import drawn, results, truth, xywh
from tests.realdata import DATA, needs_data
from tests.reference import coco_ap

Detection = tuple[int, int, float, tuple[float, float, float, float]]
REFERENCE = DATA / "eval_reference"


def worked_example() -> tuple[Truth, list[Detection]]:
    """Reference sheet "evaluation", 10.2."""
    objects = [
        (0, 1, xywh(10, 10, 50, 50)),
        (0, 1, xywh(100, 100, 20, 20)),
        (0, 1, xywh(200, 200, 100, 100)),
        (1, 1, xywh(0, 0, 100, 100)),
    ]
    detections: list[Detection] = [
        (0, 1, 0.9, xywh(10, 10, 50, 50)),
        (0, 1, 0.8, xywh(10, 10, 50, 45)),
        (0, 1, 0.7, xywh(100, 100, 20, 16)),
        (0, 1, 0.6, xywh(220, 220, 30, 30)),
        (0, 1, 0.55, xywh(240, 240, 30, 30)),
        (1, 1, 0.5, xywh(0, 0, 100, 76)),
        (1, 1, 0.4, xywh(300, 300, 20, 20)),
    ]
    return truth(objects, images=2, crowd=[2]), detections


def test_worked_example() -> None:
    made, detections = worked_example()
    scores = evaluate_coco(made, results(made, detections))
    stats = [0.656931, 0.834158, 0.834158, 0.7, 1, 0.6]
    stats += [0.533333, 0.766667, 0.766667, 0.7, 1, 0.6]
    np.testing.assert_allclose(scores.stats(), stats, atol=5e-7)
    by_threshold = [scores.average_precision(iou) for iou in scores.rules.thresholds]
    expected = [0.834158] * 6 + [0.554455] + [0.336634] * 3
    np.testing.assert_allclose(by_threshold, expected, atol=5e-7)


def test_crowd_takes_any_number_of_detections() -> None:
    made, detections = worked_example()
    inside = [(0, 1, 0.95, xywh(210 + shift, 210, 30, 30)) for shift in range(9)]
    with_more = evaluate_coco(made, results(made, detections + inside))
    without = evaluate_coco(made, results(made, detections))
    assert with_more.average_precision() == without.average_precision()


def test_free_object_is_taken_where_voc_sees_a_duplicate() -> None:
    """Sheet 10.3 under COCO's rule: b takes the second object at .5."""
    made = truth([(0, 1, (0, 0, 100, 100)), (0, 1, (60, 0, 160, 100))])
    found = results(made, [(0, 1, 0.9, (0, 0, 100, 100)), (0, 1, 0.8, (18, 0, 118, 100))])
    assert evaluate_coco(made, found).average_recall(0.5, cap=10) == 0.5
    nearer = results(made, [(0, 1, 0.9, (0, 0, 100, 100)), (0, 1, 0.8, (28, 0, 128, 100))])
    assert evaluate_coco(made, nearer).average_recall(0.5, cap=10) == 1.0


@pytest.mark.parametrize("seed", range(12))
def test_equals_pycocotools(seed: int) -> None:
    made, found = drawn(seed)
    ours, theirs = evaluate_coco(made, found), coco_ap.evaluate(made, found)
    assert not np.isnan(ours.stats()).all()
    precision = np.where(np.isnan(ours.precision), -1, ours.precision)
    recall = np.where(np.isnan(ours.recall), -1, ours.recall)
    np.testing.assert_allclose(precision, theirs.eval["precision"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(recall, theirs.eval["recall"], rtol=0, atol=1e-12)
    stats = np.where(np.isnan(ours.stats()), -1, ours.stats())
    np.testing.assert_allclose(stats, theirs.stats, rtol=0, atol=1e-12)


def test_equals_pycocotools_beyond_the_cap() -> None:
    made, found = drawn(5, images=3, classes=1, per_image=250)
    assert np.bincount(found.images).max() > 100
    theirs = coco_ap.evaluate(made, found)
    stats = evaluate_coco(made, found).stats()
    np.testing.assert_allclose(stats, theirs.stats, rtol=0, atol=1e-12)


def test_order_of_images_and_rows_does_not_matter_without_ties() -> None:
    made, found = drawn(3)
    rng = np.random.default_rng(0)
    scores = rng.permutation(len(found.scores)) / len(found.scores)
    order = rng.permutation(len(scores))
    found = replace(found, scores=scores)
    shuffled = replace(
        found,
        **{
            name: getattr(found, name)[order]
            for name in ("images", "labels", "scores", "boxes", "extents", "areas")
        },
    )
    first, second = evaluate_coco(made, found), evaluate_coco(made, shuffled)
    np.testing.assert_array_equal(first.precision, second.precision)


def test_no_detections_is_zero_and_no_objects_is_nothing() -> None:
    made, found = drawn(1)
    none = replace(
        found,
        **{
            name: getattr(found, name)[:0]
            for name in ("images", "labels", "scores", "boxes", "extents", "areas")
        },
    )
    scores = evaluate_coco(made, none)
    assert scores.average_precision() == 0
    assert np.isnan(scores.per_class()[-1])  # the class without objects


def test_sizes_include_both_ends() -> None:
    """An object of exactly 32 x 32 is small and medium."""
    made = truth([(0, 1, (0, 0, 32, 32))])
    found = results(made, [(0, 1, 0.9, (0, 0, 32, 32))])
    scores = evaluate_coco(made, found)
    assert scores.average_recall(area="small") == scores.average_recall(area="medium") == 1
    assert np.isnan(scores.average_recall(area="large"))


def test_threshold_of_one_allows_for_rounding() -> None:
    made = truth([(0, 1, (0, 0, 1e4, 1e4))])
    found = results(made, [(0, 1, 0.9, (0, 0, 1e4, 1e4 - 1e-7))])
    assert evaluate_coco(made, found, CocoRules(thresholds=(1.0,))).average_recall() == 1


def test_own_caps_and_sizes() -> None:
    made, found = drawn(2)
    scores = evaluate_coco(made, found, CocoRules(areas=("all",), caps=(3, 300)))
    wide = evaluate_coco(made, found, CocoRules(areas=("all",), caps=(300,)))
    assert scores.average_recall(cap=3) < scores.average_recall(cap=300)
    assert scores.average_recall() == wide.average_recall()


@needs_data
@pytest.mark.parametrize(
    ("annotations", "found", "region", "key"),
    [
        (
            "coco/instances_val2014_100.json",
            "coco/instances_val2014_fakebbox100_results.json",
            "boxes",
            "coco_bbox_12",
        ),
        (
            "coco/instances_val2014_100.json",
            "coco/instances_val2014_fakesegm100_results.json",
            "masks",
            "coco_segm_12",
        ),
        (
            "keypoints/gt_dataset.json",
            "keypoints/dt_dataset.json",
            "keypoints",
            "coco_keypoints_10",
        ),
    ],
)
def test_reference_numbers(annotations: str, found: str, region: Region, key: str) -> None:
    dataset = open_dataset(REFERENCE / annotations, need_images=False)
    made = truth_of(dataset)
    read = read_coco_results(REFERENCE / found, made, dataset.category_ids, region)
    scores = evaluate_detections(read, made, Rules(metrics="coco", region=region))
    expected = json.loads((REFERENCE / "expected.json").read_text())[key]
    assert scores.coco is not None
    np.testing.assert_allclose(scores.coco.stats(), expected, rtol=0, atol=1e-9)
