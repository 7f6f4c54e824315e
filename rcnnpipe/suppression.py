"""Which of many overlapping detections stay: caps over a whole set, then suppression.

Greedy suppression removes what overlaps something better (Girshick et al. 2014, ``nms.m``); soft
suppression lowers its score instead (Bodla et al. 2017, Soft-NMS, section 3).

Vocabulary: N images, K classes, C candidates (a region with one class).
"""

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
import torchvision

from rcnnpipe.errors import SettingError
from rcnnpipe.systems.rcnn import NMS_OVERLAP
from rcnnpipe.systems.soft_nms import FLOOR, GAUSSIAN, GREEDY, SIGMA

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Suppression:
    """What becomes of a box that overlaps a better one.

    Attributes:
        overlap: greedy: it goes where their IoU is above this; linear: its score falls there.
        kind: "greedy"; "linear": its score is multiplied by 1 - IoU; "gaussian": by
            exp(-IoU^2 / sigma), whatever the IoU.
        sigma: of "gaussian".
        floor: of soft suppression: what scores less goes.
        class_agnostic: boxes of all classes are rivals, not just those of one.
    """

    overlap: float = NMS_OVERLAP
    kind: str = GREEDY
    sigma: float = SIGMA
    floor: float = FLOOR
    class_agnostic: bool = False

    def __call__(
        self, boxes: Array, scores: Array, labels: Array
    ) -> tuple[npt.NDArray[np.int64], Array]:
        """The rows that remain (k,) of boxes (C, 4), and their scores (k,), which fall.

        Raises:
            SettingError: soft suppression of scores below 0, which are no probabilities.
        """
        rivals = np.zeros_like(labels) if self.class_agnostic else labels
        if self.kind == GREEDY:
            rows = suppress(boxes, scores, rivals, self.overlap)
            return rows, scores[rows]
        sigma = self.sigma if self.kind == GAUSSIAN else 0.0
        return soften(boxes, scores, rivals, self.overlap, sigma, self.floor)


def suppress(
    boxes: Array, scores: Array, labels: Array, overlap: float = 0.3
) -> npt.NDArray[np.int64]:
    """Greedy suppression within each class; what remains (k,), by falling score.

    A box goes when its IoU with a better one of its class is above ``overlap``; exactly that much
    survives (``nms.m``; 0.3 in the paper). 1 and above suppresses nothing.
    """
    all_boxes, all_scores = torch.from_numpy(boxes), torch.from_numpy(scores)
    kept = []
    for label in np.unique(labels):
        own = torch.from_numpy(np.flatnonzero(labels == label))
        if overlap < 1:
            own = own[torchvision.ops.nms(all_boxes[own], all_scores[own], overlap)]
        kept.append(own)
    if not kept:
        return np.empty(0, np.int64)
    rows = torch.cat(kept)
    order = all_scores[rows].sort(descending=True, stable=True).indices
    remaining: npt.NDArray[np.int64] = rows[order].numpy()
    return remaining


def soften(
    boxes: Array, scores: Array, labels: Array, overlap: float, sigma: float, floor: float
) -> tuple[npt.NDArray[np.int64], Array]:
    """Soft suppression within each class: Bodla et al. 2017, figure 2.

    The best box is taken, the scores of all others fall by their overlap with it, and so on with
    the best of those that are left.

    Args:
        boxes: (C, 4).
        scores: (C,) probabilities.
        labels: (C,).
        overlap: what is above it falls; without a meaning where there is a sigma.
        sigma: above 0, falls by the Gaussian of this width; 0, by 1 - IoU.
        floor: what falls below it goes.

    Returns:
        rows (k,) that remain, and their new scores (k,), falling.

    Raises:
        SettingError: scores are below 0.
    """
    if (scores < 0).any():
        raise SettingError(
            "soft suppression lowers probabilities, and some scores are below 0 as an SVM's margins"
            " are; take --suppression greedy"
        )
    rows, lowered = [np.empty(0, np.int64)], [np.empty(0)]
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        exact = (boxes[own].astype(np.float64), scores[own].astype(np.float64))
        kept, left = _soften(*exact, overlap, sigma, floor)
        rows.append(own[kept])
        lowered.append(left)
    all_rows, all_scores = np.concatenate(rows), np.concatenate(lowered).astype(scores.dtype)
    order = np.argsort(-all_scores, kind="stable")
    return all_rows[order], all_scores[order]


