import csv
import io

import numpy as np
import pytest
from PIL import Image

from rcnnpipe.evaluation import tables
from rcnnpipe.evaluation.recall import evaluate_proposals
from rcnnpipe.evaluation.voc import VocRules, evaluate_voc
from tests.evaluation.made import drawn, truth


def test_csv_joins_columns_and_leaves_gaps() -> None:
    rows = [{"class": "a, b", "objects": 3}, {"class": "c", "ap": 1 / 3}]
    assert tables.csv_bytes(rows) == b'class,objects,ap\n"a, b",3,\nc,,0.333333\n'


@pytest.mark.parametrize("classes", [3, 30])
def test_precision_recall(classes: int) -> None:
    made, found = drawn(0, images=40, classes=classes)
    voc = evaluate_voc(made, found, VocRules(iou=0.5))
    rows = tables.precision_recall_rows(made.classes, voc)
    for label, curve in enumerate(voc.curves):
        of_class = [row for row in rows if row["class"] == made.classes[label]]
        if curve is None:
            assert of_class == []
            continue
        assert 2 <= len(of_class) <= 200
        assert of_class[-1]["recall"] == curve.recall[-1]
    text = tables.csv_bytes(rows).decode()
    assert next(csv.reader(io.StringIO(text))) == ["class", "recall", "precision", "score"]
    first = tables.precision_recall_png(made.classes, voc)
    assert first == tables.precision_recall_png(made.classes, voc)
    with Image.open(io.BytesIO(first)) as image:
        assert image.size == (640, 520)
        assert set(image.info) <= {"dpi"}  # no date, no version


def test_recall() -> None:
    made = truth([(0, 1, (0, 0, 100, 100)), (0, 2, (200, 200, 300, 300))], classes=3)
    boxes = np.array([(0, 0, 50, 50), (0, 0, 100, 60)], np.float32)
    coverage = evaluate_proposals(made, boxes, np.array([0, 2]))
    rows = tables.recall_rows(coverage)
    assert [row["proposals"] for row in rows] == list(coverage.limits)
    assert [row["recall_50"] for row in rows[:2]] == [0, 0.5]
    by_overlap = tables.recall_iou_rows(coverage)
    assert by_overlap[10] == {
        "iou": pytest.approx(0.6),
        "recall_300": 0.5,
        "recall_1000": 0.5,
        "recall_2000": 0.5,
    }
    assert by_overlap[11]["recall_300"] == 0
    by_class = list(tables.proposal_class_rows(coverage, 2000))
    assert [row["objects"] for row in by_class] == [1, 1, 0]
    assert by_class[0]["abo_2000"] == pytest.approx(0.6)
    assert set(by_class[2]) == {"class", "objects"}
    assert tables.recall_png(coverage) == tables.recall_png(coverage)
