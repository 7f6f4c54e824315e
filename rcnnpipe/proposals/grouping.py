"""Hierarchical grouping: the most similar neighbouring regions are merged until one is left.

S segments, M = S - 1 merges, D histogram columns. Uijlings et al. 2013, section 3.2. Similarity is
a sum of some of

- colour and texture: intersection of histograms that sum to 1,
- size: 1 - (|a| + |b|) / |image|, so that small regions merge early,
- fill: 1 - (|box around a and b| - |a| - |b|) / |image|, so that gaps are filled first.

A merged region has the summed counts of its two parts: the size-weighted average of their
histograms. Ties go to the pair whose newer region is oldest, then to the oldest partner.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from rcnnpipe.proposals.histograms import COLOUR_BINS, DIRECTIONS, TEXTURE_COLUMNS

# Histograms are compared as whole numbers, each group of bins summing to this: sums of whole
# numbers come out the same in any order, hence on any processor.
_UNIT = 65535


@dataclass(frozen=True)
class Similarity:
    """Which measures a hierarchy adds up."""

    colour: bool
    texture: bool
    size: bool
    fill: bool


@njit(cache=True, nogil=True)
def _share(counts: Any, size: int, out: Any) -> None:
    scale = np.float32(_UNIT) / np.float32(size)
    for i in range(counts.shape[0]):
        out[i] = np.uint16(np.float32(counts[i]) * scale + np.float32(0.5))


@njit(cache=True, nogil=True)
def _add(counts: Any, others: Any) -> None:
    for i in range(counts.shape[0]):
        counts[i] += others[i]


@njit(cache=True, nogil=True)
def _intersection(a: Any, b: Any) -> Any:
    # Over whole rows from 0: only then does the compiler know that no index is negative, and uses
    # vector instructions.
    total = np.int32(0)
    for i in range(a.shape[0]):
        total = np.int32(total + np.int32(min(a[i], b[i])))
    return total


@njit(cache=True, nogil=True)
def _similarity(
    a: int, b: int, rows: Any, shares: Any, split: int, sizes: Any, boxes: Any, use: Any, area: int
) -> Any:
    colour, texture, size, fill = use
    total = 0.0
    if colour:
        common = _intersection(shares[rows[a], :split], shares[rows[b], :split])
        total += common / (_UNIT * (split // COLOUR_BINS))
    if texture:
        common = _intersection(shares[rows[a], split:], shares[rows[b], split:])
        total += common / (_UNIT * (split // COLOUR_BINS) * DIRECTIONS)
    both = sizes[a] + sizes[b]
    if size:
        total += 1.0 - both / area
    if fill:
        width = max(boxes[a, 2], boxes[b, 2]) - min(boxes[a, 0], boxes[b, 0])
        height = max(boxes[a, 3], boxes[b, 3]) - min(boxes[a, 1], boxes[b, 1])
        total += 1.0 - (width * height - both) / area
    return total


@njit(cache=True, nogil=True)
def _push(values: Any, owners: Any, count: int, value: float, owner: int) -> int:
    """Adds to a heap whose top has the greatest value, ties to the smallest owner."""
    i = count
    while i > 0:
        up = (i - 1) >> 1
        if values[up] > value or (values[up] == value and owners[up] < owner):
            break
        values[i], owners[i] = values[up], owners[up]
        i = up
    values[i], owners[i] = value, owner
    return count + 1


@njit(cache=True, nogil=True)
def _pop(values: Any, owners: Any, count: int) -> int:
    """Drops the heap's top."""
    count -= 1
    value, owner = values[count], owners[count]
    i = 0
    while True:
        down = 2 * i + 1
        if down >= count:
            break
        if down + 1 < count and (
            values[down + 1] > values[down]
            or (values[down + 1] == values[down] and owners[down + 1] < owners[down])
        ):
            down += 1
        if value > values[down] or (value == values[down] and owner < owners[down]):
            break
        values[i], owners[i] = values[down], owners[down]
        i = down
    values[i], owners[i] = value, owner
    return count


@njit(cache=True, nogil=True)
def _best(partners: Any, similarities: Any, begin: int, end: int, alive: Any) -> Any:
    """The position of an owner's most similar partner still alive, or -1."""
    best = -1
    for i in range(begin, end):
        if alive[partners[i]] and (
            best < 0
            or similarities[i] > similarities[best]
            or (similarities[i] == similarities[best] and partners[i] < partners[best])
        ):
            best = i
    return best


@njit(cache=True, nogil=True)
def _current(into: Any, region: Any) -> Any:
    """The living region that a region has become part of."""
    while into[region] != region:
        into[region] = into[into[region]]
        region = into[region]
    return region


@njit(cache=True, nogil=True)
def _link(neighbours: Any, regions: int) -> Any:
    """Linked lists of neighbours: joining two regions' lists end to end is one assignment."""
    target = np.empty(2 * neighbours.shape[0], np.int32)
    following = np.full(2 * neighbours.shape[0], -1, np.int32)
    head = np.full(regions, -1, np.int32)
    tail = np.full(regions, -1, np.int32)
    for e in range(neighbours.shape[0]):
        for side in range(2):
            region, link = neighbours[e, side], 2 * e + side
            target[link] = neighbours[e, 1 - side]
            if head[region] < 0:
                head[region] = link
            else:
                following[tail[region]] = link
            tail[region] = link
    return target, following, head, tail


