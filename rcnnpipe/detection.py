"""From features of regions to detections: score, cap, refine, suppress.

The order is the authors' (Girshick et al. 2014, ``rcnn_test.m``): scores are never changed by the
regression, and nothing is suppressed before the caps.

Vocabulary: R regions, K classes, D length of features, C candidates (a region with one class).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torchvision
from torch import Tensor

from rcnnpipe import boxes as box_ops
from rcnnpipe.artifacts.columns import Imaged, rows_for_images
from rcnnpipe.artifacts.detections import COLUMNS, Detections
from rcnnpipe.ragged import offsets_of, rows_of

Array = np.ndarray[Any, Any]


class Scorer(Protocol):
    """Gives each region a score for each class."""

    @property
    def layer(self) -> str:
        """The layer whose features it takes."""

    def __call__(self, features: Tensor) -> Tensor:
        """Scores (R, K) float32 of features (R, D)."""


@dataclass(frozen=True)
class SvmScorer:
    """The margins of linear SVMs.

    Attributes:
        layer: whose features they take.
        weights: (K, D).
        bias: (K,); -inf for a class without an SVM.
        scale: features are multiplied by it first.
    """

    layer: str
    weights: Tensor
    bias: Tensor
    scale: float

    def __call__(self, features: Tensor) -> Tensor:
        """Scores (R, K) of features (R, D)."""
        return features.float() * self.scale @ self.weights.T + self.bias


@dataclass(frozen=True)
class SoftmaxScorer:
    """The probabilities of the network's own classifier (Girshick et al. 2014, appendix B)."""

    layer: str = "logits"

    def __call__(self, features: Tensor) -> Tensor:
        """Scores (R, K) of logits (R, K + 1), the background first."""
        return features.float().softmax(dim=1)[:, 1:]


