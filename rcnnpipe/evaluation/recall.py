"""How well proposals cover the objects: recall, average recall (AR), mean average best overlap.

Two rules, both of an image's first n proposals: recall gives each object its own proposal (greedy,
one to one; py-faster-rcnn imdb.py ``evaluate_recall``), best overlap (ABO and its mean MABO) lets
one serve several (Uijlings et al. 2013, section 5). R proposals, G objects, L limits on the number
of proposals.
"""

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from rcnnpipe.evaluation.columns import Floats, Truth
from rcnnpipe.evaluation.matching import box_overlap
from rcnnpipe.ragged import Offsets

# Hosang et al. 2015 draw recall against the number of boxes on a logarithmic axis to this end.
LIMITS = (1, 2, 5, 10, 20, 50, 100, 200, 300, 500, 1000, 2000)
AR_LIMITS = (100, 300, 1000, 2000)
IOU_AXIS = np.linspace(0.5, 1.0, 51)
AR_THRESHOLDS = np.linspace(0.5, 0.95, 10)


@dataclass(frozen=True)
class Coverage:
    """How well each counted object is covered by the first n proposals of its image.

    Attributes:
        limits: (L) numbers of proposals.
        own: (L, G) overlap with the proposal that the greedy rule gives the object, 0 without one.
        best: (L, G) overlap with the best proposal, whoever else it serves.
        labels, areas: (G,) of the objects.
        classes: (K + 1) names.
        proposals: mean number of proposals an image, unlimited.
    """

    limits: tuple[int, ...]
    own: Floats
    best: Floats
    labels: npt.NDArray[np.int64]
    areas: Floats
    classes: tuple[str, ...]
    proposals: float

    def recall(self, iou: float, limit: int) -> float:
        """Share of the objects covered by at least ``iou``."""
        return float((self.own[self.limits.index(limit)] >= iou).mean())

    def average_recall(self, limit: int, area: tuple[float, float] | None = None) -> float:
        """Mean recall at .50:.05:.95, of objects of a size (inclusive); NaN without any."""
        own = self.own[self.limits.index(limit)]
        if area is not None:
            own = own[(self.areas >= area[0]) & (self.areas <= area[1])]
        if not len(own):
            return float("nan")
        return float((own >= AR_THRESHOLDS[:, None]).mean())

    def recall_by_iou(self, limit: int) -> Floats:
        """Recall at each threshold of ``IOU_AXIS``."""
        curve: Floats = (self.own[self.limits.index(limit)] >= IOU_AXIS[:, None]).mean(axis=1)
        return curve

    def average_best_overlap(self, limit: int) -> Floats:
        """ABO of each label (K + 1,), NaN for a class without objects."""
        counts = np.bincount(self.labels, minlength=len(self.classes))
        best = self.best[self.limits.index(limit)]
        sums = np.bincount(self.labels, weights=best, minlength=len(self.classes))
        overlap: Floats = np.full(len(counts), np.nan)
        np.divide(sums, counts, out=overlap, where=counts > 0)
        return overlap

    def mean_average_best_overlap(self, limit: int) -> float:
        """MABO: the mean of ABO over classes that have objects."""
        return float(np.nanmean(self.average_best_overlap(limit)))


def evaluate_proposals(
    truth: Truth,
    boxes: npt.NDArray[np.floating],
    offsets: Offsets,
    limits: tuple[int, ...] = LIMITS,
) -> Coverage:
    """Cover the objects that are not ignored.

    Args:
        truth: crowds never count, difficult objects as it was made.
        boxes: (R, 4) x1 y1 x2 y2, best first within each image, without ground truth among them.
        offsets: (N + 1,) rows of each image of ``truth``.
        limits: how many proposals an image to take, rising.
    """
    counted = np.flatnonzero(~truth.ignored)
    counted = counted[np.argsort(truth.images[counted], kind="stable")]
    own, best = _cover(
        np.ascontiguousarray(boxes, np.float64),
        offsets,
        truth.boxes[counted],
        truth.images[counted],
        np.array(limits, np.int64),
    )
    images = len(truth.image_ids)
    return Coverage(
        limits=limits,
        own=own,
        best=best,
        labels=truth.labels[counted],
        areas=truth.areas[counted],
        classes=truth.classes,
        proposals=float(offsets[-1]) / max(images, 1),
    )


@numba.njit(cache=True, nogil=True)
def _cover(boxes, offsets, truth_boxes, truth_images, limits):  # type: ignore[no-untyped-def]
    """Overlaps (L, G) by the greedy rule and without exclusivity; objects are sorted by image."""
    own = np.zeros((len(limits), len(truth_boxes)))
    best = np.zeros((len(limits), len(truth_boxes)))
    first = 0
    while first < len(truth_boxes):
        image = truth_images[first]
        last = first
        while last < len(truth_boxes) and truth_images[last] == image:
            last += 1
        proposals = boxes[offsets[image] : offsets[image + 1]]
        overlaps = _overlaps(truth_boxes[first:last], proposals[: limits[-1]])
        for l in range(len(limits)):  # noqa: E741
            within = overlaps[:, : limits[l]]
            own[l, first:last] = _one_to_one(within)
            for g in range(last - first):
                for r in range(within.shape[1]):
                    best[l, first + g] = max(best[l, first + g], within[g, r])
        first = last
    return own, best


@numba.njit(cache=True, nogil=True)
def _overlaps(objects, proposals):  # type: ignore[no-untyped-def]
    overlaps = np.empty((len(objects), len(proposals)))
    for g in range(len(objects)):
        a = objects[g]
        extent = (a[2] - a[0]) * (a[3] - a[1])
        for r in range(len(proposals)):
            b = proposals[r]
            overlaps[g, r] = box_overlap(a, extent, b, (b[2] - b[0]) * (b[3] - b[1]), False)
    return overlaps


@numba.njit(cache=True, nogil=True)
def _one_to_one(overlaps):  # type: ignore[no-untyped-def]
    """Overlap of each object: the best-covered one takes its proposal, both leave, and so on."""
    objects, proposals = overlaps.shape
    own = np.zeros(objects)
    if proposals == 0:
        return own
    favourite = np.empty(objects, np.int64)
    for g in range(objects):
        favourite[g] = np.argmax(overlaps[g])
    served = np.zeros(objects, np.bool_)
    used = np.zeros(proposals, np.bool_)
    for _ in range(min(objects, proposals)):
        chosen = -1
        for g in range(objects):
            if served[g]:
                continue
            if used[favourite[g]]:
                favourite[g] = _best_unused(overlaps[g], used)
            if chosen < 0 or overlaps[g, favourite[g]] > overlaps[chosen, favourite[chosen]]:
                chosen = g
        own[chosen] = overlaps[chosen, favourite[chosen]]
        served[chosen] = True
        used[favourite[chosen]] = True
    return own


@numba.njit(cache=True, nogil=True)
def _best_unused(overlaps, used):  # type: ignore[no-untyped-def]
    best = -1
    for r in range(len(overlaps)):
        if not used[r] and (best < 0 or overlaps[r] > overlaps[best]):
            best = r
    return best
