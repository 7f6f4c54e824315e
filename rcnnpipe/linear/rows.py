"""Compiled arithmetic on stored features.

The rows stay where they are and as they are: the bits of float16 become float32 inside the loops,
which reads half the bytes and needs no copy of a class's examples. All run on the calling thread
alone and let others run meanwhile, so their results do not depend on the number of threads.

Vocabulary: S stored rows of D features, n of them chosen by their places in 0..S - 1, K classes.
"""

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

Array = np.ndarray[Any, Any]
# Adding in another order, and fused, is what lets the sums use SIMD.
_SUMS = {"reassoc", "contract", "nsz"}


# Not to be added up in another order: the factor below times itself is beyond float32.
@njit(cache=True, nogil=True, fastmath=False, forceinline=True)
def _from_half(stored):  # type: ignore[no-untyped-def]
    # The five exponent bits of a half in the place of float32's eight mean 2^112 less; the product
    # puts that right, for subnormal numbers too. (For infinity and NaN see finite_rows.)
    bits = np.uint32(stored)
    sign = (bits & np.uint32(0x8000)) << np.uint32(16)
    shifted = np.uint32(sign | ((bits & np.uint32(0x7FFF)) << np.uint32(13)))
    return shifted.view(np.float32) * np.float32(2.0**112)


def number(stored: Any) -> Any:
    """A stored value as float32; uint16 are the bits of float16."""
    return np.float32(stored.view(np.float16) if stored.dtype == np.uint16 else stored)


@overload(number, inline="always")
def _number_compiled(stored):  # type: ignore[no-untyped-def]
    if stored == types.uint16:
        return lambda stored: _from_half(stored)
    return lambda stored: stored


def _is_finite(stored: Any) -> bool:
    """Whether a stored value is neither infinite nor NaN."""
    return bool(np.isfinite(number(stored)))


@overload(_is_finite, inline="always")
def _is_finite_compiled(stored):  # type: ignore[no-untyped-def]
    if stored == types.uint16:
        return lambda stored: (stored & np.uint16(0x7C00)) != np.uint16(0x7C00)
    return lambda stored: np.isfinite(stored)


@njit(cache=True, nogil=True)
def finite_rows(rows):  # type: ignore[no-untyped-def]
    """For each row (S,), whether all its values are finite numbers."""
    found = np.ones(len(rows), np.bool_)
    for i in range(len(rows)):
        row = rows[i]
        odd = 0
        for d in range(len(row)):
            odd += not _is_finite(row[d])
        found[i] = odd == 0
    return found


@njit(cache=True, nogil=True, fastmath=_SUMS)
def dot(row, weights):  # type: ignore[no-untyped-def]
    """Product of one row (D,) with weights (D,) float32."""
    total = np.float32(0.0)
    for d in range(len(weights)):
        total += number(row[d]) * weights[d]
    return total


@njit(cache=True, nogil=True, fastmath=_SUMS)
def square(row):  # type: ignore[no-untyped-def]
    """Squared norm of one row (D,)."""
    total = np.float32(0.0)
    for d in range(len(row)):
        total += number(row[d]) * number(row[d])
    return total


@njit(cache=True, nogil=True)
def products_of(rows, places, weights):  # type: ignore[no-untyped-def]
    """``rows[places] @ weights`` (n,) in float64, each summed in float32."""
    values = np.empty(len(places), np.float64)
    for i in range(len(places)):
        values[i] = dot(rows[places[i]], weights)
    return values


@njit(cache=True, nogil=True)
def weights_from(rows, places, signed):  # type: ignore[no-untyped-def]
    """``signed @ rows[places]`` (D,), summed in float64; zeros in signed (n,) cost nothing."""
    total = np.zeros(rows.shape[1], np.float64)
    for i in range(len(places)):
        if signed[i] != 0.0:
            row = rows[places[i]]
            for d in range(len(row)):
                total[d] += signed[i] * number(row[d])
    return total


@njit(cache=True, nogil=True, fastmath=_SUMS)
def _four_dots(rows, weights, totals):  # type: ignore[no-untyped-def]
    """Products of four float32 rows with the same weights, which are thus loaded once."""
    first = second = third = fourth = np.float32(0.0)
    row0, row1, row2, row3 = rows[0], rows[1], rows[2], rows[3]
    for d in range(len(weights)):
        first += row0[d] * weights[d]
        second += row1[d] * weights[d]
        third += row2[d] * weights[d]
        fourth += row3[d] * weights[d]
    totals[0], totals[1], totals[2], totals[3] = first, second, third, fourth


@njit(cache=True, nogil=True)
def linear_scores(rows, weights, biases):  # type: ignore[no-untyped-def]
    """Scores ``rows @ weights.T + biases`` (S, K) float32, of weights (K, D) and biases (K,).

    As fast as a conversion and one thread's matrix product, without their copy of the rows.
    """
    scores = np.empty((len(rows), len(weights)), np.float32)
    four = np.zeros((4, rows.shape[1]), np.float32)
    totals = np.empty(4, np.float32)
    for start in range(0, len(rows), 4):
        count = min(4, len(rows) - start)
        for i in range(count):
            for d in range(rows.shape[1]):
                four[i, d] = number(rows[start + i, d])
        for k in range(len(weights)):
            _four_dots(four, weights[k], totals)
            for i in range(count):
                scores[start + i, k] = totals[i] + biases[k]
    return scores


def stored(rows: Array) -> Array:
    """Rows as the functions above take them: the bits of float16, or float32."""
    if rows.dtype == np.float16:
        return np.ascontiguousarray(rows).view(np.uint16)
    return np.ascontiguousarray(rows, np.float32)
