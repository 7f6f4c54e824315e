"""Spatial pyramid pooling by loops in whole numbers over windows, levels, bins and channels."""

from collections.abc import Sequence

from torch import Tensor


def bin_of_window(cells: int, bins: int, number: int) -> range:
    """The cells of bin ``number``: floor(i w / n) up to, not including, ceil((i + 1) w / n)."""
    return range(number * cells // bins, ((number + 1) * cells + bins - 1) // bins)


def bin_in_training(cells: int, bins: int, number: int) -> range:
    """The same where windows of ceil(a / n) stand at every floor(a / n) cells."""
    start = number * (cells // bins)
    return range(start, start + (cells + bins - 1) // bins)


def pool(maps: Tensor, window: Sequence[int], levels: Sequence[int]) -> list[float]:
    """The pyramid of one window x1 y1 x2 y2, inclusive, of a map (C, H, W), as D numbers."""
    x1, y1, x2, y2 = window
    values = maps[:, y1 : y2 + 1, x1 : x2 + 1].tolist()
    pooled = []
    for level in levels:
        for channel in values:
            for y in range(level):
                for x in range(level):
                    largest = 0.0
                    for row in bin_of_window(y2 - y1 + 1, level, y):
                        for column in bin_of_window(x2 - x1 + 1, level, x):
                            largest = max(largest, channel[row][column])
                    pooled.append(largest)
    return pooled
