"""Selective search by other packages, to compare with; both are optional installs."""

import importlib
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rcnnpipe.errors import SettingError
from rcnnpipe.proposals.ranking import Proposed, take_best


def _import(module: str, method: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SettingError(
            f"method {method} needs a package that is not installed ({error}); "
            f"run pip install 'rcnnpipe[{extra}]'"
        ) from None


def opencv(
    image: npt.NDArray[np.uint8],
    generator: np.random.Generator,
    *,
    mode: Literal["fast", "quality"] = "fast",
    max_boxes: int = 2000,
    min_size: int = 20,
) -> Proposed:
    """Boxes of OpenCV's ximgproc selective search, of an RGB image (H, W, 3).

    OpenCV ranks with a random generator that cannot be seeded; only the set of boxes is the same
    each time. It is sorted first, then every box has the same priority in our seeded ranking.

    Raises:
        SettingError: opencv-contrib-python is not installed.
    """
    cv2 = _import("cv2", f"opencv-{mode}", "opencv")
    if not hasattr(cv2, "ximgproc"):
        raise SettingError(
            f"method opencv-{mode} needs OpenCV's contributed modules, which the installed OpenCV "
            "lacks; run pip install opencv-contrib-python-headless"
        )
    cv2.setNumThreads(1)  # the images are spread over processes
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(image[:, :, ::-1]))  # BGR
    if mode == "fast":
        search.switchToSelectiveSearchFast()
    else:
        search.switchToSelectiveSearchQuality()
    boxes = np.unique(np.asarray(search.process(), np.int64).reshape(-1, 4), axis=0)
    boxes[:, 2:] += boxes[:, :2]
    return take_best(boxes, np.ones(len(boxes)), generator, max_boxes, min_size)


def selectivesearch_package(
    image: npt.NDArray[np.uint8],
    generator: np.random.Generator,
    *,
    scales: Sequence[int] = (100, 300, 500),
    max_boxes: int = 2000,
    min_size: int = 20,
) -> Proposed:
    """Boxes of the `selectivesearch` package 0.4, of an RGB image (H, W, 3).

    One call of it gives a few hundred boxes, so there is one for each scale. Its rectangles end
    on the last pixel, and come in the order of merging.

    Raises:
        SettingError: the package is not installed.
    """
    package = _import("selectivesearch", "selectivesearch", "selectivesearch")
    boxes, priorities = [], []
    for scale in scales:
        with warnings.catch_warnings():
            # It takes binary patterns of a floating-point image, which scikit-image warns of.
            warnings.simplefilter("ignore", UserWarning)
            _, regions = package.selective_search(image, scale=scale, sigma=0.8, min_size=20)
        rectangles = np.array([region["rect"] for region in regions], np.int64).reshape(-1, 4)
        corners = rectangles[:, :2]
        boxes.append(np.hstack((corners, corners + rectangles[:, 2:] + 1)))
        priorities.append(np.arange(len(rectangles), 0, -1))
    return take_best(
        np.concatenate(boxes), np.concatenate(priorities), generator, max_boxes, min_size
    )
