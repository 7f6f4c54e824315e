"""Which regions of an image a detector learns from, and what each should become.

Girshick 2015, section 2.3. Vocabulary: P proposals, G objects, S sampled regions, K classes.
Labels: 0 background, 1..K the classes, -1 ignore.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rcnnpipe import boxes as box_ops
from rcnnpipe.matching import IGNORED_SHARE
from rcnnpipe.systems.rcnn import Sampling
from rcnnpipe.training.windows import sampled_labels


class Truth(NamedTuple):
    """The objects of an image.

    Attributes:
        boxes: (G, 4) float32, in the coordinates of the proposals.
        labels: (G,) int64 in 1..K, or -1 for one to ignore (a crowd).
    """

    boxes: Tensor
    labels: Tensor


class Sample(NamedTuple):
    """Regions to learn from, objects first.

    Attributes:
        boxes: (S, 4).
        labels: (S,) int64, 0 or 1..K.
        deltas: (S, 4) that move each onto its object, not normalised; 0 for the background.
    """

    boxes: Tensor
    labels: Tensor
    deltas: Tensor


class Labelled(NamedTuple):
    """Regions with what they are.

    Attributes:
        labels: (P,) int64: 1..K, 0, or -1 where a region is neither.
        objects: (P,) int64, the object each overlaps most; meaningless where there is none.
    """

    labels: Tensor
    objects: Tensor


def label_regions(boxes: Tensor, truth: Truth, sampling: Sampling) -> Labelled:
    """Compare regions (P, 4) with the objects of their image; ties go to the first object."""
    counted = truth.labels > 0
    if bool(counted.any()):
        overlap, objects = box_ops.iou(boxes, truth.boxes[counted]).max(dim=1)
        nearest = truth.labels[counted][objects].where(overlap > 0, 0)
    else:
        overlap, objects = boxes.new_zeros(len(boxes)), boxes.new_zeros(len(boxes)).long()
        nearest = objects
    ignored = box_ops.share_inside(boxes, truth.boxes[truth.labels < 0]) > IGNORED_SHARE
    nearest = nearest.masked_fill(ignored & (overlap < 0.5), -1)  # as in rcnnpipe.matching
    labels = sampled_labels(overlap.cpu().numpy(), nearest.cpu().numpy(), sampling)
    return Labelled(torch.from_numpy(labels).to(boxes.device), objects)


class Candidates(NamedTuple):
    """All regions of an image that may be learnt from.

    Attributes:
        boxes: (P, 4), the objects themselves first.
        labels: (P,) int64: 1..K, 0, or -1 where a region is neither.
        deltas: those of regions that are objects (F, 4), in their order.
    """

    boxes: Tensor
    labels: Tensor
    deltas: Tensor


def candidates_of(proposals: Tensor, truth: Truth, sampling: Sampling) -> Candidates:
    """The objects of an image and its proposals (P, 4), and what they are."""
    counted = truth.labels > 0
    own = truth.boxes[counted]
    boxes = torch.cat((own, proposals))
    labels, objects = label_regions(boxes, truth, sampling)
    # Of two objects in the same place each is itself, whichever the overlaps prefer.
    labels[: len(own)] = truth.labels[counted]
    rows = (labels > 0).nonzero().flatten()
    return Candidates(boxes, labels, box_ops.encode(boxes[rows], own[objects[rows]]))


def sample_regions(
    proposals: Tensor, truth: Truth, sampling: Sampling, images: int, random: np.random.Generator
) -> Sample:
    """Draw the regions that an image adds to a batch.

    At most ``sampling.foreground / images`` objects, the rest background, both without replacement;
    what is short is not filled up (the authors' ``minibatch.py``). The objects themselves are
    among the proposals.

    Args:
        proposals: (P, 4).
        truth: of the image.
        sampling: of the whole batch.
        images: of a batch.
        random: makes the draw.
    """
    candidates = candidates_of(proposals, truth, sampling)
    labels = candidates.labels.cpu().numpy()
    objects = np.flatnonzero(labels > 0)
    total = sampling.batch_size // images
    foreground = _draw(np.arange(len(objects)), round(sampling.foreground / images), random)
    background = _draw(np.flatnonzero(labels == 0), total - len(foreground), random)
    device = candidates.boxes.device
    rows = torch.from_numpy(np.concatenate((objects[foreground], background))).to(device)
    boxes = candidates.boxes[rows]
    deltas = torch.zeros_like(boxes)
    deltas[: len(foreground)] = candidates.deltas[torch.from_numpy(foreground).to(device)]
    return Sample(boxes, candidates.labels[rows], deltas)


def _draw(rows: np.ndarray, most: int, random: np.random.Generator) -> np.ndarray:
    return rows if len(rows) <= most else random.choice(rows, most, replace=False)


def delta_statistics(images: Iterable[Candidates], classes: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (K + 1, 4) of the deltas of each class.

    Over all regions of the data set that are objects, the annotated boxes among them (the
    authors' ``roidb.py``). A class without any, and the background, have mean 0 and deviation 1.

    Args:
        images: the regions of each; read once.
        classes: K + 1.
    """
    counts = torch.zeros(classes, 1, dtype=torch.float64)
    sums, squares = (torch.zeros(classes, 4, dtype=torch.float64) for _ in range(2))
    for one in images:
        labels, deltas = one.labels[one.labels > 0], one.deltas.double()
        counts.index_add_(0, labels, torch.ones(len(labels), 1, dtype=torch.float64))
        sums.index_add_(0, labels, deltas)
        squares.index_add_(0, labels, deltas.square())
    means = sums / counts.clamp(min=1)
    deviations = (squares / counts.clamp(min=1) - means.square()).clamp(min=0).sqrt()
    known = (counts > 0) & (deviations > 1e-6)
    return means.float(), torch.where(known, deviations, 1.0).float()
