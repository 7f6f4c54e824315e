"""Felzenszwalb and Huttenlocher's graph-based segmentation (IJCV 2004) of colour planes.

C planes, H height, W width, P = H * W pixels, S segments. Edges between every pixel and its eight
neighbours weigh the Euclidean distance of their smoothed colours. They are visited from light to
heavy; one joins its two segments a and b where it weighs at most
min(inside(a) + k / |a|, inside(b) + k / |b|), inside() being the heaviest edge inside a segment.

Sorting is what costs, so weights are held in steps of 1/64 grey level: then a counting sort is
exact, and one sorted list of edges serves every k.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

STEPS_PER_LEVEL = 64
_BATCH = 256  # edges looked up together
_WEIGHTS = 28_300  # more than 64 * 255 * sqrt(3), the heaviest edge there can be


@dataclass(frozen=True)
class Segmentation:
    """S segments of an image, numbered by their first pixel in reading order.

    Attributes:
        labels: (H, W) int32 in 0..S-1.
        sizes: (S,) int32 pixels.
        boxes: (S, 4) int32 x1 y1 x2 y2, x2 and y2 one past the last pixel.
        neighbours: (E, 2) int32 pairs a < b of segments that share a pixel side, each pair once.
    """

    labels: npt.NDArray[np.int32]
    sizes: npt.NDArray[np.int32]
    boxes: npt.NDArray[np.int32]
    neighbours: npt.NDArray[np.int32]


@njit(cache=True, nogil=True)
def _edge_row(
    planes: Any, y: int, dy: int, left: int, dx: int, count: int, scale: Any, out: Any
) -> None:
    """Weights of `count` edges from (left + x, y) to (left + x + dx, y + dy)."""
    channels = planes.shape[0]
    squared = np.zeros(count, np.float32)
    for c in range(channels):
        here = planes[c, y, left : left + count]
        there = planes[c, y + dy, left + dx : left + dx + count]
        for x in range(count):
            difference = here[x] - there[x]
            squared[x] += difference * difference
    for x in range(count):
        out[x] = np.uint16(np.sqrt(squared[x]) * scale + np.float32(0.5))


@njit(cache=True, nogil=True)
def _edge_weights(planes: Any, scale: Any) -> Any:
    """(4, H, W) weights of the edges to the right, below left, below and below right."""
    _, height, width = planes.shape
    weights = np.zeros((4, height, width), np.uint16)
    for y in range(height):
        _edge_row(planes, y, 0, 0, 1, width - 1, scale, weights[0, y])
        if y + 1 < height:
            _edge_row(planes, y, 1, 1, -1, width - 1, scale, weights[1, y, 1:])
            _edge_row(planes, y, 1, 0, 0, width, scale, weights[2, y])
            _edge_row(planes, y, 1, 0, 1, width - 1, scale, weights[3, y])
    return weights


@njit(cache=True, nogil=True)
def _sorted_edges(planes: Any, scale: Any) -> Any:
    """Edges (4 * pixel + direction) from light to heavy and their weights.

    Equal weights are in order of row, direction, column.
    """
    _, height, width = planes.shape
    weights = _edge_weights(planes, scale)
    begins = (0, 1, 0, 0)
    ends = (width - 1, width, width, width - 1)
    first = np.zeros(_WEIGHTS + 1, np.int64)
    for y in range(height):
        for d in range(4 if y + 1 < height else 1):
            for weight in weights[d, y, begins[d] : ends[d]]:
                first[weight + np.uint32(1)] += 1
    for w in range(_WEIGHTS):
        first[w + 1] += first[w]
    cursor = first[:_WEIGHTS].copy()
    edges = np.empty(first[_WEIGHTS], np.uint32)
    for y in range(height):
        for d in range(4 if y + 1 < height else 1):
            edge = np.uint32(4 * (y * width + begins[d]) + d)
            for weight in weights[d, y, begins[d] : ends[d]]:
                edges[cursor[weight]] = edge
                cursor[weight] += 1
                edge = np.uint32(edge + 4)
    sorted_weights = np.empty(edges.shape[0], np.float32)
    for w in range(_WEIGHTS):
        sorted_weights[first[w] : first[w + 1]] = np.float32(w) / np.float32(STEPS_PER_LEVEL)
    return edges, sorted_weights


@njit(cache=True, nogil=True)
def _root(parents: Any, pixel: Any) -> Any:
    """The pixel that stands for the segment a pixel belongs to."""
    up = parents[pixel]
    while up != pixel:
        pixel, up = up, parents[up]
    return pixel


@njit(cache=True, nogil=True)
def _possible(edges: Any, begin: int, steps: Any, parents: Any, pairs: Any, positions: Any) -> Any:
    """Writes the ends of a batch of edges, two steps up their trees, where these are not the same.

    Without a branch on what is joined already, which no processor could predict.
    """
    count: Any = 0
    for i in range(begin, min(begin + _BATCH, edges.shape[0])):
        pixel = np.uint32(edges[i] >> np.uint32(2))
        other = np.uint32(pixel + steps[edges[i] & np.uint32(3)])
        a, b = parents[parents[pixel]], parents[parents[other]]
        parents[pixel], parents[other] = a, b
        pairs[count, 0], pairs[count, 1], positions[count] = a, b, i
        count += np.int64(a != b)
    return count


@njit(cache=True, nogil=True)
def _join(edges: Any, weights: Any, height: int, width: int, k: float, min_size: int) -> Any:
    """(P,) parents, a forest with one tree for each segment."""
    pixels = height * width
    parents = np.arange(pixels).astype(np.uint32)
    sizes = np.ones(pixels, np.int32)
    limits = np.full(pixels, k, np.float32)  # inside(a) + k / |a|
    steps = np.array([1, width - 1, width, width + 1]).astype(np.uint32)
    pairs = np.empty((_BATCH, 2), np.uint32)
    positions = np.empty(_BATCH, np.int64)
    small = np.empty((edges.shape[0], 2), np.uint32)  # not joined, and one of them below min_size
    count = 0
    for begin in range(0, edges.shape[0], _BATCH):
        for i in range(_possible(edges, begin, steps, parents, pairs, positions)):
            weight = weights[positions[i]]
            a, b = _root(parents, pairs[i, 0]), _root(parents, pairs[i, 1])
            parents[pairs[i, 0]], parents[pairs[i, 1]] = a, b
            if a == b:
                continue
            size_a, size_b = sizes[a], sizes[b]
            if weight <= min(limits[a], limits[b]):
                if size_a < size_b:
                    a, b = b, a
                parents[b] = a
                sizes[a] = size_a + size_b
                limits[a] = weight + np.float32(k) / np.float32(size_a + size_b)
            elif min(size_a, size_b) < min_size:
                small[count, 0], small[count, 1] = a, b
                count += 1
    for i in range(count):
        a, b = _root(parents, small[i, 0]), _root(parents, small[i, 1])
        if a != b and min(sizes[a], sizes[b]) < min_size:
            if sizes[a] < sizes[b]:
                a, b = b, a
            parents[b] = a
            sizes[a] += sizes[b]
    return parents


@njit(cache=True, nogil=True)
def _describe(parents: Any, height: int, width: int) -> Any:
    """Labels, sizes and boxes of a forest's segments."""
    numbers = np.full(height * width, -1, np.int32)
    labels = np.empty((height, width), np.int32)
    count = 0
    for y in range(height):
        for x in range(width):
            root = _root(parents, np.uint32(y * width + x))
            if numbers[root] < 0:
                numbers[root] = count
                count += 1
            labels[y, x] = numbers[root]
    sizes = np.zeros(count, np.int32)
    boxes = np.empty((count, 4), np.int32)
    boxes[:, 0], boxes[:, 1], boxes[:, 2], boxes[:, 3] = width, height, 0, 0
    for y in range(height):
        for x in range(width):
            box = boxes[labels[y, x]]
            sizes[labels[y, x]] += 1
            box[0] = min(box[0], x)
            box[1] = min(box[1], y)
            box[2] = max(box[2], x + 1)
            box[3] = y + 1
    return labels, sizes, boxes


