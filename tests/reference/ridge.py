"""Ridge regression and the authors' whitening, by their definitions."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def ridge(rows: Array, targets: Array, penalty: float) -> tuple[Array, Array]:
    """The normal equations of examples with a constant 1 appended, all of it penalised."""
    examples = np.hstack([np.asarray(rows, np.float64), np.ones((len(rows), 1))])
    left = examples.T @ examples + penalty * np.eye(examples.shape[1])
    both = np.linalg.solve(left, examples.T @ targets)
    return both[:-1], both[-1]


def inverse_square_root(matrix: Array) -> Array:
    """The symmetric matrix whose square is the inverse, by Newton's iteration (Denman, Beavers)."""
    root, inverse = matrix, np.eye(len(matrix))
    for _ in range(100):
        root, inverse = (
            0.5 * (root + np.linalg.inv(inverse)),
            0.5 * (inverse + np.linalg.inv(root)),
        )
    return inverse


def targets(region: Array, goal: Array) -> list[float]:
    """tx ty tw th of one pair of boxes, 1-based inclusive corners, the authors' widths."""
    pw, ph = region[2] - region[0], region[3] - region[1]
    gw, gh = goal[2] - goal[0], goal[3] - goal[1]
    px, py = region[0] + 0.5 * pw, region[1] + 0.5 * ph
    gx, gy = goal[0] + 0.5 * gw, goal[1] + 0.5 * gh
    return [(gx - px) / pw, (gy - py) / ph, float(np.log(gw / pw)), float(np.log(gh / ph))]