@njit(cache=True, nogil=True)
def _around(region: int, links: Any, into: Any, seen_by: Any, around: Any) -> Any:
    """Writes a region's living neighbours into `around`; repeated ones leave its list."""
    target, following, head, tail = links
    count = 0
    link, before = head[region], np.int32(-1)
    while link >= 0:
        other = _current(into, target[link])
        if other == region or seen_by[other] == region:
            if before < 0:
                head[region] = following[link]
            else:
                following[before] = following[link]
        else:
            seen_by[other] = region
            around[count] = target[link] = other
            count += 1
            before = link
        link = following[link]
    tail[region] = before
    return count


@njit(cache=True, nogil=True)
def _next_pair(
    heap: Any, values: Any, owners: Any, owned: Any, partners: Any, similarities: Any, alive: Any
) -> Any:
    """Takes the most similar living pair off the heap: owner, partner, entries left."""
    while True:
        owner = owners[0]
        best = np.int64(-1)
        if alive[owner]:
            best = _best(partners, similarities, owned[owner, 0], owned[owner, 1], alive)
        found = best >= 0 and similarities[best] == values[0]
        heap = _pop(values, owners, heap)
        if found:
            return owner, partners[best], heap
        if best >= 0:  # its best partner of before is gone: offer the next
            heap = _push(values, owners, heap, similarities[best], owner)


@njit(cache=True, nogil=True)
def _group(
    counts: Any, start_sizes: Any, start_boxes: Any, neighbours: Any, use: Any, area: int
) -> Any:
    """(M, 4) boxes in the order of merging.

    Every pair of neighbours is owned by its newer region. An owner's partners are fixed when it is
    made, so a heap with one entry for each owner, its best partner, is enough: when that partner is
    gone the owner's list is read again.
    """
    start = start_sizes.shape[0]
    regions = 2 * start - 1
    sizes = np.empty(regions, np.int64)
    boxes = np.empty((regions, 4), np.int64)
    sizes[:start] = start_sizes
    boxes[:start] = start_boxes
    alive = np.ones(regions, np.bool_)
    into = np.arange(regions).astype(np.int32)
    rows = np.arange(regions).astype(
        np.int32
    )  # of histograms; a merged region takes over its owner's
    histograms = use[0] or use[1]
    split = counts.shape[1] // (COLOUR_BINS + TEXTURE_COLUMNS) * COLOUR_BINS  # colour, then texture
    begin = 0 if use[0] else split
    shares = np.empty(counts.shape, np.uint16)
    if histograms:
        counts = counts.copy()
        for s in range(start):
            _share(counts[s, begin:], sizes[s], shares[s, begin:])
    links = _link(neighbours, regions)
    _, following, head, tail = links
    seen_by = np.full(regions, -1, np.int32)
    around = np.empty(start, np.int32)

    partners = np.empty(8 * neighbours.shape[0] + start, np.int32)
    similarities = np.empty(partners.shape[0], np.float64)
    owned = np.zeros((regions, 2), np.int64)  # each owner's range of partners
    filled = 0
    values = np.empty(regions, np.float64)
    owners = np.empty(regions, np.int32)
    heap = 0

    for region in range(regions):  # the first `start` are the segments, every other is a merge
        if region >= start:
            a, b, heap = _next_pair(heap, values, owners, owned, partners, similarities, alive)
            alive[a] = alive[b] = False
            into[a] = into[b] = region
            sizes[region] = sizes[a] + sizes[b]
            boxes[region, :2] = np.minimum(boxes[a, :2], boxes[b, :2])
            boxes[region, 2:] = np.maximum(boxes[a, 2:], boxes[b, 2:])
            following[tail[a]] = head[b]
            head[region], tail[region] = head[a], tail[b]
            rows[region] = rows[a]
            if histograms:
                row = rows[a]
                _add(counts[row, begin:], counts[rows[b], begin:])
                _share(counts[row, begin:], sizes[region], shares[row, begin:])
        count = _around(region, links, into, seen_by, around)
        if filled + count > partners.shape[0]:
            partners = np.concatenate((partners, np.empty_like(partners)))
            similarities = np.concatenate((similarities, np.empty_like(similarities)))
        owned[region, 0] = filled
        for partner in around[:count]:
            if partner < region:
                partners[filled] = partner
                similarities[filled] = _similarity(
                    region, partner, rows, shares, split, sizes, boxes, use, area
                )
                filled += 1
        owned[region, 1] = filled
        best = _best(partners, similarities, owned[region, 0], filled, alive)
        if best >= 0:
            heap = _push(values, owners, heap, similarities[best], region)
    return boxes[start:]


def group(
    counts: npt.NDArray[np.int32],
    sizes: npt.NDArray[np.int32],
    boxes: npt.NDArray[np.int32],
    neighbours: npt.NDArray[np.int32],
    similarity: Similarity,
    area: int,
) -> npt.NDArray[np.int64]:
    """(M, 4) boxes of the merged regions in the order they were made; the last is the whole image.

    Args:
        counts: (S, D) histogram counts, see `histograms.count`; not read for size and fill alone.
        sizes: (S,) pixels.
        boxes: (S, 4) x1 y1 x2 y2, x2 and y2 one past the last pixel.
        neighbours: (E, 2) pairs of segments, each once; every segment must be reachable.
        similarity: the measures to add up.
        area: pixels of the image.
    """
    use = (similarity.colour, similarity.texture, similarity.size, similarity.fill)
    merged: npt.NDArray[np.int64] = _group(counts, sizes, boxes, neighbours, use, area)
    return merged
