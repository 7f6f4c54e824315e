"""The one matcher: which detections are right, by VOC's rule or COCO's, compiled.

Detections of one class in one image form a group, and only a group's objects can match them. The
matcher walks the groups; what a detection turns out to be is one byte per area range and threshold.

D detections, G objects, K classes, N images, A area ranges, T overlap thresholds.
"""

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from rcnnpipe.evaluation.columns import Floats, Integers, Results, Truth
from rcnnpipe.evaluation.groups import Groups, positions_of

FALSE, TRUE, IGNORED = 0, 1, 2  # what a detection is: false positive, true positive, not judged

ALL_AREAS = ((0.0, np.inf),)


@dataclass(frozen=True)
class Rule:
    """How a detection may match.

    Attributes:
        thresholds: (T) least overlaps.
        areas: (A) pairs; objects with an area outside (both ends inclusive) are ignored, and so are
            unmatched detections outside.
        any_object: VOC: the best object of all decides, taken or not; else COCO: the best free one.
        above: the overlap must exceed the threshold (py-faster-rcnn), not just reach it (devkit).
    """

    thresholds: tuple[float, ...]
    areas: tuple[tuple[float, float], ...] = ALL_AREAS
    any_object: bool = False
    above: bool = False


@dataclass(frozen=True)
class Matches:
    """What became of each detection.

    Attributes:
        outcomes: (D', A, T) uint8 FALSE, TRUE or IGNORED, by class and falling score.
        ranks: (D',) position of the detection in its image and class, from 0.
        rows: (D',) its row in the results.
        class_starts: (K + 2,) where each label starts.
        positives: (K + 1, A) objects that are to be found; row 0 unused.
    """

    outcomes: npt.NDArray[np.uint8]
    ranks: Integers
    rows: Integers
    class_starts: Integers
    positives: Integers


def match(
    truth: Truth,
    results: Results,
    rule: Rule,
    groups: Groups,
    overlaps: Floats | None = None,
) -> Matches:
    """Judge every detection of ``groups``.

    Args:
        truth: the objects.
        results: the detections.
        rule: thresholds, area ranges, and which object a detection may take.
        groups: of the same truth and results.
        overlaps: flat, group after group, (detections, objects) of the group in row-major order;
            without them the intersection over union of the boxes, with a crowd the covered share of
            the detection.
    """
    areas = np.array(rule.areas, np.float64).reshape(-1, 2)
    outcomes = np.zeros((len(groups.by_score), len(areas), len(rule.thresholds)), np.uint8)
    _match_groups(
        (groups.detections, groups.starts),
        (groups.objects, groups.object_starts, groups.object_ends),
        (results.boxes, results.extents, results.areas),
        (truth.boxes, truth.extents, truth.areas, truth.crowd, truth.ignored),
        (np.array(rule.thresholds, np.float64), areas, rule.any_object, rule.above),
        overlaps is not None,
        np.zeros(0) if overlaps is None else overlaps,
        positions_of(groups.by_score, len(results.scores)),
        outcomes,
    )
    return Matches(
        outcomes,
        groups.ranks,
        groups.by_score,
        groups.class_starts,
        _positives(truth, rule.areas),
    )


def _positives(truth: Truth, areas: tuple[tuple[float, float], ...]) -> Integers:
    """How many objects of each label (K + 1, A) are to be found in each area range."""
    counts = [
        np.bincount(
            truth.labels[~truth.ignored & (truth.areas >= low) & (truth.areas <= high)],
            minlength=len(truth.classes),
        )
        for low, high in areas
    ]
    return np.stack(counts, axis=1).astype(np.int64)


@numba.njit(cache=True, nogil=True)
def box_overlap(a, a_extent, b, b_extent, crowd):  # type: ignore[no-untyped-def]
    """Intersection over union of two boxes, over the extent of ``a`` when ``b`` is a crowd.

    Operation for operation what pycocotools computes, so that both reach a threshold together.
    """
    width = min(a[2], b[2]) - max(a[0], b[0])
    if width <= 0:
        return 0.0
    height = min(a[3], b[3]) - max(a[1], b[1])
    if height <= 0:
        return 0.0
    intersection = width * height
    union = a_extent if crowd else a_extent + b_extent - intersection
    return intersection / union if union > 0 else 0.0


