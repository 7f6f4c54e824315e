"""Average precision of a model on a data set: detection and evaluation in one go, no file written.

The model's own probabilities score the regions, boxes move by a detector's own deltas alone, and
the caps and the suppression are R-CNN's (``rcnn_test.m``): the defaults of ``rcnnpipe detect``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rcnnpipe.artifacts.detections import COLUMNS
from rcnnpipe.artifacts.store import Header
from rcnnpipe.datasets.records import Dataset
from rcnnpipe.detection import detect_regions
from rcnnpipe.detection_sources import Source, open_source
from rcnnpipe.errors import ArtifactError, some_of
from rcnnpipe.evaluation.columns import Results, Truth, results_of, truth_of
from rcnnpipe.evaluation.scores import evaluate_detections
from rcnnpipe.progress import track
from rcnnpipe.ragged import offsets_of
from rcnnpipe.suppression import Suppression, select
from rcnnpipe.systems.rcnn import MOST_PER_IMAGE, MOST_PER_SET, NMS_OVERLAP

# Of rcnnpipe detect, without what names files.
DEFAULTS: dict[str, Any] = {
    "features": None,
    "svm": None,
    "bbox_reg": None,
    "refine": True,
    "max_proposals": 0,
    "batch_size": 256,
    "precision": "fp32",
    "seed": 0,
    "scales": None,
    "flip": False,
    "images": 1,
}


def truth_for(path: Path, header: Header, outputs: int, dataset: Dataset) -> Truth:
    """The ground truth that a model can be judged by.

    Args:
        path: of the model.
        header: of the model.
        outputs: of its classifier.
        dataset: with annotations.

    Raises:
        ArtifactError: the classifier does not know the classes of the data set.
        DataError: there are no objects to be found.
    """
    truth = truth_of(dataset)
    known = header.classes[1:]
    knows = f"classes {some_of(known)}"
    if outputs != len(header.classes):
        knows = f"{outputs} outputs for {len(known)} classes and the background"
    elif header.classes == truth.classes:
        return truth
    raise ArtifactError(
        f"{path} has no average precision on {dataset.name}, whose classes are "
        f"{some_of(truth.classes[1:])}: its classifier has {knows}; give a model that rcnnpipe "
        "finetune made on these classes"
    )


def score_model(
    path: Path,
    dataset: Dataset,
    truth: Truth,
    proposals: Path | None,
    device: torch.device,
    workers: int,
) -> dict[str, float]:
    """VOC's and COCO's average precision and the like of a model's detections.

    Args:
        path: of the model.
        dataset: whose images are looked at.
        truth: of :func:`truth_for`.
        proposals: a file of them; None finds them by selective search.
        device: where to compute.
        workers: threads that decode images.

    Returns:
        name -> figure, as ``rcnnpipe evaluate`` reports them.

    Raises:
        ArtifactError: files are missing or do not belong together.
    """
    options = DEFAULTS | {"model": path, "proposals": proposals}
    with open_source(dataset, options, device, workers) as source:
        return judged(candidates(source, dataset, range(len(dataset.records))), dataset, truth)


def candidates(source: Source, dataset: Dataset, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """The candidates of some images, scored, capped and moved, before any is suppressed.

    Args:
        source: of the detection.
        dataset: whose images are looked at.
        numbers: of the images.

    Returns:
        for each of them the columns boxes (C, 4), scores (C,), labels (C,).
    """
    found = []
    with torch.inference_mode():
        regions = track(source.regions(numbers), len(numbers), "detect")
        for number, (boxes, features) in zip(numbers, regions, strict=True):
            size, parts = dataset.records[number].size, (source.scorer, source.refiner)
            caps, smallest = (-np.inf, MOST_PER_IMAGE), source.smallest(size)
            found.append(detect_regions(features, boxes, size, *parts, *caps, smallest=smallest))
    return found


def judged(found: list[dict[str, Any]], dataset: Dataset, truth: Truth) -> dict[str, float]:
    """VOC's and COCO's average precision and the like of the candidates of all images."""
    return evaluate_detections(_selected(found, dataset, truth), truth).metrics()


def _selected(found: list[dict[str, Any]], dataset: Dataset, truth: Truth) -> Results:
    """What the caps and the suppression leave of the candidates of each image."""
    offsets = offsets_of([len(one["scores"]) for one in found])
    columns = {name: np.concatenate([one[name] for one in found]) for name in COLUMNS}
    classes = len(truth.classes) - 1
    kept, counts = select(columns, offsets, classes, MOST_PER_SET, Suppression(NMS_OVERLAP))
    places = {image_id: place for place, image_id in enumerate(truth.image_ids)}
    images = np.repeat([places[image_id] for image_id in dataset.image_ids], counts)
    return results_of(truth, images, kept["labels"], kept["scores"], kept["boxes"])
