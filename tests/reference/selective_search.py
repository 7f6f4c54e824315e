"""Selective search as the papers say it, in plain Python: slow, for tiny images.

Segmentation by Felzenszwalb and Huttenlocher (IJCV 2004), grouping by Uijlings et al. (IJCV 2013).
Weights are held in 1/64 and histograms in 1/65535, as the fast version does on purpose.
"""

from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt

from rcnnpipe.proposals.grouping import Similarity


def edges(smoothed: npt.NDArray[np.float32]) -> list[tuple[float, int, int, int, int, int]]:
    """(weight, y, direction, x, pixel, other pixel) of every edge, sorted."""
    channels, height, width = smoothed.shape
    found = []
    for y in range(height):
        for x in range(width):
            for direction, (dy, dx) in enumerate([(0, 1), (1, -1), (1, 0), (1, 1)]):
                if y + dy < height and 0 <= x + dx < width:
                    squared = np.float32(0)
                    for c in range(channels):
                        difference = smoothed[c, y, x] - smoothed[c, y + dy, x + dx]
                        squared += difference * difference
                    scale = np.float32(64 * np.sqrt(3 / channels))
                    weight = int(np.sqrt(squared) * scale + np.float32(0.5)) / 64
                    other = (y + dy) * width + x + dx
                    found.append((weight, y, direction, x, y * width + x, other))
    return sorted(found)


def segment(smoothed: npt.NDArray[np.float32], k: float, min_size: int) -> npt.NDArray[np.int32]:
    """(H, W) labels, numbered by their first pixel."""
    _, height, width = smoothed.shape
    segment_of = list(range(height * width))
    pixels = {pixel: [pixel] for pixel in segment_of}
    inside = dict.fromkeys(segment_of, 0.0)

    def join(a: int, b: int, weight: float) -> None:
        for pixel in pixels[b]:
            segment_of[pixel] = a
        pixels[a] += pixels.pop(b)
        inside[a] = weight

    ordered = edges(smoothed)
    for weight, _, _, _, pixel, other in ordered:
        a, b = segment_of[pixel], segment_of[other]
        if a != b and all(
            weight <= np.float32(np.float32(inside[s]) + np.float32(k) / np.float32(len(pixels[s])))
            for s in (a, b)
        ):
            join(a, b, weight)
    for weight, _, _, _, pixel, other in ordered:
        a, b = segment_of[pixel], segment_of[other]
        if a != b and min(len(pixels[a]), len(pixels[b])) < min_size:
            join(a, b, weight)
    numbers: dict[int, int] = {}
    labels = [numbers.setdefault(s, len(numbers)) for s in segment_of]
    return np.array(labels, np.int32).reshape(height, width)


def neighbours(labels: npt.NDArray[np.int32]) -> set[tuple[int, int]]:
    """Pairs a < b of labels with a pixel side in common."""
    found = set()
    height, width = labels.shape
    for y in range(height):
        for x in range(width):
            for dy, dx in ((0, 1), (1, 0)):
                if y + dy < height and x + dx < width and labels[y, x] != labels[y + dy, x + dx]:
                    pair = sorted((int(labels[y, x]), int(labels[y + dy, x + dx])))
                    found.add((pair[0], pair[1]))
    return found


def histograms(
    planes: npt.NDArray[np.uint8], smoothed: npt.NDArray[np.float32], labels: npt.NDArray[np.int32]
) -> npt.NDArray[np.int32]:
    """(S, 105 C) colour and texture counts of every label."""
    channels, height, width = planes.shape
    counts = np.zeros((labels.max() + 1, 105 * channels), np.int32)
    for y in range(height):
        for x in range(width):
            row = counts[labels[y, x]]
            for c in range(channels):
                row[25 * c + int(planes[c, y, x]) * 25 // 256] += 1
                plane = smoothed[c]
                right = plane[y, min(x + 1, width - 1)] - plane[y, max(x - 1, 0)]
                down = plane[min(y + 1, height - 1), x] - plane[max(y - 1, 0), x]
                # Bins are laid out 0, 180, 45, 225, 90, 270, 135, 315 degrees.
                for direction, degrees in enumerate([0, 180, 45, 225, 90, 270, 135, 315]):
                    along = np.cos(np.radians(degrees)) * right + np.sin(np.radians(degrees)) * down
                    rise = max(0.0, float(along) / 2)
                    level = min(9, int(rise / 255 / 0.43 * 9 + 0.5))
                    row[25 * channels + 80 * c + 10 * direction + level] += 1
    return counts


def group(
    counts: npt.NDArray[np.int32],
    labels: npt.NDArray[np.int32],
    similarity: Similarity,
) -> list[tuple[int, int, int, int]]:
    """Boxes of the merged regions, in the order of merging."""
    channels = counts.shape[1] // 105
    area = labels.size
    regions: dict[int, dict[str, Any]] = {}
    for s in range(labels.max() + 1):
        rows, columns = np.nonzero(labels == s)
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        regions[s] = {"size": len(rows), "counts": counts[s].copy(), "box": tuple(map(int, box))}
    around: dict[int, set[int]] = defaultdict(set)
    for a, b in neighbours(labels):
        around[a].add(b)
        around[b].add(a)

    def union(a: int, b: int) -> tuple[int, int, int, int]:
        first, second = regions[a]["box"], regions[b]["box"]
        low = (min(first[0], second[0]), min(first[1], second[1]))
        return (*low, max(first[2], second[2]), max(first[3], second[3]))

    def similar(a: int, b: int) -> float:
        shares = []
        for region in (regions[a], regions[b]):
            scale = np.float32(65535) / np.float32(region["size"])
            share = region["counts"].astype(np.float32) * scale + np.float32(0.5)
            shares.append(share.astype(np.uint16).astype(np.int64))
        common = np.minimum(*shares)
        both = regions[a]["size"] + regions[b]["size"]
        x1, y1, x2, y2 = union(a, b)
        total = 0.0
        if similarity.colour:
            total += int(common[: 25 * channels].sum()) / (65535 * channels)
        if similarity.texture:
            total += int(common[25 * channels :].sum()) / (65535 * channels * 8)
        if similarity.size:
            total += 1.0 - both / area
        if similarity.fill:
            total += 1.0 - ((x2 - x1) * (y2 - y1) - both) / area
        return total

    merged = []
    while len(regions) > 1:
        pairs = [(max(a, b), min(a, b)) for a in regions for b in around[a]]
        a, b = min(pairs, key=lambda pair: (-similar(*pair), *pair))
        new = 2 * int(labels.max() + 1) - len(regions)
        region = {
            "size": regions[a]["size"] + regions[b]["size"],
            "counts": regions[a]["counts"] + regions[b]["counts"],
            "box": union(a, b),
        }
        others = (around.pop(a) | around.pop(b)) - {a, b}
        del regions[a], regions[b]
        regions[new], around[new] = region, others
        for other in others:
            around[other] = (around[other] - {a, b}) | {new}
        merged.append(region["box"])
    return merged
