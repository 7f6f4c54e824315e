"""What each detection of an image turned out to be, and which objects were missed.

Found or not is VOC's rule (devkit VOCevaldet.m): by falling score, the object of its class that a
detection overlaps most decides, be it taken or not. The rest is told apart by a simple rule.
G objects, D detections.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from rcnnpipe import boxes as box_ops
from rcnnpipe.artifacts.detections import Detections
from rcnnpipe.datasets.records import Dataset, Record
from rcnnpipe.evaluation.columns import results_of, truth_of
from rcnnpipe.evaluation.voc import evaluate_voc
from rcnnpipe.ragged import image_of_rows

Kind = Literal["found", "ignored", "duplicate", "localisation", "confusion", "background"]
_NEAR = 0.1  # of its own class, but too little to count: a matter of place (as TIDE has it)


@dataclass(frozen=True)
class Judged:
    """The detections of one image, judged.

    Attributes:
        kinds: (D) found; ignored (on a difficult object or a crowd); or why it is false: duplicate
            of an object already found, localisation (IoU of .1 to .5 with its class), confusion
            with an object of another class, background.
        overlap: (D,) float64 IoU with the object that decided, 0 for background.
        missed: indices of objects that no detection found; difficult ones and crowds are none.
    """

    kinds: tuple[Kind, ...]
    overlap: npt.NDArray[np.float64]
    missed: tuple[int, ...]


def judge(
    record: Record,
    boxes: npt.NDArray[np.floating],
    labels: npt.NDArray[np.int64],
    iou: float = 0.5,
) -> Judged:
    """Judge the detections of an image: boxes (D, 4), labels (D,), in order of falling score."""
    overlaps = _overlaps(record, boxes)  # (D, G), of a crowd the share of the detection in it
    taken = np.zeros(len(record.labels), np.bool_)
    kinds: list[Kind] = []
    deciding = np.zeros(len(labels))
    for number, label in enumerate(labels):
        row = overlaps[number]
        same = record.labels == label
        nearest = _best(row, same & ~record.crowd)
        crowd = _best(row, same & record.crowd)
        other = _best(row, ~same & ~record.crowd)
        if nearest >= 0 and row[nearest] >= iou:
            decided = nearest
            if record.difficult[nearest]:
                kinds.append("ignored")
            else:
                kinds.append("duplicate" if taken[nearest] else "found")
                taken[nearest] = True
        elif crowd >= 0 and row[crowd] >= iou:
            decided = crowd
            kinds.append("ignored")
        elif nearest >= 0 and row[nearest] >= _NEAR:
            decided = nearest
            kinds.append("localisation")
        elif other >= 0 and row[other] >= iou:
            decided = other
            kinds.append("confusion")
        else:
            decided = -1
            kinds.append("background")
        deciding[number] = row[decided] if decided >= 0 else 0
    missed = np.flatnonzero(~taken & ~record.difficult & ~record.crowd)
    return Judged(tuple(kinds), deciding, tuple(missed.tolist()))


def best_thresholds(dataset: Dataset, detections: Detections) -> dict[int, float]:
    """For each label the score of the best F1 at IoU .5, over the images of the detections.

    A class of which nothing is found has no such score; it gets the median of the others', or, if
    there are none, +inf: nothing of it is worth showing.

    Raises:
        DataError: the data set has no annotated objects.
    """
    numbers = {image_id: number for number, image_id in enumerate(detections.image_ids)}
    records = tuple(record for record in dataset.records if record.image_id in numbers)
    truth = truth_of(replace(dataset, records=records))
    places = {image_id: place for place, image_id in enumerate(truth.image_ids)}
    order = np.array([places.get(image_id, -1) for image_id in detections.image_ids], np.int64)
    images = order[image_of_rows(detections.offsets)]
    known = images >= 0
    results = results_of(
        truth,
        images[known],
        detections.labels[known],
        detections.scores[known],
        detections.boxes[known],
    )
    best = evaluate_voc(truth, results).best
    found = {label: point.score for label, point in enumerate(best) if point is not None}
    fallback = float(np.median(list(found.values()))) if found else float("inf")
    return {label: found.get(label, fallback) for label in range(1, len(dataset.classes))}


def _best(row: npt.NDArray[np.float64], allowed: npt.NDArray[np.bool_]) -> int:
    """Index of the largest overlap among allowed objects, -1 without any."""
    if not allowed.any():
        return -1
    return int(np.where(allowed, row, -1.0).argmax())


def _overlaps(record: Record, boxes: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    mine = torch.from_numpy(np.asarray(boxes, np.float64).reshape(-1, 4))
    theirs = torch.from_numpy(record.boxes.reshape(-1, 4))
    overlaps: npt.NDArray[np.float64] = box_ops.iou(mine, theirs).numpy()
    for number in np.flatnonzero(record.crowd):
        # IoU = i / (a + b - i), so the intersection i = IoU (a + b) / (1 + IoU).
        area = float((theirs[number, 2:] - theirs[number, :2]).prod())
        areas = (mine[:, 2:] - mine[:, :2]).prod(dim=1).numpy()
        inside = overlaps[:, number] * (areas + area) / (1 + overlaps[:, number])
        overlaps[:, number] = inside / np.maximum(areas, 1e-9)
    return overlaps