@njit(cache=True, nogil=True)
def _neighbours(labels: Any, count: int) -> Any:
    """(E, 2) pairs a < b of labels that share a pixel side, by a, each pair once."""
    height, width = labels.shape
    touching = 0
    first = np.zeros(count + 1, np.int64)
    for fill in range(2):  # first count the pairs of each a, then write their b
        cursor = first.copy()
        others = np.empty(touching, np.int32)
        for y in range(height):
            for x in range(width):
                here = labels[y, x]
                for down in range(2):
                    if (x + 1 < width) if down == 0 else (y + 1 < height):
                        there = labels[y + down, x + 1 - down]
                        if here != there:
                            a = min(here, there)
                            if fill:
                                others[cursor[a]] = max(here, there)
                                cursor[a] += 1
                            else:
                                first[a + 1] += 1
                                touching += 1
        if not fill:
            for a in range(count):
                first[a + 1] += first[a]
    pairs = np.empty((touching, 2), np.int32)
    seen_with = np.full(count, -1, np.int32)
    found = 0
    for a in range(count):
        for i in range(first[a], first[a + 1]):
            if seen_with[others[i]] != a:
                seen_with[others[i]] = a
                pairs[found, 0], pairs[found, 1] = a, others[i]
                found += 1
    return pairs[:found].copy()


@dataclass(frozen=True)
class Edges:
    """The sorted edges of one smoothed image, to be joined with any k."""

    size: tuple[int, int]
    codes: npt.NDArray[np.uint32]
    weights: npt.NDArray[np.float32]


def sorted_edges(smoothed: npt.NDArray[np.float32]) -> Edges:
    """Edges of smoothed planes (C, H, W), C 1 or 3, lightest first.

    A single plane counts three times, as an image of three equal channels would.
    """
    channels, height, width = smoothed.shape
    scale = np.float32(STEPS_PER_LEVEL * np.sqrt(3 / channels))
    return Edges((height, width), *_sorted_edges(smoothed, scale))


def segment(edges: Edges, k: float, min_size: int) -> Segmentation:
    """Joins pixels into segments: a larger k prefers larger ones; none is below min_size pixels.

    (Only an image of fewer pixels than min_size gives a smaller segment: the whole image.)
    """
    height, width = edges.size
    parents = _join(edges.codes, edges.weights, height, width, k, min_size)
    labels, sizes, boxes = _describe(parents, height, width)
    return Segmentation(labels, sizes, boxes, _neighbours(labels, len(sizes)))
