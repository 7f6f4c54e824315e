"""Which object a region stands for: by overlap with the ground truth.

Vocabulary: R regions, G objects, K classes. Labels: 0 background, 1..K the classes, -1 ignore.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rcnnpipe import boxes as box_ops

# A region that lies by more than this share of its own area inside an object to ignore (a crowd) is
# neither that object nor background.
IGNORED_SHARE = 0.5


@dataclass(frozen=True)
class Matches:
    """How R regions of one image relate to its objects.

    Attributes:
        overlaps: (R, K) float32, largest IoU with an object of each class; column k - 1 is class k.
        overlap: (R,) float32, largest IoU with any object.
        truth: (R,) int64, that object's number in the ground truth, -1 where none is touched.
        labels: (R,) int64, that object's class; 0 where none is touched, -1 in an ignored region.
    """

    overlaps: npt.NDArray[np.float32]
    overlap: npt.NDArray[np.float32]
    truth: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]


def match(
    regions: np.ndarray[Any, Any],
    truth_boxes: np.ndarray[Any, Any],
    truth_labels: npt.NDArray[np.int64],
    classes: int,
) -> Matches:
    """Match regions (R, 4) to objects: boxes (G, 4), labels (G,) in 1..K, or -1 to ignore.

    Ties go to the object that comes first. Which overlap makes a region foreground is the caller's
    matter: the papers' rules differ between fine-tuning, SVM and regression (Girshick et al. 2014,
    appendix B).
    """
    counted = np.flatnonzero(truth_labels > 0)
    ious = _ious(regions, truth_boxes[counted])  # (R, counted)
    overlaps = np.zeros((len(regions), classes), np.float32)
    for column, number in enumerate(counted):
        label = truth_labels[number] - 1
        np.maximum(overlaps[:, label], ious[:, column], out=overlaps[:, label])
    if len(counted) == 0:
        overlap = np.zeros(len(regions), np.float32)
        truth = np.full(len(regions), -1, np.int64)
        labels = np.zeros(len(regions), np.int64)
    else:
        best = ious.argmax(axis=1)
        overlap = ious[np.arange(len(regions)), best]
        touched = overlap > 0
        truth = np.where(touched, counted[best], -1)
        labels = np.where(touched, truth_labels[counted[best]], 0)
    ignored = _shares(regions, truth_boxes[truth_labels < 0]) > IGNORED_SHARE
    # What covers a counted object better than half is that object, crowd or not.
    labels[ignored & (overlap < 0.5)] = -1
    return Matches(overlaps, overlap, truth, labels)


def _ious(first: np.ndarray[Any, Any], second: np.ndarray[Any, Any]) -> npt.NDArray[np.float32]:
    ious: npt.NDArray[np.float32] = box_ops.iou(_tensor(first), _tensor(second)).numpy()
    return ious


def _tensor(boxes: np.ndarray[Any, Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(boxes, np.float32).reshape(-1, 4))


def _shares(regions: np.ndarray[Any, Any], others: np.ndarray[Any, Any]) -> npt.NDArray[np.float32]:
    shares: npt.NDArray[np.float32] = box_ops.share_inside(
        _tensor(regions), _tensor(others)
    ).numpy()
    return shares
