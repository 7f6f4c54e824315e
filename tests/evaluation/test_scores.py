import json
from dataclasses import replace

import numpy as np
import pytest

from rcnnpipe.errors import DataError, SettingError
from rcnnpipe.evaluation.recall import evaluate_proposals
from rcnnpipe.evaluation.scores import Rules, evaluate_detections, proposal_metrics
from rcnnpipe.evaluation.voc import VocRules
from tests.evaluation.made import drawn, results, truth

COCO_NAMES = {"ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"}


def test_metrics_are_flat_sorted_and_only_what_exists() -> None:
    made = truth([(0, 1, (0, 0, 50, 50)), (0, 2, (60, 0, 110, 50))], classes=3)
    found = results(made, [(0, 1, 0.9, (0, 0, 50, 50)), (0, 3, 0.8, (0, 0, 50, 50))])
    scores = evaluate_detections(found, made)
    metrics = scores.metrics()
    assert list(metrics) == sorted(metrics)
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    assert metrics["voc_map_area"] == metrics["voc_map_11_point"] == 0.5
    assert metrics["ap"] == metrics["ap_medium"] == pytest.approx(0.5)
    assert COCO_NAMES - set(metrics) == {"ap_small", "ap_large"}  # no such objects
    assert (metrics["images"], metrics["objects"], metrics["detections"]) == (1, 2, 2)
    assert scores.ap == {"class1": pytest.approx(1), "class2": 0.0}
    assert scores.mean == pytest.approx(0.5)
    assert scores.notes == ("no objects of class3: left out of every mean",)


def test_per_class_rows() -> None:
    made = truth([(0, 1, (0, 0, 50, 50)), (0, 2, (60, 0, 110, 50))], classes=3, difficult=[1])
    found = results(made, [(0, 1, 0.9, (0, 0, 50, 50)), (0, 1, 0.8, (0, 0, 50, 50))])
    rows = evaluate_detections(found, made).per_class()
    assert [row["class"] for row in rows] == ["class1", "class2", "class3"]
    assert [row["objects"] for row in rows] == [1, 0, 0]
    assert rows[0]["voc_ap_area"] == 1
    assert rows[0]["ap"] == pytest.approx(1)
    assert rows[0]["best_f1_score"] == 0.9
    assert (rows[0]["detections"], rows[0]["true_positives"]) == (2, 1)
    assert set(rows[1]) == {"class", "objects", "detections", "true_positives"}


def test_rules_choose_what_is_reported() -> None:
    made, found = drawn(0)

    def names(rules: Rules) -> set[str]:
        return set(evaluate_detections(found, made, rules).metrics())

    counts = {"images", "objects", "detections"}
    assert names(Rules("voc", "area")) == counts | {"voc_map_area"}
    assert names(Rules("voc", "11-point")) == counts | {"voc_map_11_point"}
    assert COCO_NAMES - {"ap_large"} <= names(Rules("coco"))  # none of that size is drawn
    assert not any(name.startswith("voc") for name in names(Rules("coco")))
    at = Rules("voc", "area", VocRules(iou=0.75))
    assert names(at) == counts | {"voc_map_area_at_75"}


def test_curves_are_there_whatever_the_metric() -> None:
    made, found = drawn(0)
    scores = evaluate_detections(found, made, Rules("coco"))
    assert scores.voc is not None
    assert scores.voc.curves[1] is not None
    assert scores.mean == pytest.approx(scores.metrics()["ap"])
    only_voc = evaluate_detections(found, made, Rules("voc"))
    assert only_voc.mean == pytest.approx(only_voc.metrics()["voc_map_area"])


def test_wrong_situations() -> None:
    made = truth([(0, 1, (0, 0, 50, 50))], difficult=[0])
    found = results(made, [(0, 1, 0.9, (0, 0, 50, 50))])
    with pytest.raises(DataError, match="every annotated object is difficult or a crowd"):
        evaluate_detections(found, made)
    with pytest.raises(SettingError, match="VOC's metric judges boxes; masks need COCO's"):
        evaluate_detections(found, made, Rules("voc", region="masks"))
    with pytest.raises(DataError, match="the results hold no masks"):
        evaluate_detections(found, replace(made, ignored=~made.ignored), Rules(region="masks"))


def test_no_detections_say_so() -> None:
    made = truth([(0, 1, (0, 0, 50, 50))])
    found = results(made, [(0, 1, 0.9, (0, 0, 50, 50))])
    columns = ("images", "labels", "scores", "boxes", "extents", "areas")
    none = replace(found, **{name: getattr(found, name)[:0] for name in columns})
    scores = evaluate_detections(none, made)
    assert scores.mean == 0
    assert "there are no detections at all" in scores.notes


def test_proposal_metrics() -> None:
    made = truth([(0, 1, (0, 0, 100, 100)), (0, 2, (200, 200, 300, 300))], classes=2)
    boxes = np.array([(0, 0, 100, 60)], np.float32)  # IoU .6 with the first
    metrics = proposal_metrics(evaluate_proposals(made, boxes, np.array([0, 1])))
    assert list(metrics) == sorted(metrics)
    assert metrics["recall_50_2000"] == 0.5
    assert metrics["recall_70_2000"] == 0
    assert metrics["ar_100"] == pytest.approx(0.15)
    assert metrics["mabo_1000"] == pytest.approx(0.3)
    assert "ar_small_1000" not in metrics
    assert metrics["ar_large_1000"] == pytest.approx(0.15)
    assert metrics["proposals_per_image"] == 1