@numba.njit(cache=True, nogil=True)
def _take_free(overlaps, order, ignored, crowd, threshold, taken, partners):  # type: ignore[no-untyped-def]
    """COCO: each detection in turn takes the best object still free, regular ones first.

    ``partners`` (D,) receives the object of each detection, or -1.
    """
    for d in range(len(overlaps)):
        best, found = min(threshold, 1 - 1e-10), -1
        for g in order:  # regular objects, then ignored ones
            if taken[g] and not crowd[g]:
                continue
            if found >= 0 and not ignored[found] and ignored[g]:
                break  # a regular object is held, only ignored ones follow
            if overlaps[d, g] < best:
                continue
            best, found = overlaps[d, g], g  # of equal overlaps the later object wins
        partners[d] = found
        if found >= 0:
            taken[found] = True


@numba.njit(cache=True, nogil=True)
def _take_best(overlaps, ignored, crowd, threshold, above, taken, partners):  # type: ignore[no-untyped-def]
    """VOC: the object a detection overlaps most decides, be it difficult or already found.

    VOC knows no crowds; here a crowd absorbs what no object accounts for.
    """
    for d in range(len(overlaps)):
        best, found, covered, region = -1.0, -1, -1.0, -1
        for g in range(len(ignored)):
            if crowd[g] and overlaps[d, g] > covered:
                covered, region = overlaps[d, g], g
            elif not crowd[g] and overlaps[d, g] > best:
                best, found = overlaps[d, g], g
        if not (best > threshold or (best == threshold and not above)):
            reached = covered > threshold or (covered == threshold and not above)
            found = region if reached else -1
        elif taken[found] and not ignored[found]:
            found = -1  # a second detection of one object is false
        partners[d] = found
        if found >= 0:
            taken[found] = True


@numba.njit(cache=True, nogil=True)
def _fill_overlaps(rows, truths, results, truth, crowd, overlaps):  # type: ignore[no-untyped-def]
    """Fill ``overlaps`` (D, G); returns the largest."""
    boxes, extents, _ = results
    truth_boxes, truth_extents, _, _, _ = truth
    largest = 0.0
    for d in range(len(rows)):
        for g in range(len(truths)):
            overlaps[d, g] = box_overlap(
                boxes[rows[d]],
                extents[rows[d]],
                truth_boxes[truths[g]],
                truth_extents[truths[g]],
                crowd[g],
            )
            largest = max(largest, overlaps[d, g])
    return largest


@numba.njit(cache=True, nogil=True)
def _regular_first(ignored, order):  # type: ignore[no-untyped-def]
    """Fill ``order`` with the regular objects, then the ignored ones, each in their order."""
    last = 0
    for wanted in (False, True):
        for g in range(len(ignored)):
            if ignored[g] == wanted:
                order[last] = g
                last += 1


@numba.njit(cache=True, nogil=True)
def _match_groups(detections, objects, results, truth, rule, given, flat, positions, outcomes):  # type: ignore[no-untyped-def]
    """Fill ``outcomes`` (D', A, T), all FALSE so far, each detection at its position."""
    rows_of_all, starts = detections
    truths_of_all, firsts, lasts = objects
    areas, truth_areas, truth_crowd, truth_ignored = results[2], truth[2], truth[3], truth[4]
    thresholds, ranges, any_object, above = rule
    cursor = 0  # in the given overlaps
    for u in range(len(starts) - 1):
        rows = rows_of_all[starts[u] : starts[u + 1]]
        truths = truths_of_all[firsts[u] : lasts[u]]
        D, G = len(rows), len(truths)
        for row in rows:
            for a in range(len(ranges)):
                if areas[row] < ranges[a, 0] or areas[row] > ranges[a, 1]:
                    outcomes[positions[row], a] = IGNORED  # unless it finds an object
        if G == 0:
            continue
        crowd = truth_crowd[truths]
        if given:
            overlaps = flat[cursor : cursor + D * G].reshape(D, G)
            largest = overlaps.max()
            cursor += D * G
        else:
            overlaps = np.empty((D, G))
            largest = _fill_overlaps(rows, truths, results, truth, crowd, overlaps)
        if largest < min(thresholds.min(), 1 - 1e-10):
            continue
        order, taken = np.empty(G, np.int64), np.empty(G, np.bool_)
        partners = np.empty(D, np.int64)
        for a in range(len(ranges)):
            ignored = truth_ignored[truths] | (truth_areas[truths] < ranges[a, 0])
            ignored |= truth_areas[truths] > ranges[a, 1]
            _regular_first(ignored, order)
            for t in range(len(thresholds)):
                taken[:] = False
                if any_object:
                    _take_best(overlaps, ignored, crowd, thresholds[t], above, taken, partners)
                else:
                    _take_free(overlaps, order, ignored, crowd, thresholds[t], taken, partners)
                for d in range(D):
                    if partners[d] >= 0:
                        outcome = IGNORED if ignored[partners[d]] else TRUE
                        outcomes[positions[rows[d]], a, t] = outcome
