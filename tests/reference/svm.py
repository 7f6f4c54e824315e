"""The SVM and its mining in the plainest words: float64, loops, everything solved from scratch."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def objective(
    weights: Array,
    bias: float,
    rows: Array,
    signs: Array,
    cost: float = 1e-3,
    positive_weight: float = 2.0,
    bias_feature: float = 10.0,
) -> float:
    total = 0.5 * sum(float(w) ** 2 for w in weights) + 0.5 * (bias / bias_feature) ** 2
    for row, sign in zip(rows, signs, strict=True):
        weight = positive_weight if sign > 0 else 1.0
        total += cost * weight * max(0.0, 1.0 - sign * (float(row @ weights) + bias))
    return total


def minimise(
    rows: Array,
    signs: Array,
    cost: float = 1e-3,
    positive_weight: float = 2.0,
    bias_feature: float = 10.0,
) -> tuple[Array, float]:
    """Coordinate ascent in the dual over the matrix of all products, until nothing moves."""
    examples = np.hstack([rows.astype(np.float64), np.full((len(rows), 1), bias_feature)])
    signed = examples * np.asarray(signs, np.float64)[:, None]
    products = signed @ signed.T
    limits = np.where(np.asarray(signs) > 0, cost * positive_weight, cost)
    alphas = np.zeros(len(rows))
    for _ in range(200_000):
        moved = 0.0
        for i in range(len(rows)):
            best = alphas[i] - (products[i] @ alphas - 1.0) / products[i, i]
            best = min(max(best, 0.0), limits[i])
            moved = max(moved, abs(best - alphas[i]) * products[i, i])
            alphas[i] = best
        if moved < 1e-9:
            break
    both = alphas @ signed
    return both[:-1], float(both[-1]) * bias_feature


def mine(
    images: list[tuple[Array, Array]],
    positives: Array,
    label: int,
    *,
    hard: float = -1.0001,
    easy: float = -1.2,
    retrain_after: int = 2000,
    passes: int = 1,
) -> tuple[Array, float, list[tuple[int, int]], int]:
    """``rcnn_train.m`` for one class, image by image.

    Args:
        images: for each image, scaled features (r, D) and overlaps (r, K).
        positives: (P, D) scaled.
        label: column of the class in the overlaps.

    Returns:
        weights, bias, the (image, row) keys of the cached negatives at the last fit, fits.
    """
    keys: list[tuple[int, int]] = []
    weights, bias = np.zeros(positives.shape[1]), 0.0
    first_time, added, fits = True, 0, 0
    fitted: list[tuple[int, int]] = []
    for turn in range(passes):
        for image, (features, overlaps) in enumerate(images):
            for row in range(len(features)):
                if not overlaps[row, label] < 0.3:
                    continue
                is_hard = features[row] @ weights + bias > hard
                if (first_time or is_hard) and (image, row) not in keys:
                    keys.append((image, row))
                    added += 1
            last = turn == passes - 1 and image == len(images) - 1
            if (first_time or added > retrain_after or last) and keys:
                negatives = np.array([images[i][0][r] for i, r in keys])
                rows = np.concatenate([positives, negatives])
                signs = np.array([1] * len(positives) + [-1] * len(negatives))
                weights, bias = minimise(rows, signs)
                fits += 1
                added, fitted, first_time = 0, list(keys), False
                scores = negatives @ weights + bias
                keys = [key for key, score in zip(keys, scores, strict=True) if not score < easy]
    return weights, bias, fitted, fits
