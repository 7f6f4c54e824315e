"""Overlaps other than those of boxes: of masks (RLE intersection over union), of keypoints (OKS).

Both give one flat array for ``matching.match``: group after group, (detections, objects) row-major.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as rle

from rcnnpipe.errors import DataError
from rcnnpipe.evaluation.columns import Floats, Integers, Results, Truth
from rcnnpipe.evaluation.groups import Groups

# cocoeval.py Params.setKpParams: the 17 keypoints of a person, nose to ankles
_HALF_BODY = (0.25, 0.35, 0.79, 0.72, 0.62, 1.07, 0.87, 0.89)  # left and right alike
PERSON_SIGMAS = np.array([0.26, *np.repeat(_HALF_BODY, 2)]) / 10.0


def encode_masks(segments: tuple[Any, ...], sizes: Integers, owner: str) -> list[dict[str, Any]]:
    """COCO segmentations (polygons, uncompressed or compressed RLE) as compressed RLE.

    Args:
        segments: one per row.
        sizes: (rows, 2) height, width of the image of each.
        owner: what the rows are, for the message.

    Raises:
        DataError: a row has no mask, or one that does not fit its image.
    """
    masks = []
    for number, (segment, (height, width)) in enumerate(zip(segments, sizes, strict=True)):
        if segment is None:
            raise DataError(f"{owner} number {number} has no mask; evaluate boxes instead")
        try:
            encoded = rle.segmToRle(segment, int(width), int(height))
            size = tuple(encoded["size"])
        except Exception as error:  # the extension raises whatever it meets
            raise DataError(
                f"the segmentation of {owner} number {number} cannot be read ({error})"
            ) from None
        if size != (height, width):
            raise DataError(
                f"the mask of {owner} number {number} is {' x '.join(map(str, size))} "
                f"pixels, its image {height} x {width}; masks must cover the "
                "original image"
            )
        masks.append(encoded)
    return masks


def mask_results(truth: Truth, results: Results) -> Results:
    """Results whose areas and segments are those of their masks, as COCO judges segmentations."""
    if results.segments is None:
        raise DataError("the results hold no masks; evaluate boxes instead")
    masks = encode_masks(results.segments, truth.sizes[results.images], "detection")
    areas = np.array(rle.area(masks) if masks else [], np.float64).reshape(-1)
    return replace(results, segments=tuple(masks), areas=areas)


def mask_overlaps(truth: Truth, results: Results, groups: Groups) -> Floats:
    """Intersection over union of masks; with a crowd, over the detection.

    Args:
        truth: with segments.
        results: as ``mask_results`` returns them.
        groups: of both.
    """
    if truth.segments is None or results.segments is None:
        raise DataError("the data set holds no masks; evaluate boxes instead")
    encoded = encode_masks(truth.segments, truth.sizes[truth.images], "object")
    blocks = [np.zeros(0)]
    for rows, objects in _pairs(groups):
        block = rle.iou(
            [results.segments[row] for row in rows],
            [encoded[one] for one in objects],
            truth.crowd[objects].astype(np.uint8).tolist(),
        )
        blocks.append(np.asarray(block, np.float64).reshape(-1))
    return np.concatenate(blocks)


def keypoint_truth(truth: Truth) -> Truth:
    """Truth in which objects without a labelled keypoint are ignored (cocoeval.py)."""
    if truth.keypoints is None:
        raise DataError("the data set holds no keypoints; evaluate boxes instead")
    labelled = (truth.keypoints[:, :, 2] > 0).any(axis=1)
    return replace(truth, ignored=truth.ignored | ~labelled)


def keypoint_overlaps(
    truth: Truth, results: Results, groups: Groups, sigmas: Floats = PERSON_SIGMAS
) -> Floats:
    """Object keypoint similarity (cocodataset.org, "keypoints evaluation").

    The mean over an object's labelled keypoints of exp(-d^2 / (2 area (2 sigma)^2)). An object
    without labelled keypoints takes the distance to its box grown to three times its size.

    Args:
        truth: with keypoints.
        results: with keypoints (D, P, 3); predicted visibility is not used.
        groups: of both.
        sigmas: (P,) spread of each keypoint; COCO's for a person by default.

    Raises:
        DataError: no keypoints, or another number of them than sigmas.
    """
    if truth.keypoints is None or results.keypoints is None:
        raise DataError("the data set or the results hold no keypoints; evaluate boxes instead")
    counts = {truth.keypoints.shape[1], results.keypoints.shape[1], len(sigmas)}
    if len(counts) > 1:
        raise DataError(
            f"objects have {truth.keypoints.shape[1]} keypoints, detections "
            f"{results.keypoints.shape[1]}, and {len(sigmas)} sigmas are known; COCO's similarity "
            "is defined for the 17 keypoints of a person"
        )
    blocks = [np.zeros(0)]
    for rows, objects in _pairs(groups):
        columns = [_similarity(truth, one, results.keypoints[rows], sigmas) for one in objects]
        blocks.append(np.stack(columns, axis=1).reshape(-1))
    return np.concatenate(blocks)


def _similarity(truth: Truth, one: int, points: Floats, sigmas: Floats) -> Floats:
    """Similarity (D,) of detections' keypoints (D, P, 3) to one object."""
    assert truth.keypoints is not None
    x, y, visible = truth.keypoints[one].T
    labelled = visible > 0
    if labelled.any():
        dx, dy = points[:, :, 0] - x, points[:, :, 1] - y
    else:
        left, top, right, bottom = truth.boxes[one]
        width, height = right - left, bottom - top
        dx = _beyond(points[:, :, 0], left - width, left + width * 2)
        dy = _beyond(points[:, :, 1], top - height, top + height * 2)
        labelled = np.ones(len(sigmas), np.bool_)
    variances = (sigmas * 2) ** 2
    error = (dx**2 + dy**2) / variances / (truth.areas[one] + np.spacing(1)) / 2
    similarity: Floats = np.exp(-error[:, labelled]).sum(axis=1) / labelled.sum()
    return similarity


def _beyond(values: Floats, low: float, high: float) -> Floats:
    """How far each value lies outside [low, high]."""
    distance: Floats = np.maximum(0, low - values) + np.maximum(0, values - high)
    return distance


def _pairs(groups: Groups) -> Iterator[tuple[Integers, Integers]]:
    """Detections and objects of each group that has both."""
    starts, firsts, lasts = groups.starts, groups.object_starts, groups.object_ends
    for u in np.flatnonzero(lasts > firsts):
        yield (
            groups.detections[starts[u] : starts[u + 1]],
            groups.objects[firsts[u] : lasts[u]],
        )
