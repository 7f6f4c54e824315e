"""Selective search (Uijlings et al., IJCV 2013): boxes of regions that grow together.

Several colour spaces times several scales k give initial segmentations; from each, several
similarity measures give hierarchies of merged regions; the boxes of all of them are ranked.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from rcnnpipe.proposals import colour, grouping, histograms, segmentation, smoothing
from rcnnpipe.proposals.grouping import Similarity
from rcnnpipe.proposals.ranking import Proposed, take_best

SIGMA = 0.8  # Girshick et al. 2014 use the authors' fast mode: sigma 0.8, min_size = k

_ALL = Similarity(colour=True, texture=True, size=True, fill=True)
_NO_COLOUR = Similarity(colour=False, texture=True, size=True, fill=True)
_FILL = Similarity(colour=False, texture=False, size=False, fill=True)
_SIZE = Similarity(colour=False, texture=False, size=True, fill=False)


@dataclass(frozen=True)
class Strategy:
    """Colour spaces x scales x similarity measures; each combination is one hierarchy."""

    colour_spaces: tuple[str, ...]
    scales: tuple[int, ...]
    similarities: tuple[Similarity, ...]


STRATEGIES = {
    "fast": Strategy(("hsv", "lab"), (50, 100), (_ALL, _NO_COLOUR)),
    "quality": Strategy(
        ("hsv", "lab", "rgi", "hue", "intensity"),
        (50, 100, 150, 300),
        (_ALL, _NO_COLOUR, _FILL, _SIZE),
    ),
}


def hierarchies(
    image: npt.NDArray[np.uint8], strategy: Strategy
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Boxes (B, 4) x1 y1 x2 y2 and priorities (B,) of all hierarchies of an image (H, W, 3).

    Priority 1 is the region merged last, the whole image, 2 the one merged before it, and so on;
    the initial segments come once for each segmentation, all with the lowest priority. As in the
    authors' code.
    """
    area = image.shape[0] * image.shape[1]
    boxes, priorities = [], []
    for name in strategy.colour_spaces:
        planes = colour.COLOUR_SPACES[name](image)
        smoothed = smoothing.smooth(planes, SIGMA)
        edges = segmentation.sorted_edges(smoothed)
        codes = histograms.code(planes, smoothed)
        for k in strategy.scales:
            segments = segmentation.segment(edges, k, min_size=k)
            number = len(segments.sizes)
            counts = histograms.count(codes, segments.labels, number)
            for similarity in strategy.similarities:
                boxes.append(
                    grouping.group(
                        counts,
                        segments.sizes,
                        segments.boxes,
                        segments.neighbours,
                        similarity,
                        area,
                    )
                )
                priorities.append(np.arange(number - 1, 0, -1))
            boxes.append(segments.boxes.astype(np.int64))
            priorities.append(np.full(number, number))
    return np.concatenate(boxes), np.concatenate(priorities)


def propose(
    image: npt.NDArray[np.uint8],
    generator: np.random.Generator,
    *,
    strategy: Strategy = STRATEGIES["fast"],
    max_boxes: int = 2000,
    min_size: int = 20,
) -> Proposed:
    """Boxes (R, 4) float32 and scores (R,) float32 of an RGB image (H, W, 3), best first.

    Args:
        image: uint8 RGB.
        generator: draws the ranking: priorities times U(0, 1), smallest first.
        strategy: which hierarchies to grow.
        max_boxes: keeps this many of the best; the authors' code keeps all.
        min_size: drops boxes narrower or lower than this, in pixels of the image searched.
    """
    boxes, priorities = hierarchies(np.ascontiguousarray(image), strategy)
    return take_best(boxes, priorities, generator, max_boxes, min_size)


@lru_cache(maxsize=1)
def compile_functions() -> None:
    """Compiles, or loads from numba's cache, everything `propose` calls; seconds the first time."""
    for strategy in STRATEGIES.values():
        propose(np.zeros((24, 24, 3), np.uint8), np.random.default_rng(0), strategy=strategy)
