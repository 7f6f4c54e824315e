"""Examples for a classifier: annotated objects, or images by the folders they lie in.

Vocabulary: N images, T examples, K classes. Labels 1..K; 0 is background.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rcnnpipe.datasets.policy import training_labels
from rcnnpipe.datasets.records import BACKGROUND, Dataset
from rcnnpipe.errors import DataError
from rcnnpipe.systems.pretraining import PATCH_SHARE

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Examples:
    """What there is to learn from.

    Attributes:
        classes: ``classes[0] == "background"``.
        boxes: (T, 4) float32: an object, or the whole image.
        images: (T,) the number of the image each lies in.
        labels: (T,) 1..K.
        whole_images: whether the boxes are whole images, of which windows are patches.
    """

    classes: tuple[str, ...]
    boxes: Floats
    images: Integers
    labels: Integers
    whole_images: bool


def examples_of(dataset: Dataset) -> Examples:
    """The annotated objects; of images without annotations the folders they lie in.

    Crowds are no examples, difficult objects are.

    Raises:
        DataError: neither objects nor at least two folders of images.
    """
    if dataset.source == "folder":
        return _by_folder(dataset)
    found = [training_labels(record, crowd="drop") for record in dataset.records]
    counts = [int((labels > 0).sum()) for labels in found]
    if not sum(counts):
        raise DataError(f"no image of {dataset.name} has an object to learn from")
    boxes = [
        record.boxes[labels > 0] for record, labels in zip(dataset.records, found, strict=True)
    ]
    return Examples(
        dataset.classes,
        np.concatenate(boxes).astype(np.float32),
        np.repeat(np.arange(len(counts)), counts),
        np.concatenate([labels[labels > 0] for labels in found]),
        whole_images=False,
    )


def _by_folder(dataset: Dataset) -> Examples:
    folders = [record.image_id.rpartition("/")[0] for record in dataset.records]
    names = sorted(set(folders))
    if "" in names or len(names) < 2:
        raise DataError(
            f"{dataset.name} has neither annotations nor a folder of images for each of at least "
            "two classes, so there is nothing to classify"
        )
    sizes = np.array([record.size for record in dataset.records], np.float32)  # (N, 2) h, w
    return Examples(
        (BACKGROUND, *names),
        np.concatenate((np.zeros_like(sizes), sizes[:, ::-1]), 1),
        np.arange(len(folders)),
        np.array([1 + names.index(folder) for folder in folders]),
        whole_images=True,
    )


def patches(boxes: Floats, places: Floats) -> Floats:
    """Square patches of the middle squares of boxes (T, 4).

    Args:
        boxes: (T, 4) whole images.
        places: (T, 2) in 0..1, where the patch is in the room it has; 0.5 is the middle.
    """
    size = boxes[:, 2:] - boxes[:, :2]
    square = size.min(1, keepdims=True)
    corner = boxes[:, :2] + (size - square) / 2 + places * (1 - PATCH_SHARE) * square
    return np.concatenate((corner, corner + PATCH_SHARE * square), 1).astype(np.float32)


def jittered(boxes: Floats, changes: npt.NDArray[np.floating]) -> Floats:
    """Boxes (T, 4) shifted and scaled.

    Args:
        boxes: (T, 4).
        changes: (T, 4): shifts in x, y as shares of the sides, logarithms of the sides' scales.
    """
    size = boxes[:, 2:] - boxes[:, :2]
    centre = boxes[:, :2] + size / 2 + changes[:, :2] * size
    half = size * np.exp(changes[:, 2:]) / 2
    return np.concatenate((centre - half, centre + half), 1).astype(np.float32)
