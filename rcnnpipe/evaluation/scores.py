"""Everything `evaluate` reports of detections or proposals, as numbers with names.

Means leave out classes without objects, and a note says which; a number that does not exist is
absent, never 0 or -1.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from rcnnpipe.datasets.records import Dataset
from rcnnpipe.errors import DataError, SettingError
from rcnnpipe.evaluation.coco import AREAS, KEYPOINT_RULES, CocoScores, evaluate_coco
from rcnnpipe.evaluation.columns import Floats, Results, Truth, truth_of
from rcnnpipe.evaluation.groups import group
from rcnnpipe.evaluation.recall import AR_LIMITS, Coverage
from rcnnpipe.evaluation.regions import (
    keypoint_overlaps,
    keypoint_truth,
    mask_overlaps,
    mask_results,
)
from rcnnpipe.evaluation.results import Region
from rcnnpipe.evaluation.voc import VocRules, VocScores, evaluate_voc

Metrics = Literal["voc", "coco", "all"]
VocAp = Literal["11-point", "area", "both"]


@dataclass(frozen=True)
class Rules:
    """What to compute.

    Attributes:
        metrics: ``voc``, ``coco`` or ``all``.
        voc_ap: which of VOC's averages to report; 11 points until 2009, area from 2010 on.
        voc: what VOC's metric leaves open.
        count_difficult: difficult objects must be found; by default they are ignored.
        region: what COCO's metric compares; VOC's compares boxes.
    """

    metrics: Metrics = "all"
    voc_ap: VocAp = "both"
    voc: VocRules = field(default_factory=VocRules)
    count_difficult: bool = False
    region: Region = "boxes"


@dataclass(frozen=True)
class Scores:
    """Metrics of one detector on one data set.

    Attributes:
        rules: what was computed.
        classes: (K + 1) names, index 0 the background.
        images, detections: how many.
        objects: (K + 1) objects of each label that are to be found.
        voc: also the source of curves and operating points; None for masks and keypoints.
        coco: None where not asked for.
        notes: what was left out, in sentences.
    """

    rules: Rules
    classes: tuple[str, ...]
    images: int
    detections: int
    objects: tuple[int, ...]
    voc: VocScores | None
    coco: CocoScores | None
    notes: tuple[str, ...]

    @property
    def ap(self) -> dict[str, float]:
        """Average precision of each class with objects: COCO's if asked for, else VOC's area."""
        values = self.coco.per_class() if self.coco else self._voc_scores().area[1:]
        named = zip(self.classes[1:], values.tolist(), strict=True)
        return {name: value for name, value in named if not math.isnan(value)}

    @property
    def mean(self) -> float:
        """Mean of ``ap``."""
        return sum(self.ap.values()) / len(self.ap)

    def metrics(self) -> dict[str, float]:
        """Flat names and numbers, sorted; in [0, 1] but for the counts."""
        figures: dict[str, float] = {
            "images": self.images,
            "objects": sum(self.objects),
            "detections": self.detections,
        }
        for name, values in self._voc_columns().items():
            figures[name.replace("voc_ap", "voc_map")] = float(np.nanmean(values))
        if self.coco:
            figures |= dict(zip(coco_names(self.coco), self.coco.stats().tolist(), strict=True))
        return existing(figures)

    def per_class(self) -> list[dict[str, float | str]]:
        """One row a class, in label order; what does not exist is left out."""
        columns: dict[str, Floats] = dict(self._voc_columns())
        if self.coco:
            for name, iou in (("ap", None), ("ap50", 0.5), ("ap75", 0.75)):
                columns[name] = np.concatenate([[np.nan], self.coco.per_class(iou)])
        rows = []
        for label, name in enumerate(self.classes):
            figures: dict[str, float] = {"objects": self.objects[label]}
            figures |= {column: float(values[label]) for column, values in columns.items()}
            if self.voc:
                figures |= _operation(self.voc, label)
            rows.append({"class": name} | existing(figures, order=False))
        return rows[1:]

    def _voc_columns(self) -> dict[str, Floats]:
        """VOC's averages that were asked for, (K + 1) each."""
        if self.rules.metrics == "coco" or self.voc is None:
            return {}
        at = "" if self.voc.rules.iou == 0.5 else f"_at_{100 * self.voc.rules.iou:g}"
        columns = {"11-point": self.voc.eleven_point, "area": self.voc.area}
        return {
            f"voc_ap_{kind.replace('-', '_')}{at}": values
            for kind, values in columns.items()
            if self.rules.voc_ap in (kind, "both")
        }

    def _voc_scores(self) -> VocScores:
        assert self.voc is not None, "neither VOC nor COCO was computed"
        return self.voc


