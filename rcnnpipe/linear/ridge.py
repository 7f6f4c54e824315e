"""Bounding-box regression: for each class, ridge regression from features to better boxes.

Girshick et al. 2014, appendix C, and the authors' ``rcnn_train_bbox_regressor.m``, which also
whitens the targets (the paper does not say so).

Vocabulary: n examples of a class, D features, K classes, C candidates (a region with one class).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg import cho_factor, cho_solve
from scipy.linalg.blas import dsyrk
from torch import Tensor

from rcnnpipe import boxes as box_ops
from rcnnpipe.artifacts.bbox_reg import BboxReg

Array = np.ndarray[Any, Any]
Doubles = npt.NDArray[np.float64]

_BLOCK = 2048  # rows that are float64 at once


@dataclass(frozen=True)
class Whitening:
    """Targets y (n, 4) become ``(y - mean) @ transform``, whose covariance is about the identity.

    Attributes:
        mean: (4,).
        transform: (4, 4), symmetric.
    """

    mean: Doubles
    transform: Doubles

    def apply(self, targets: Array) -> Doubles:
        """Whitened targets (n, 4)."""
        return (targets - self.mean) @ self.transform  # type: ignore[no-any-return]

    def invert(self, whitened: Array) -> Doubles:
        """Targets (n, 4) again."""
        return whitened @ np.linalg.inv(self.transform) + self.mean  # type: ignore[no-any-return]


NO_WHITENING = Whitening(np.zeros(4), np.eye(4))


def whitening_of(targets: Array, extra: float = 1e-3) -> Whitening:
    """The authors' whitening of targets (n, 4), n >= 1: ``T = V diag(1 / sqrt(D + 0.001)) V'``.

    V and D are eigenvectors and eigenvalues of the biased covariance (divided by n).

    Args:
        targets: of one class.
        extra: added to the eigenvalues.
    """
    mean = targets.mean(axis=0, dtype=np.float64)
    centred = targets - mean
    values, vectors = np.linalg.eigh(centred.T @ centred / len(targets))
    transform = vectors @ np.diag(1 / np.sqrt(values + extra)) @ vectors.T
    return Whitening(mean, transform)


def ridge(
    rows: Array, targets: Array, penalty: float = 1000.0, scale: float = 1.0
) -> tuple[Doubles, Doubles]:
    """Weights (D, t) and biases (t,) that minimise ``|X w + b - y|^2 + penalty (|w|^2 + b^2)``.

    The bias is the weight of a constant feature 1 and is penalised like the others, as by the
    authors. With fewer examples than features the same minimum is found from the n x n matrix of
    products, otherwise from the D x D one; in float64, by Cholesky. Memory: 8 min(n, D + 1)^2 bytes
    (0.68 GB for 9216 features) and, when n is the smaller, 8 n D.

    Args:
        rows: (n, D) float16 or float32, n >= 1.
        targets: (n, t).
        penalty: lambda, above 0.
        scale: factor of the rows.
    """
    count, width = rows.shape
    if count <= width:
        examples = _with_constant(rows, scale)
        products = examples @ examples.T
        products[np.diag_indices(count)] += penalty
        solved = cho_solve(cho_factor(products, lower=True, overwrite_a=True), targets)
        both = examples.T @ solved
    else:
        products = np.zeros((width + 1, width + 1), order="F")
        right = np.zeros((width + 1, targets.shape[1]))
        for start in range(0, count, _BLOCK):
            examples = _with_constant(rows[start : start + _BLOCK], scale)
            products = dsyrk(1.0, examples.T, beta=1.0, c=products, lower=1, overwrite_c=1)
            right += examples.T @ targets[start : start + _BLOCK]
        products[np.diag_indices(width + 1)] += penalty
        both = cho_solve(cho_factor(products, lower=True, overwrite_a=True), right)
    return both[:-1], both[-1]


def _with_constant(rows: Array, scale: float) -> Doubles:
    """Rows (n, D + 1) in float64: scaled features, then 1."""
    examples = np.ones((len(rows), rows.shape[1] + 1))
    examples[:, :-1] = rows
    examples[:, :-1] *= scale
    return examples


@dataclass(frozen=True)
class Regressor:
    """The regression of one class.

    Attributes:
        weights: (D, 4) float32, for scaled features; zeros without examples.
        bias: (4,) float32.
        whitening: of its targets.
        examples: n.
        overlap_before, overlap_after: mean IoU of the examples with their objects, as they were and
            moved by this regression; NaN without examples.
    """

    weights: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    whitening: Whitening
    examples: int
    overlap_before: float = float("nan")
    overlap_after: float = float("nan")


def train_regressor(
    rows: Array,
    regions: Array,
    objects: Array,
    *,
    scale: float,
    penalty: float = 1000.0,
    whiten: bool = True,
    pixel: float = 1.0,
) -> Regressor:
    """Fit the regression of one class.

    Args:
        rows: (n, D) features of the examples, unscaled.
        regions: (n, 4) their boxes.
        objects: (n, 4) the boxes they should become.
        scale: factor of the features.
        penalty: lambda (1000 in the paper).
        whiten: whether to whiten the targets, as the authors do and the paper does not say.
        pixel: 1 measures widths as the authors do, see ``boxes.encode``.
    """
    if len(rows) == 0:
        weights, bias = np.zeros((rows.shape[1], 4), np.float32), np.zeros(4, np.float32)
        return Regressor(weights, bias, NO_WHITENING, 0)
    before, goal = (torch.from_numpy(np.asarray(b, np.float64)) for b in (regions, objects))
    targets = box_ops.encode(before, goal, pixel).numpy()
    whitening = whitening_of(targets) if whiten else NO_WHITENING
    solved, constant = ridge(rows, whitening.apply(targets), penalty, scale)
    weights, bias = solved.astype(np.float32), constant.astype(np.float32)
    predicted = np.concatenate(
        [
            rows[start : start + _BLOCK].astype(np.float32) * np.float32(scale) @ weights
            for start in range(0, len(rows), _BLOCK)
        ]
    )
    deltas = torch.from_numpy(whitening.invert(predicted + bias))
    after = box_ops.decode(before, deltas, pixel)
    return Regressor(
        *(weights, bias, whitening, len(rows)),
        overlap_before=float(paired_overlaps(before, goal).mean()),
        overlap_after=float(paired_overlaps(after, goal).mean()),
    )


def paired_overlaps(first: Tensor, second: Tensor) -> Tensor:
    """IoU (n,) of boxes (n, 4) with boxes (n, 4), row by row."""
    low = torch.maximum(first[:, :2], second[:, :2])
    high = torch.minimum(first[:, 2:], second[:, 2:])
    shared = (high - low).clamp(min=0).prod(dim=1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(dim=1) for boxes in (first, second)]
    return shared / (areas[0] + areas[1] - shared)


class BoxRefiner:
    """Moves candidates by the regressions of their classes.

    Attributes:
        layer: whose features it takes.
    """

    def __init__(self, regression: BboxReg, device: torch.device) -> None:
        """Put the weights on a device.

        Args:
            regression: as read from its file.
            device: where features and boxes will be.
        """
        weights, offsets = regression.folded()
        self.layer = regression.layer
        self._weights = torch.from_numpy(weights).to(device)  # (K, D, 4)
        self._offsets = torch.from_numpy(offsets).to(device)  # (K, 4)
        self._pixel = regression.pixel

    def __call__(self, features: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        """Better boxes (C, 4), not clipped, for boxes (C, 4), features (C, D), labels in 1..K."""
        deltas = torch.empty(boxes.shape, dtype=torch.float32, device=boxes.device)
        for label in sorted(set(labels.tolist())):
            own = labels == label
            deltas[own] = features[own].float() @ self._weights[label - 1]
        return box_ops.decode(boxes, deltas + self._offsets[labels - 1], self._pixel)
