"""Dual coordinate descent for linear SVMs with hinge loss, compiled.

Hsieh et al. 2008, "A dual coordinate descent method for large-scale linear SVM": one alpha at a
time, in random order, is set to its best value while the weights ``sum_i alpha_i sign_i x_i``
follow; an example whose alpha is held at a limit by a clear margin is left out ("shrinking") until
the others are done.
"""

import numpy as np
from numba import njit

from rcnnpipe.linear.rows import dot, number, square


@njit(cache=True, nogil=True)
def descend(  # type: ignore[no-untyped-def]
    rows, places, signs, limits, scale, bias_feature, alphas, weights, last, order, seed, tolerance
):
    """Improve alphas and weights in place until no alpha can gain more than tolerance.

    Args:
        rows: (S, D) float32, or uint16, the bits of float16.
        places: (n,) where each example's row is.
        signs: (n,) float64, +1 or -1.
        limits: (n,) float64, largest alphas.
        scale: factor of the rows.
        bias_feature: value of the feature that all examples share.
        alphas: (n,) float64.
        weights: (D,) float32, those of the alphas, for scaled rows.
        last: weight of the bias feature, that of the alphas.
        order: (m,) the examples to look at; others keep their alphas. It is shuffled.
        seed: of the order of visits.
        tolerance: largest difference between two projected gradients at the end.

    Returns:
        Epochs done.
    """
    squares = np.zeros(len(places), np.float64)
    active = len(order)
    highest_before, lowest_before = np.inf, -np.inf
    state = np.uint64(2 * seed + 1)
    epochs = 0
    while epochs < 10_000:
        epochs += 1
        highest, lowest = -np.inf, np.inf
        for place in range(active):
            # A linear congruential generator (Knuth's constants); its high bits are the good ones.
            state = state * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
            other = place + np.int64((state >> np.uint64(33)) % np.uint64(active - place))
            order[place], order[other] = order[other], order[place]
        place = 0
        while place < active:
            i = order[place]
            row = rows[places[i]]
            score = scale * np.float64(dot(row, weights)) + last * bias_feature
            gradient = signs[i] * score - 1.0
            projected = gradient
            shrink = False
            if alphas[i] <= 0.0:
                shrink = gradient > highest_before
                projected = min(gradient, 0.0)
            elif alphas[i] >= limits[i]:
                shrink = gradient < lowest_before
                projected = max(gradient, 0.0)
            if shrink:
                active -= 1
                order[place], order[active] = order[active], order[place]
                continue
            highest, lowest = max(highest, projected), min(lowest, projected)
            if squares[i] == 0.0:  # now, since the row has just been read
                squares[i] = scale * scale * square(row) + bias_feature * bias_feature
            before = alphas[i]
            alphas[i] = min(max(before - gradient / squares[i], 0.0), limits[i])
            step = (alphas[i] - before) * signs[i]
            if step != 0.0:
                small = np.float32(step * scale)
                for d in range(len(weights)):
                    weights[d] += small * number(row[d])
                last += step * bias_feature
            place += 1
        if highest - lowest <= tolerance:
            if active == len(order):
                break
            # All that is left is good: look at everything again before believing it.
            active = len(order)
            highest_before, lowest_before = np.inf, -np.inf
            continue
        highest_before = highest if highest > 0.0 else np.inf
        lowest_before = lowest if lowest < 0.0 else -np.inf
    return epochs
