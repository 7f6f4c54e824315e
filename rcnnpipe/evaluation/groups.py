"""Which detections compete for which objects: rows of one class in one image, by index alone.

D detections, G objects, K classes, N images, U groups that hold detections.
"""

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from rcnnpipe.evaluation.columns import Integers, Results, Truth


@dataclass(frozen=True)
class Groups:
    """Rows of truth and results brought together by (class, image).

    Attributes:
        detections: (D',) rows of the results by class, image and falling score; equal scores keep
            the order of the file. At most the cap of each group, so D' <= D.
        starts: (U + 1,) where each group starts in ``detections``.
        objects: (G,) rows of the truth by class and image, in annotation order.
        object_starts, object_ends: (U,) the objects of each group, in ``objects``.
        by_score: (D',) rows of the results by class and falling score; equal scores by image, then
            by file order (as pycocotools sorts).
        ranks: (D',) for ``by_score``, the position of the detection in its group, from 0.
        class_starts: (K + 2,) where each label starts in ``by_score``.
    """

    detections: Integers
    starts: Integers
    objects: Integers
    object_starts: Integers
    object_ends: Integers
    by_score: Integers
    ranks: Integers
    class_starts: Integers


def group(truth: Truth, results: Results, cap: int | None = None) -> Groups:
    """Bring detections and objects of one class and image together.

    Args:
        truth: the objects.
        results: the detections.
        cap: how many detections to keep in each group, the best; None keeps all.
    """
    images, labels = len(truth.image_ids), len(truth.classes)
    order = _sort_by(np.arange(len(results.scores)), results.images, images)
    order = order[np.argsort(-results.scores[order], kind="stable")]
    by_score = _sort_by(order, results.labels, labels)
    detections = _sort_by(_sort_by(order, results.images, images), results.labels, labels)
    del order
    keys = (results.labels * images + results.images)[detections]
    starts = _run_starts(keys)
    ranks = np.empty_like(detections)
    ranks[detections] = np.arange(len(keys)) - np.repeat(starts[:-1], np.diff(starts))
    if cap is not None and len(ranks) and ranks.max() >= cap:
        keep = ranks[detections] < cap
        keys, detections = keys[keep], detections[keep]
        by_score = by_score[ranks[by_score] < cap]
        starts = _run_starts(keys)

    objects = _sort_by(np.arange(len(truth.labels)), truth.images, images)
    objects = _sort_by(objects, truth.labels, labels)
    object_keys = (truth.labels * images + truth.images)[objects]
    group_keys = keys[starts[:-1]]
    return Groups(
        detections=detections,
        starts=starts,
        objects=objects,
        object_starts=np.searchsorted(object_keys, group_keys, "left"),
        object_ends=np.searchsorted(object_keys, group_keys, "right"),
        by_score=by_score,
        ranks=ranks[by_score],
        class_starts=_starts_of(results.labels[by_score], labels),
    )


def _run_starts(keys: Integers) -> Integers:
    """Where each run of equal keys starts, and the end of the last (U + 1,)."""
    inside = np.flatnonzero(np.diff(keys)) + 1
    return np.concatenate([[0] if len(keys) else [], inside, [len(keys)]]).astype(np.int64)


def _starts_of(labels: Integers, count: int) -> Integers:
    """Where each label 0..count - 1 starts among sorted labels, and the end (count + 1,)."""
    return np.concatenate([[0], np.cumsum(np.bincount(labels, minlength=count))])


def _sort_by(rows: Integers, keys: Integers, count: int) -> Integers:
    """``rows`` in the order of their key in 0..count - 1; equal keys keep their order."""
    sorted_rows: Integers = _counting_sort(rows, keys, np.zeros(count + 1, np.int64))
    return sorted_rows


@numba.njit(cache=True, nogil=True)
def _counting_sort(rows, keys, ends):  # type: ignore[no-untyped-def]
    for row in rows:
        ends[keys[row] + 1] += 1
    for key in range(1, len(ends)):
        ends[key] += ends[key - 1]
    out = np.empty_like(rows)
    for row in rows:
        out[ends[keys[row]]] = row
        ends[keys[row]] += 1
    return out


def positions_of(rows: Integers, count: int) -> npt.NDArray[np.int64]:
    """For each row 0..count - 1 its position in ``rows``; what is absent has no meaning."""
    positions = np.empty(count, np.int64)
    positions[rows] = np.arange(len(rows))
    return positions
