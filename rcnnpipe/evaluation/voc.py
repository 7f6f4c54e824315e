"""PASCAL VOC average precision (devkit VOCevaldet.m): 11-point and area, difficult objects ignored.

The boxes are continuous, so their widths already are the devkit's inclusive ones.
"""

from dataclasses import dataclass

import numpy as np

from rcnnpipe.evaluation.columns import Floats, Results, Truth
from rcnnpipe.evaluation.curves import (
    Curve,
    OperatingPoint,
    area_under,
    best_f1,
    precision_recall,
)
from rcnnpipe.evaluation.groups import group
from rcnnpipe.evaluation.matching import IGNORED, TRUE, Rule, match


@dataclass(frozen=True)
class VocRules:
    """What VOC's metric leaves open.

    Attributes:
        iou: least overlap of a true detection.
        above: the overlap must exceed ``iou`` (py-faster-rcnn); the devkit lets it reach it.
        arange: the float recalls of py-faster-rcnn for the 11 points instead of k/10.
    """

    iou: float = 0.5  # VOC devkit: minoverlap
    above: bool = False
    arange: bool = False


@dataclass(frozen=True)
class VocScores:
    """VOC's metrics per label; arrays are (K + 1), index 0 unused and NaN.

    Attributes:
        eleven_point, area: average precision, NaN for a class without objects to be found.
        curves: per label, None for a class without objects to be found.
        best: per label the threshold of the best F1, None where nothing true was found.
        positives: objects to be found.
        detections: judged detections, those on ignored objects left out.
        true: true positives at the lowest score.
    """

    rules: VocRules
    eleven_point: Floats
    area: Floats
    curves: tuple[Curve | None, ...]
    best: tuple[OperatingPoint | None, ...]
    positives: tuple[int, ...]
    detections: tuple[int, ...]
    true: tuple[int, ...]


def evaluate_voc(truth: Truth, results: Results, rules: VocRules | None = None) -> VocScores:
    """Average precision of every class; equal scores count in image, then file order."""
    rules = rules or VocRules()
    rule = Rule(thresholds=(rules.iou,), any_object=True, above=rules.above)
    matches = match(truth, results, rule, group(truth, results))
    labels = len(truth.classes)
    eleven, area = np.full(labels, np.nan), np.full(labels, np.nan)
    curves: list[Curve | None] = [None] * labels
    judged, true = [0] * labels, [0] * labels
    for label in range(1, labels):
        rows = slice(matches.class_starts[label], matches.class_starts[label + 1])
        outcomes = matches.outcomes[rows, 0, 0]
        counts = outcomes != IGNORED
        judged[label], true[label] = int(counts.sum()), int((outcomes == TRUE).sum())
        positives = int(matches.positives[label, 0])
        if positives == 0:
            continue
        scores = results.scores[matches.rows[rows]][counts]
        curve = precision_recall(scores, outcomes[counts] == TRUE, positives)
        curves[label] = curve
        eleven[label] = area_under(curve, "11-point", arange=rules.arange)
        area[label] = area_under(curve, "area")
    return VocScores(
        rules=rules,
        eleven_point=eleven,
        area=area,
        curves=tuple(curves),
        best=tuple(None if curve is None else best_f1(curve) for curve in curves),
        positives=tuple(int(count) for count in matches.positives[:, 0]),
        detections=tuple(judged),
        true=tuple(true),
    )