class Refiner(Protocol):
    """Moves regions to where the objects of a class should be."""

    @property
    def layer(self) -> str:
        """The layer whose features it takes."""

    def __call__(self, features: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        """Better boxes (C, 4) for boxes (C, 4) with features (C, D) and labels (C,) in 1..K."""


@dataclass(frozen=True)
class DeltaRefiner:
    """Moves candidates by a detector's own deltas for their classes (Girshick 2015, section 2.3).

    Attributes:
        layer: whose values they are.
    """

    layer: str = "deltas"

    def __call__(self, features: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        """Better boxes (C, 4) by deltas (C, 4 (K + 1)), the background's first."""
        deltas = features.float().view(len(features), -1, 4)
        own = deltas[torch.arange(len(labels)), labels]
        return box_ops.decode(boxes, own, limit=box_ops.LOG_LIMIT)


@dataclass(frozen=True)
class Candidates:
    """C regions with a class, before suppression; by class, then falling score.

    Attributes:
        regions: (C,) int64, row of the region they come from.
        scores: (C,) float32.
        labels: (C,) int64 in 1..K.
    """

    regions: Tensor
    scores: Tensor
    labels: Tensor


def candidates_of(scores: Tensor, threshold: float = -np.inf, most: int = 100) -> Candidates:
    """The best regions of an image for each class.

    Args:
        scores: (R, K).
        threshold: scores must be above it.
        most: candidates for each class, 0 for no limit. ``rcnn_test.m`` keeps 100.
    """
    kept = min(most or len(scores), len(scores))
    ordered, regions = scores.sort(dim=0, descending=True, stable=True)
    ordered, regions = ordered[:kept].T, regions[:kept].T  # (K, kept)
    good = ordered > threshold
    labels = torch.arange(1, scores.shape[1] + 1, device=scores.device)[:, None].expand_as(good)
    return Candidates(regions[good], ordered[good], labels[good])


def suppress_candidates(found: Candidates, boxes: Tensor, overlap: float, most: int) -> Candidates:
    """Suppress, then cap: the order of SPP-net's ``spp_test.m``.

    Args:
        found: candidates without a cap.
        boxes: (R, 4) of all regions, unrefined.
        overlap: as in :func:`suppress`.
        most: candidates for each class, 0 for no limit.
    """
    own = boxes.cpu()[found.regions.cpu()]
    labels = found.labels.cpu().numpy()
    kept = np.sort(suppress(own.numpy(), found.scores.cpu().numpy(), labels, overlap))
    # By class, then falling score: a row's place in its class is its distance from the class's end.
    first_of_class = np.searchsorted(labels[kept], labels[kept])
    if most:
        kept = kept[np.arange(len(kept)) - first_of_class < most]
    rows = torch.from_numpy(kept).to(found.regions.device)
    return Candidates(found.regions[rows], found.scores[rows], found.labels[rows])


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


def detect_regions(
    features: dict[str, Tensor],
    boxes: Tensor,
    size: tuple[int, int],
    scorer: Scorer,
    refiner: Refiner | None,
    threshold: float,
    most: int,
    suppress_first: float = 1.0,
    smallest: tuple[float, float] | None = None,
) -> dict[str, Array]:
    """Candidates of one image: scored, capped, and refined.

    Args:
        features: layer -> (R, D), at least the layers of the scorer and the refiner.
        boxes: (R, 4).
        size: (height, width) of the image.
        scorer: makes the scores.
        refiner: moves the boxes, or None.
        threshold, most: as in :func:`candidates_of`.
        suppress_first: below 1, candidates are suppressed at this overlap before they are capped.
        smallest: candidates with a shorter side, across or down, once they are cut at the image
            fall away; None keeps a pixel of each.

    Returns:
        columns of a detections file: boxes (C, 4) within the image, scores (C,), labels (C,).
    """
    scores = scorer(features[scorer.layer])
    if suppress_first < 1:
        found = candidates_of(scores, threshold, 0)
        found = suppress_candidates(found, boxes, suppress_first, most)
    else:
        found = candidates_of(scores, threshold, most)
    moved = boxes.to(found.regions.device)[found.regions]
    if refiner is not None and len(moved):
        moved = refiner(features[refiner.layer][found.regions], moved, found.labels)
    if smallest is None:
        moved = box_ops.clip(moved, size)
    else:
        moved, left = box_ops.cut(moved, size, smallest)
        moved = moved[left]
        found = Candidates(found.regions[left], found.scores[left], found.labels[left])
    return {
        "boxes": moved.cpu().numpy(),
        "scores": found.scores.cpu().numpy(),
        "labels": found.labels.cpu().numpy(),
    }


def gather_candidates(
    paths: Sequence[Path], stored: Sequence[Detections], wanted: Imaged
) -> tuple[dict[str, Array], Array]:
    """The candidates of some images out of one file or several, file after file in each image.

    He et al. 2014, section 4.4: two models are combined by scoring with both, then suppressing over
    the union of their boxes.

    Args:
        paths: of the files.
        stored: their candidates.
        wanted: N images.

    Returns:
        columns (C, ...) and offsets (N + 1,).

    Raises:
        ArtifactError: a file lacks an image, or has another of the same id.
    """
    numbers = [
        rows_for_images(path, one, wanted, "candidates")
        for path, one in zip(paths, stored, strict=True)
    ]
    rows = [
        [rows_of(one.offsets, place[image]) for one, place in zip(stored, numbers, strict=True)]
        for image in range(len(wanted.image_ids))
    ]
    counts = [sum(part.stop - part.start for part in parts) for parts in rows]

    def column(name: str) -> Array:
        of_files = [getattr(one, name) for one in stored]
        parts = [of[part] for places in rows for of, part in zip(of_files, places, strict=True)]
        return np.concatenate((of_files[0][:0], *parts))

    return {name: column(name) for name in COLUMNS}, offsets_of(counts)


def select(
    candidates: dict[str, Array],
    offsets: Array,
    classes: int,
    most_per_set: int,
    overlap: float,
    most: int = 0,
) -> tuple[dict[str, Array], list[int]]:
    """Cap the candidates of a whole set, then suppress in each image.

    Args:
        candidates: boxes (C, 4), scores (C,), labels (C,) of all images.
        offsets: (N + 1,).
        classes: K.
        most_per_set: candidates for each class and image on average, 0 for no limit.
        overlap: of the suppression.
        most: detections of an image over all classes, 0 for no limit.

    Returns:
        the columns that remain, each image's by falling score, and how many rows each image keeps.
    """
    images = len(offsets) - 1
    scores, labels = candidates["scores"], candidates["labels"]
    thresholds = class_thresholds(scores, labels, classes, most_per_set * images)
    good = scores >= thresholds[labels]
    kept, counts = [], []
    for image in range(images):
        rows = np.arange(offsets[image], offsets[image + 1])
        rows = rows[good[rows]]
        boxes = candidates["boxes"][rows]
        rows = rows[suppress(boxes, scores[rows], labels[rows], overlap)]
        rows = rows[:most] if most else rows
        kept.append(rows)
        counts.append(len(rows))
    remaining = np.concatenate(kept) if kept else np.empty(0, np.int64)
    return {name: column[remaining] for name, column in candidates.items()}, counts
