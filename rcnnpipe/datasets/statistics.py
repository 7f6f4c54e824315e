"""Statistics of a split: how many, how large, of what shape."""

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from rcnnpipe.datasets.parsed import Parsed

_PERCENTILES = (0, 10, 25, 50, 75, 90, 100)

# COCO's limits of small and medium objects, square pixels.
_SMALL, _MEDIUM = 32**2, 96**2


def statistics(parsed: Parsed) -> dict[str, Any]:
    """Counts and percentiles (0, 10, 25, 50, 75, 90, 100) of one split, ready for JSON.

    ``sizes`` are COCO's small, medium and large by box area; ``side`` is its root in pixels;
    ``aspect`` is width over height.
    """
    objects = [obj for image in parsed.images for obj in image.objects]
    boxes = np.array([obj.box for obj in objects if obj.box], np.float64).reshape(-1, 4)
    boxes = boxes[np.isfinite(boxes).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)]
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    area = width * height
    sizes = np.array([image.size for image in parsed.images if image.size], np.float64)
    sizes = sizes.reshape(-1, 2)
    counts = Counter(obj.name for obj in objects)
    return {
        "images": len(parsed.images),
        "images without objects": sum(not image.objects for image in parsed.images),
        "objects": len(objects),
        "difficult": sum(obj.difficult for obj in objects),
        "truncated": sum(obj.truncated for obj in objects),
        "crowd": sum(obj.crowd for obj in objects),
        "masks": sum(obj.segment is not None for obj in objects),
        "keypoints": sum(obj.keypoints is not None for obj in objects),
        "classes": {name: counts[name] for name in parsed.classes},
        "sizes": {
            "small": int((area < _SMALL).sum()),
            "medium": int(((area >= _SMALL) & (area < _MEDIUM)).sum()),
            "large": int((area >= _MEDIUM).sum()),
        },
        "side": percentiles(np.sqrt(area)),
        "aspect": percentiles(width / height),
        "objects per image": percentiles(np.array([len(i.objects) for i in parsed.images], float)),
        "image width": percentiles(sizes[:, 1]),
        "image height": percentiles(sizes[:, 0]),
    }


def percentiles(values: npt.NDArray[np.float64]) -> list[float]:
    """The percentiles listed above, rounded to four digits; empty for no values."""
    if not len(values):
        return []
    return [float(f"{value:.4g}") for value in np.percentile(values, _PERCENTILES)]
