"""Small truths and results for the tests, drawn or written out."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rcnnpipe.evaluation.columns import Results, Truth, extents_of, results_of


def truth(
    objects: Sequence[tuple[int, int, Sequence[float]]],
    images: int = 1,
    classes: int = 1,
    crowd: Sequence[int] = (),
    difficult: Sequence[int] = (),
    areas: Sequence[float] | None = None,
) -> Truth:
    """Objects (image, label, x1 y1 x2 y2); ``crowd`` and ``difficult`` name objects by number."""
    boxes = np.array([box for _, _, box in objects], np.float64).reshape(-1, 4)
    in_crowd = np.isin(np.arange(len(boxes)), crowd)
    return Truth(
        classes=("background", *(f"class{label}" for label in range(1, classes + 1))),
        image_ids=tuple(str(image + 1) for image in range(images)),
        sizes=np.full((images, 2), 500),
        images=np.array([image for image, _, _ in objects], np.int64),
        labels=np.array([label for _, label, _ in objects], np.int64),
        boxes=boxes,
        extents=extents_of(boxes),
        areas=extents_of(boxes) if areas is None else np.array(areas, np.float64),
        crowd=in_crowd,
        ignored=in_crowd | np.isin(np.arange(len(boxes)), difficult),
    )


def results(of: Truth, detections: Sequence[tuple[int, int, float, Sequence[float]]]) -> Results:
    """Detections (image, label, score, x1 y1 x2 y2)."""
    images, labels, scores, boxes = zip(*detections, strict=True)
    return results_of(of, np.array(images), np.array(labels), np.array(scores), np.array(boxes))


def xywh(x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
    """Corners of a COCO box."""
    return (x, y, x + width, y + height)


def drawn(
    seed: int, images: int = 8, classes: int = 3, whole: bool = False, per_image: int = 30
) -> tuple[Truth, Results]:
    """A random case full of what decides: ties of scores and overlaps, crowds, sizes, empty images.

    Boxes lie on a coarse grid so that equal overlaps, equal boxes and overlaps of exactly .5 occur;
    ``whole`` keeps them to whole pixels.
    """
    rng = np.random.default_rng(seed)
    step = 4.0 if whole else 3.37

    def boxes(count: int) -> Any:
        corner = rng.integers(0, 12, (count, 2)) * step
        size = rng.choice([1, 2, 3, 4, 6, 8, 12, 30], (count, 2)) * step
        return np.round(np.concatenate([corner, corner + size], axis=1), 2)

    count = int(images * rng.integers(1, 9))
    where = rng.integers(0, images, count)
    where[where == 0] = 1  # one image without objects
    boxes_of_truth = boxes(count)
    made = truth(
        list(zip(where, rng.integers(1, classes + 1, count), boxes_of_truth, strict=True)),
        images=images,
        classes=classes + 1,  # one class without objects
        crowd=np.flatnonzero(rng.uniform(size=count) < 0.15).tolist(),
        areas=np.round(extents_of(boxes_of_truth) * rng.choice([0.6, 1.0], count), 1).tolist(),
    )
    found = int(images * per_image)
    copied = boxes_of_truth[rng.integers(0, count, found)]
    shifted = copied + rng.integers(-2, 3, (found, 4)) * np.array([1, 1, 1, 1])
    shifted[:, 2:] = np.maximum(shifted[:, 2:], shifted[:, :2] + 1)
    pool = np.where(rng.uniform(size=(found, 1)) < 0.3, boxes(found), np.round(shifted, 2))
    pool = np.where(rng.uniform(size=(found, 1)) < 0.2, copied, pool)
    of = rng.integers(0, images - 1, found)  # and one image without detections
    return made, results_of(
        made, of, rng.integers(1, classes + 1, found), rng.integers(0, 40, found) / 40, pool
    )
