"""Negatives that are nearly the same: which of them count.

Vocabulary: R regions of an image.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torchvision

from rcnnpipe.artifacts.features import Features
from rcnnpipe.errors import ArtifactError

Kept = npt.NDArray[np.bool_]
_OVERLAP = 0.7  # He et al. 2014, section 4.1


def all_regions(features: Features, rows: slice) -> Kept:
    """Every region counts, as in R-CNN."""
    return np.ones(rows.stop - rows.start, bool)


def different_cells(features: Features, rows: slice) -> Kept:
    """Of regions that are pooled from the same cells of the same map, the first one.

    The authors' ``spp_features_convX_to_poolX.m``. Like :func:`little_overlap` it is told once for
    all classes.

    Raises:
        ArtifactError: the features are not pooled from maps.
    """
    if features.cells is None or features.scale is None:
        raise ArtifactError(
            f"{features.path} does not say from which cells its regions were pooled, because its "
            "network has no pyramid; use --thin overlap"
        )
    places = np.column_stack((features.scale[rows], features.cells[rows]))
    kept = np.zeros(len(places), bool)
    kept[np.unique(places, axis=0, return_index=True)[1]] = True
    return kept


def little_overlap(features: Features, rows: slice) -> Kept:
    """No region that overlaps one before it, which counts, by more than 0.7.

    He et al. 2014, section 4.1, without their code. The ground truth comes first in an image, then
    proposals by their rank. It is told once for all classes, so a region may also go because of one
    that is no negative of a class.
    """
    boxes: Any = torch.from_numpy(features.boxes[rows])
    rank = torch.arange(len(boxes), 0, -1, dtype=torch.float32)
    kept = np.zeros(len(boxes), bool)
    kept[torchvision.ops.nms(boxes, rank, _OVERLAP).numpy()] = True
    return kept


RULES: dict[str, Callable[[Features, slice], Kept]] = {
    "none": all_regions,
    "cells": different_cells,
    "overlap": little_overlap,
}
