"""What the rows of an artifact say about images: how many boxes, how large, and what is odd.

N images, R rows, K classes. Columns are read in the same blocks as their statistics are.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from rcnnpipe.report.statistics import BUDGET_BYTES, blocks

_OUTSIDE = 0.01  # pixels by which a box may leave its image; more is no rounding
QUARTERS = (0, 25, 50, 75, 100)
# COCO's small and medium, in pixels of the side of a square
_SMALL, _MEDIUM = 32**2, 96**2


@dataclass(frozen=True)
class Images:
    """How rows spread over images.

    Attributes:
        count: N.
        rows: R.
        least, median, most: rows in an image.
        without_rows: images that have none.
    """

    count: int
    rows: int
    least: int
    median: float
    most: int
    without_rows: int


@dataclass(frozen=True)
class BoxSizes:
    """Sizes of boxes; five values each: least, quartiles, largest.

    Attributes:
        side: square root of the area, in pixels.
        aspect: width over height.
        share: area over that of the image.
        small, medium, large: boxes by COCO's areas, below 32 and 96 pixels squared.
    """

    side: tuple[float, ...]
    aspect: tuple[float, ...]
    share: tuple[float, ...]
    small: int
    medium: int
    large: int


@dataclass(frozen=True)
class Rows:
    """The images of an open file, to find the image of a row by.

    Attributes:
        ids: (N).
        sizes: (N, 2) height, width.
        offsets: (N + 1,).
    """

    ids: Sequence[str]
    sizes: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]

    def images_of(self, rows: slice) -> npt.NDArray[np.int64]:
        """The number of the image of each row."""
        numbers = np.arange(rows.start, rows.stop)
        return np.searchsorted(self.offsets, numbers, side="right") - 1


def spread(rows: Rows) -> Images:
    """How rows spread over images."""
    counts = np.diff(rows.offsets)
    return Images(
        count=len(counts),
        rows=int(rows.offsets[-1]),
        least=int(counts.min()) if len(counts) else 0,
        median=float(np.median(counts)) if len(counts) else 0.0,
        most=int(counts.max(initial=0)),
        without_rows=int((counts == 0).sum()),
    )


def image_warnings(rows: Rows) -> list[str]:
    """Images without rows, and ids that occur twice."""
    found = []
    empty = np.flatnonzero(np.diff(rows.offsets) == 0)
    if len(empty):
        first = rows.ids[int(empty[0])]
        found.append(f"{len(empty)} of {len(rows.ids)} images have no rows, the first is '{first}'")
    repeated = [image_id for image_id, count in Counter(rows.ids).items() if count > 1]
    if repeated:
        found.append(
            f"{len(repeated)} image ids occur more than once, the first is '{repeated[0]}'"
        )
    return found


def box_sizes(
    boxes: h5py.Dataset, rows: Rows, budget: int | None = BUDGET_BYTES
) -> tuple[BoxSizes | None, list[str]]:
    """Sizes of the boxes (R, 4), and warnings of those that cannot be right."""
    parts, empty, outside = [], _Odd("boxes have no area"), _Odd("boxes leave their image")
    for block in blocks(boxes, budget):
        corners = boxes[block].astype(np.float64)  # (r, 4)
        images = rows.images_of(block)
        extents = rows.sizes[images].astype(np.float64)  # (r, 2) height, width
        sides = corners[:, 2:] - corners[:, :2]  # (r, 2) width, height
        flat = (sides <= 0).any(axis=1)
        empty.add(flat, images)
        out = (corners[:, :2] < -_OUTSIDE).any(axis=1)
        out |= (corners[:, 2:] > extents[:, ::-1] + _OUTSIDE).any(axis=1)
        outside.add(out, images)
        usable = ~flat & np.isfinite(corners).all(axis=1)
        areas = sides.prod(axis=1)
        shares = areas / np.maximum(extents.prod(axis=1), 1)
        aspects = sides[usable, 0] / sides[usable, 1]
        parts.append(np.stack((areas[usable], aspects, shares[usable])))
    warnings = [odd.sentence(rows.ids) for odd in (empty, outside) if odd.count]
    areas, aspects, shares = np.concatenate(parts, axis=1) if parts else np.zeros((3, 0))
    if not len(areas):
        return None, warnings
    sizes = BoxSizes(
        side=_quarters(np.sqrt(areas)),
        aspect=_quarters(aspects),
        share=_quarters(shares),
        small=int((areas < _SMALL).sum()),
        medium=int(((areas >= _SMALL) & (areas < _MEDIUM)).sum()),
        large=int((areas >= _MEDIUM).sum()),
    )
    return sizes, warnings


def score_warnings(
    scores: h5py.Dataset, rows: Rows, budget: int | None = BUDGET_BYTES
) -> list[str]:
    """Scores (R,) that are all the same, or do not fall within an image."""
    rising = _Odd("rows score higher than the row before them")
    low, high, count = np.inf, -np.inf, 0
    for block in blocks(scores, budget):
        values, images = scores[block], rows.images_of(block)
        same_image = np.diff(images) == 0
        rising.add(np.append(False, (np.diff(values) > 0) & same_image), images)
        low, high = min(low, float(values.min())), max(high, float(values.max()))
        count += len(values)
    found = [rising.sentence(rows.ids)] if rising.count else []
    if count > 1 and low == high:
        found.append(f"all {count} scores read are {low:g}")
    return found


def rows_by_class(
    file: h5py.File, classes: Sequence[str], budget: int | None = BUDGET_BYTES
) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Rows of each class, and a warning of labels that stand for none.

    Detections are counted as they are; of features the ground truth, and the regions that overlap
    it by half or more.
    """
    if "labels" not in file or len(classes) < 2:
        return {}, []
    is_features = "is_truth" in file
    kinds = ("objects", "regions_above_half") if is_features else ("rows",)
    counts = np.zeros((len(kinds), len(classes)), np.int64)
    strange = 0
    for block in blocks(file["labels"], budget):
        labels: np.ndarray[Any, Any] = file["labels"][block]
        known = (labels >= (0 if is_features else 1)) & (labels < len(classes))
        ignored = is_features & (labels == -1)
        strange += int((~known & ~ignored).sum())
        chosen = [known]
        if is_features:
            truth = file["is_truth"][block]
            chosen = [known & truth, known & ~truth & (file["overlap"][block] >= 0.5)]
        for number, mask in enumerate(chosen):
            counts[number] += np.bincount(labels[mask], minlength=len(classes))
    warnings = [f"{strange} labels stand for no class"] if strange else []
    table = {
        name: {kind: int(counts[number, label]) for number, kind in enumerate(kinds)}
        for label, name in enumerate(classes)
        if label
    }
    return table, warnings


class _Odd:
    """Counts rows with something odd, and remembers the image of the first."""

    def __init__(self, what: str) -> None:
        self.what, self.count, self.first = what, 0, -1

    def add(self, mask: npt.NDArray[np.bool_], images: npt.NDArray[np.int64]) -> None:
        if mask.any() and not self.count:
            self.first = int(images[mask][0])
        self.count += int(mask.sum())

    def sentence(self, ids: Sequence[str]) -> str:
        return f"{self.count} {self.what}, the first in image '{ids[self.first]}'"


def _quarters(values: npt.NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(np.percentile(values, QUARTERS).tolist())