@numba.njit(cache=True, nogil=True)
def _soften(
    boxes: Array, scores: Array, overlap: float, sigma: float, floor: float
) -> tuple[Array, Array]:
    """Rows and scores of one class in the order in which they are taken; changes ``scores``."""
    waiting = np.arange(len(boxes))
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    taken = np.empty(len(boxes), np.int64)
    count, left = 0, len(boxes)
    while left:
        place = np.argmax(scores[waiting[:left]])
        best = waiting[place]
        if scores[best] < floor:
            break  # nothing that is left reaches it
        taken[count] = best
        count += 1
        stay = 0
        for other in waiting[:left]:
            if other == best:
                continue
            width = min(boxes[best, 2], boxes[other, 2]) - max(boxes[best, 0], boxes[other, 0])
            height = min(boxes[best, 3], boxes[other, 3]) - max(boxes[best, 1], boxes[other, 1])
            if width > 0 and height > 0:
                iou = width * height / (areas[best] + areas[other] - width * height)
                if sigma > 0:
                    scores[other] *= np.exp(-(iou**2) / sigma)
                elif iou > overlap:
                    scores[other] *= 1 - iou
            if scores[other] >= floor:
                waiting[stay] = other
                stay += 1
        left = stay
    return taken[:count], scores[taken[:count]]


def class_thresholds(
    scores: Array, labels: Array, classes: int, most: int
) -> npt.NDArray[np.float32]:
    """For each label (K + 1,), the score below which the whole set keeps nothing.

    ``rcnn_test.m`` holds on to the best 40 scores per class and image on average, whichever images
    they come from; the lowest of them becomes the threshold.

    Args:
        scores: (C,) of all images.
        labels: (C,).
        classes: K.
        most: scores for each class over the whole set, 0 for no limit.
    """
    thresholds = np.full(classes + 1, -np.inf, np.float32)
    for label in range(1, classes + 1) if most else ():
        own = scores[labels == label]
        if len(own) > most:
            thresholds[label] = np.partition(own, len(own) - most)[len(own) - most]
    return thresholds


def select(
    candidates: dict[str, Array],
    offsets: Array,
    classes: int,
    most_per_set: int,
    suppression: Suppression,
    most: int = 0,
) -> tuple[dict[str, Array], list[int]]:
    """Cap the candidates of a whole set, then suppress in each image.

    Args:
        candidates: boxes (C, 4), scores (C,), labels (C,) of all images.
        offsets: (N + 1,).
        classes: K.
        most_per_set: candidates for each class and image on average, 0 for no limit.
        suppression: which of those that overlap stay.
        most: detections of an image over all classes, 0 for no limit.

    Returns:
        the columns that remain, each image's by falling score, and how many rows each image keeps.
    """
    images = len(offsets) - 1
    boxes, scores, labels = (candidates[name] for name in ("boxes", "scores", "labels"))
    thresholds = class_thresholds(scores, labels, classes, most_per_set * images)
    good = scores >= thresholds[labels]
    kept, lowered = [np.empty(0, np.int64)], [scores[:0]]
    for image in range(images):
        rows = np.arange(offsets[image], offsets[image + 1])
        rows = rows[good[rows]]
        stay, own_scores = suppression(boxes[rows], scores[rows], labels[rows])
        kept.append(rows[stay][: most or None])
        lowered.append(own_scores[: most or None])
    remaining = np.concatenate(kept)
    columns = {name: column[remaining] for name, column in candidates.items()}
    return columns | {"scores": np.concatenate(lowered)}, [len(rows) for rows in kept[1:]]
