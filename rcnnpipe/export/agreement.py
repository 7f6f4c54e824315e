"""Whether a graph finds what the network finds: detections of both, paired one by one.

Vocabulary: D detections of an image.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment

from rcnnpipe.datasets.records import Record
from rcnnpipe.detection import DeltaRefiner, SoftmaxScorer, detect_regions
from rcnnpipe.errors import SettingError
from rcnnpipe.export.graph import DetectionRules
from rcnnpipe.extraction.detectors import DetectorExtractor
from rcnnpipe.extraction.regions import Regions
from rcnnpipe.models.detector import OUTPUTS, Detector
from rcnnpipe.models.image_view import ImageView
from rcnnpipe.proposals.windows import windows_of
from rcnnpipe.suppression import Suppression, select

Pixels = npt.NDArray[np.uint8]  # (H, W, 3) RGB
Detections = Mapping[str, npt.NDArray[Any]]  # boxes (D, 4), scores (D,), labels (D,)

# Of two computations in float32. Trained networks differ by a hundredth of this; random ones, which
# make much of rounding, by as much in PyTorch alone between float32 and float64.
BOX_TOLERANCE, SCORE_TOLERANCE = 0.1, 1e-3  # pixels; probability
# Where a score or an overlap is at its threshold but for rounding, one of them keeps the detection.
ALONE = 0.01  # of all
_NEAR = 0.5  # pixels; further apart they are different detections
_MOST_WINDOWS = 100


@dataclass(frozen=True)
class Agreement:
    """How far two ways to detect are apart.

    Attributes:
        images, detections: how many were compared.
        box, score: largest difference of those that both find, in pixels and probability.
        alone: detections that only one of them finds.
    """

    images: int
    detections: int
    box: float
    score: float
    alone: int

    def __str__(self) -> str:
        """For messages."""
        return (
            f"{self.detections} detections in {self.images} images, boxes within {self.box:.1g} "
            f"pixels, scores within {self.score:.1g}, {self.alone} found by one alone"
        )

    def require(self) -> None:
        """Refuse what is no agreement.

        Raises:
            SettingError: they differ beyond tolerance, or nothing was found to compare.
        """
        if self.detections == 0:
            raise SettingError(
                "nothing was detected in the images that the graph is compared on, so no file was "
                "written; name images with objects by --verify, or lower --score-threshold"
            )
        far = self.box > BOX_TOLERANCE or self.score > SCORE_TOLERANCE
        if far or self.alone > ALONE * self.detections:
            raise SettingError(
                f"the graph does not find what the network finds ({self}), so no file was written"
            )


def compare(
    images: Iterable[Pixels],
    ours: Callable[[Pixels], Detections],
    others: Callable[[Pixels], Detections],
) -> Agreement:
    """Detect both ways in images."""
    count, detections, box, score, alone = 0, 0, 0.0, 0.0, 0
    for pixels in images:
        expected, found = ours(pixels), others(pixels)
        apart = differences(found, expected)
        count, detections = count + 1, detections + len(expected["scores"])
        box, score, alone = max(box, apart[0]), max(score, apart[1]), alone + apart[2]
    return Agreement(count, detections, box, score, alone)


def differences(found: Detections, expected: Detections) -> tuple[float, float, int]:
    """Of boxes and scores at most, and how many detections have no partner in the other set.

    Partners have one label and boxes within half a pixel; scores that are equal but for rounding
    may stand in any order.
    """
    box, score, alone = 0.0, 0.0, 0
    for label in np.union1d(found["labels"], expected["labels"]):
        ours, others = found["labels"] == label, expected["labels"] == label
        far = np.abs(found["boxes"][ours][:, None] - expected["boxes"][others]).max(axis=2)
        apart = np.abs(found["scores"][ours][:, None] - expected["scores"][others])
        near = (far <= _NEAR) & (apart <= 1)  # what is no number is near nothing
        rows, columns = linear_sum_assignment(np.where(near, far + apart, 1e6))
        good = near[rows, columns]
        rows, columns = rows[good], columns[good]
        box = max(box, far[rows, columns].max(initial=0.0))
        score = max(score, apart[rows, columns].max(initial=0.0))
        alone += far.shape[0] + far.shape[1] - 2 * len(rows)
    return float(box), float(score), alone


def detected(
    detector: Detector, view: ImageView, rules: DetectionRules, pixels: Pixels
) -> dict[str, npt.NDArray[Any]]:
    """What ``rcnnpipe detect`` finds in an image, by PyTorch on the CPU."""
    size = (pixels.shape[0], pixels.shape[1])
    find = detector.parts.proposals
    extractor = DetectorExtractor(
        *(detector, OUTPUTS, torch.device("cpu"), view), stored=False, proposals=find
    )
    regions = some_regions(size)
    features = extractor(pixels, Regions(_record(size), regions))
    candidates = detect_regions(
        features,
        features.get("boxes", torch.from_numpy(regions)),
        size,
        SoftmaxScorer(),
        DeltaRefiner(),
        rules.score_threshold,
        rules.max_per_image,
        smallest=detector.parts.smallest_sides(view, size),
    )
    offsets = np.array((0, len(candidates["scores"])))
    how = (0, Suppression(rules.nms_overlap), rules.max_detections)
    return select(candidates, offsets, detector.classes - 1, *how)[0]


def some_regions(size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Regions (R, 4) of an image of (height, width), for a detector without an RPN."""
    boxes, _ = windows_of(size, overlap=0.5)
    return boxes[:: -(-len(boxes) // _MOST_WINDOWS)].astype(np.float32)


def _record(size: tuple[int, int]) -> Record:
    none, labels, flags = np.empty(0), np.empty(0, np.int64), np.empty(0, bool)
    return Record("image", Path(), size, np.empty((0, 4)), labels, flags, flags, flags, none)
