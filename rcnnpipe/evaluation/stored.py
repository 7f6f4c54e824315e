"""Our own artifacts as what the metrics work on, their images brought into the truth's order."""

from pathlib import Path

import numpy as np

from rcnnpipe.artifacts.columns import rows_for_images
from rcnnpipe.artifacts.detections import Detections
from rcnnpipe.artifacts.proposals import Proposals
from rcnnpipe.artifacts.store import require_same_classes
from rcnnpipe.evaluation.columns import Floats, Integers, Results, Truth, results_of
from rcnnpipe.ragged import Offsets, image_of_rows, offsets_of


def stored_results(path: Path, detections: Detections, truth: Truth) -> Results:
    """The detections on the truth's images; those on other images are left out, with a note.

    Raises:
        ArtifactError: other classes, or images of the data set that the detector was not run on.
    """
    require_same_classes(str(path), detections.classes, "the data set", truth.classes)
    rows = rows_for_images(path, detections, truth, "detections")
    places = np.full(len(detections.image_ids), -1, np.int64)
    places[rows] = np.arange(len(rows))
    images = places[image_of_rows(detections.offsets)]
    known = images >= 0
    return results_of(
        truth,
        images[known],
        detections.labels[known],
        detections.scores[known],
        detections.boxes[known],
        _left_out(detections.image_ids, truth),
    )


def stored_proposals(
    path: Path, proposals: Proposals, truth: Truth
) -> tuple[Floats, Offsets, tuple[str, ...]]:
    """Boxes (R, 4) and offsets (N + 1,) of the truth's images in its order, and notes.

    Raises:
        ArtifactError: images of the data set have no proposals.
    """
    rows = rows_for_images(path, proposals, truth, "proposals")
    counts = np.diff(proposals.offsets)[rows]
    offsets = offsets_of(counts)
    gathered: Integers = np.arange(offsets[-1]) + np.repeat(
        proposals.offsets[rows] - offsets[:-1], counts
    )
    boxes = proposals.boxes[gathered].astype(np.float64)
    return boxes, offsets, _left_out(proposals.image_ids, truth)


def _left_out(image_ids: tuple[str, ...], truth: Truth) -> tuple[str, ...]:
    others = len(set(image_ids) - set(truth.image_ids))
    if not others:
        return ()
    return (f"{others} images of the file are not among those evaluated and left out",)
