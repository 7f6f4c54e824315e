"""From features of regions to candidates: score, cap, refine; :mod:`rcnnpipe.suppression` follows.

The order is the authors' (Girshick et al. 2014, ``rcnn_test.m``): scores are never changed by the
regression, and nothing is suppressed before the caps.

Vocabulary: R regions, K classes, D length of features, C candidates (a region with one class).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from rcnnpipe import boxes as box_ops
from rcnnpipe.artifacts.columns import Imaged, rows_for_images
from rcnnpipe.artifacts.detections import COLUMNS, Detections
from rcnnpipe.ragged import offsets_of, rows_of
from rcnnpipe.suppression import suppress

Array = np.ndarray[Any, Any]

# Beside the layers of regions (R, D): which of them (R,) were seen in the mirrored image, so that
# they move there. Their boxes are on the image as it is.
MIRRORED = "mirrored"


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
        overlap: as in :func:`rcnnpipe.suppression.suppress`.
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
        features: layer -> (R, D), at least the layers of the scorer and the refiner; and
            :data:`MIRRORED` where some are of the mirrored image.
        boxes: (R, 4) on the image as it is.
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
        turned = features[MIRRORED][found.regions] if MIRRORED in features else None
        moved = _as_seen(moved, turned, size[1])
        moved = refiner(features[refiner.layer][found.regions], moved, found.labels)
        moved = _as_seen(moved, turned, size[1])
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


def _as_seen(boxes: Tensor, turned: Tensor | None, width: int) -> Tensor:
    """Boxes (C, 4) with those mirrored that were ``turned`` (C,); its own inverse."""
    if turned is None:
        return boxes
    other = torch.from_numpy(box_ops.mirror(boxes.cpu().numpy(), width)).to(boxes.device)
    return other.where(turned[:, None], boxes)


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
