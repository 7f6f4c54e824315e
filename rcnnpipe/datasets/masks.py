"""Masks from COCO segmentations: polygons, uncompressed and compressed run lengths."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from faster_coco_eval.core import mask as coco_mask

from rcnnpipe.datasets.parsed import number
from rcnnpipe.datasets.records import Record
from rcnnpipe.errors import DataError

Rle = dict[str, Any]  # {"size": [height, width], "counts": bytes}


def decode_segment(segment: Any, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """The mask (H, W) bool of one segmentation in an image of ``size`` (height, width).

    Raises:
        DataError: see ``rle_of``.
    """
    mask: npt.NDArray[np.bool_] = coco_mask.decode(rle_of(segment, size)).astype(np.bool_)
    return mask


def masks_of(record: Record) -> list[npt.NDArray[np.bool_] | None]:
    """The masks (H, W) of a record's objects, None for those that have none.

    Raises:
        DataError: names the image of a mask that cannot be drawn.
    """
    masks: list[npt.NDArray[np.bool_] | None] = []
    for segment in record.segments or ():
        try:
            masks.append(None if segment is None else decode_segment(segment, record.size))
        except DataError as error:
            raise DataError(f"image '{record.image_id}': {error}") from None
    return masks


def rle_from(mask: npt.NDArray[np.bool_]) -> Rle:
    """The compressed RLE of a mask (H, W): the inverse of :func:`decode_segment`."""
    return dict(coco_mask.encode(np.asfortranarray(mask, np.uint8)))


def rle_of(segment: Any, size: tuple[int, int]) -> Rle:
    """The compressed RLE of one segmentation, polygons of one object joined.

    Args:
        segment: a list of polygons [x1, y1, x2, y2, ...], or {"size": [height, width], "counts":
            run lengths down the columns, as a list or compressed text}.
        size: (height, width) of the image.

    Raises:
        DataError: odd, short or non-finite polygons, an RLE of another size, or run lengths that
            do not sum to the image.
    """
    problem = segment_problem(segment, size)
    if problem:
        raise DataError(f"a mask cannot be drawn: {problem}; `rcnnpipe check` names the annotation")
    height, width = size
    if isinstance(segment, Mapping):
        if isinstance(segment["counts"], list):
            return dict(coco_mask.frPyObjects(dict(segment), height, width))
        return {"size": [height, width], "counts": _bytes(segment["counts"])}
    return dict(coco_mask.merge(coco_mask.frPyObjects(segment, height, width)))


def segment_problem(segment: Any, size: tuple[int, int]) -> str | None:
    """Why a segmentation cannot be drawn, or None where it can."""
    if isinstance(segment, Mapping):
        return _rle_problem(segment, size)
    if not isinstance(segment, list) or not segment:
        return "it is neither polygons nor an RLE"
    for polygon in segment:
        if not isinstance(polygon, list) or len(polygon) % 2 or len(polygon) < 6:
            return "a polygon needs an even number of coordinates, three points at least"
        if not all(isinstance(c, (int, float)) and math.isfinite(number(c)) for c in polygon):
            return "a polygon's coordinate is no finite number"
    return None


def _rle_problem(rle: Mapping[str, Any], size: tuple[int, int]) -> str | None:
    counts = rle.get("counts")
    if rle.get("size") not in (list(size), tuple(size)):
        return f"its RLE is of size {rle.get('size')}, the image of {list(size)}"
    if isinstance(counts, list):
        whole = all(isinstance(count, int) and count >= 0 for count in counts)
        runs = counts if whole else []
    elif isinstance(counts, (str, bytes)):
        runs = _run_lengths(_bytes(counts))
    else:
        return "its RLE has no counts"
    if not runs or sum(runs) != size[0] * size[1] or min(runs) < 0:
        return "its run lengths do not sum to the image"
    return None


def _bytes(counts: str | bytes) -> bytes:
    return counts if isinstance(counts, bytes) else counts.encode("ascii", "replace")


def _run_lengths(counts: bytes) -> list[int]:
    """Run lengths of COCO's compressed text; empty where it is broken.

    Source: ``rleFrString`` in cocoapi's maskApi.c: five bits a character, the sixth says that more
    follow, from the fourth run on the difference to the run two before. The library reads such text
    without looking at its bounds, so it is unpacked here first.
    """
    runs: list[int] = []
    place = 0
    while place < len(counts):
        value, shift, more = 0, 0, True
        while more:
            if place == len(counts) or not 48 <= counts[place] < 112 or shift > 40:
                return []
            bits = counts[place] - 48
            value |= (bits & 31) << shift
            shift += 5
            place += 1
            more = bool(bits & 32)
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
    return runs