def evaluate_detections(
    results: Results, dataset: Dataset | Truth, rules: Rules | None = None
) -> Scores:
    """Judge detections by VOC's and COCO's rules.

    Args:
        results: of ``columns.results_of`` or a reader, about the same truth.
        dataset: the data set, or its truth already in columns (then its difficult policy holds).
        rules: what to compute.

    Raises:
        DataError: no objects to be found, or no masks or keypoints where these are to be compared.
    """
    rules = rules or Rules()
    if rules.region != "boxes" and rules.metrics == "voc":
        raise SettingError(f"VOC's metric judges boxes; {rules.region} need COCO's")
    truth = dataset
    if isinstance(truth, Dataset):
        truth = truth_of(truth, count_difficult=rules.count_difficult)
    counts = [0] * len(truth.classes)
    for label in truth.labels[~truth.ignored].tolist():
        counts[label] += 1
    if not sum(counts):
        raise DataError(
            "every annotated object is difficult or a crowd, so none has to be found; count "
            "difficult objects or choose another split"
        )
    return Scores(
        rules=rules,
        classes=truth.classes,
        images=len(truth.image_ids),
        detections=len(results.scores),
        objects=tuple(counts),
        voc=evaluate_voc(truth, results, rules.voc) if rules.region == "boxes" else None,
        coco=_coco(truth, results, rules.region) if rules.metrics != "voc" else None,
        notes=(*results.notes, *_notes(truth, results, counts)),
    )


def proposal_metrics(coverage: Coverage, limits: Sequence[int] = AR_LIMITS) -> dict[str, float]:
    """Flat names and numbers of proposals: recall at .5 and .7, AR and MABO at each limit."""
    figures: dict[str, float] = {
        "objects": len(coverage.labels),
        "proposals_per_image": coverage.proposals,
    }
    for limit in limits:
        figures[f"ar_{limit}"] = coverage.average_recall(limit)
        figures[f"mabo_{limit}"] = coverage.mean_average_best_overlap(limit)
        for iou in (0.5, 0.7):
            figures[f"recall_{100 * iou:.0f}_{limit}"] = coverage.recall(iou, limit)
    # Feature Pyramid Networks, Table 1, gives AR by size at 1,000 proposals.
    for size in ("small", "medium", "large"):
        figures[f"ar_{size}_1000"] = coverage.average_recall(1000, AREAS[size])
    return existing(figures)


def coco_names(scores: CocoScores) -> tuple[str, ...]:
    """Names of ``CocoScores.stats``, in its order."""
    if "small" not in scores.rules.areas:
        kinds = ("", "50", "75", "_medium", "_large")
        return tuple(f"{metric}{kind}" for metric in ("ap", "ar") for kind in kinds)
    sizes = ("small", "medium", "large")
    precision = ("ap", "ap50", "ap75", *(f"ap_{size}" for size in sizes))
    recall = (*(f"ar_{cap}" for cap in scores.rules.caps), *(f"ar_{size}" for size in sizes))
    return precision + recall


def _coco(truth: Truth, results: Results, region: Region) -> CocoScores:
    if region == "masks":
        results = mask_results(truth, results)
        groups = group(truth, results, 100)
        overlaps = mask_overlaps(truth, results, groups)
        return evaluate_coco(truth, results, groups=groups, overlaps=overlaps)
    if region == "keypoints":
        truth = keypoint_truth(truth)
        groups = group(truth, results, max(KEYPOINT_RULES.caps))
        overlaps = keypoint_overlaps(truth, results, groups)
        return evaluate_coco(truth, results, KEYPOINT_RULES, groups=groups, overlaps=overlaps)
    return evaluate_coco(truth, results)


def _operation(voc: VocScores, label: int) -> dict[str, float]:
    """The operating point of the best F1, as columns."""
    figures: dict[str, float] = {
        "detections": voc.detections[label],
        "true_positives": voc.true[label],
    }
    best = voc.best[label]
    if best is not None:
        figures |= {
            "best_f1": best.f1,
            "best_f1_score": best.score,
            "best_f1_precision": best.precision,
            "best_f1_recall": best.recall,
        }
    return figures


def _notes(truth: Truth, results: Results, objects: Sequence[int]) -> list[str]:
    notes = []
    empty = [name for name, count in zip(truth.classes, objects, strict=True) if not count][1:]
    if empty:
        notes.append(f"no objects of {', '.join(empty)}: left out of every mean")
    crowds, ignored = int(truth.crowd.sum()), int(truth.ignored.sum())
    if ignored:
        notes.append(
            f"ignored, neither missed when not found nor false when found: {crowds} crowd and "
            f"{ignored - crowds} difficult objects"
        )
    if not len(results.scores):
        notes.append("there are no detections at all")
    return notes


def existing(figures: Mapping[str, float], order: bool = True) -> dict[str, float]:
    """Without what is not a number; sorted by name if so wanted."""
    kept = {name: value for name, value in figures.items() if not math.isnan(value)}
    return dict(sorted(kept.items())) if order else kept
