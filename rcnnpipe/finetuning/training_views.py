"""What training sees of images, drawn: as they are, then mirrored, cut and in other colours."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from rcnnpipe.datasets import Dataset, Record
from rcnnpipe.datasets.masks import masks_of, rle_from
from rcnnpipe.randomness import generator
from rcnnpipe.report.panels import View, draw_views
from rcnnpipe.report.show import write_pictures
from rcnnpipe.training.augmentation import Augmentation
from rcnnpipe.training.region_targets import Truth
from rcnnpipe.training.seen import Seen, mirror

Pixels = npt.NDArray[np.uint8]
DRAWS = 3


@dataclass(frozen=True)
class Training:
    """How training changes images.

    Attributes:
        augmentation: at random.
        mirror: by chance; in training every image comes as often mirrored as not.
        draws: of each image.
        seed: of the draws.
    """

    augmentation: Augmentation
    mirror: bool = True
    draws: int = DRAWS
    seed: int = 0

    def views(self, dataset: Dataset, image: int, pixels: Pixels) -> list[View]:
        """An image (H, W, 3) as it is, and the draws, with their boxes, masks and keypoints."""
        record = dataset.records[image]
        whole, views = seen_of(record, pixels), [View("Ground truth", "", record, pixels)]
        for number in range(self.draws):
            key = (number, image)
            flip = self.mirror and bool(generator(self.seed, "mirror", *key).integers(2))
            start = mirror(whole, dataset.keypoint_names) if flip else whole
            seen = self.augmentation.apply(start, self.seed, key)
            factor = self.augmentation.factor(self.seed, key)
            changes = ["mirrored"] if flip else []
            changes += [] if factor == 1 else [f"{factor:.2f} of the size"]
            cut = seen.pixels.permute(1, 2, 0).contiguous().numpy()
            title, words = f"Draw {number + 1}", ", ".join(changes)
            views.append(View(title, words, record_of(seen, record), cut))
        return views


def seen_of(record: Record, pixels: Pixels) -> Seen:
    """A whole image with everything annotated in it.

    Labels are the numbers of the objects, counted from 1, negative for those that are never
    dropped as long as anything of them is seen: crowds.
    """
    count, (height, width) = len(record.boxes), record.size
    numbers = np.arange(1, count + 1) * np.where(record.crowd, -1, 1)
    masks = keypoints = None
    if record.segments is not None:
        masks = torch.zeros((count, height, width), dtype=torch.bool)
        for number, mask in enumerate(masks_of(record)):
            if mask is not None:
                masks[number] = torch.from_numpy(mask)
    if record.keypoints is not None:
        keypoints = torch.from_numpy(record.keypoints.astype(np.float32))
    return Seen(
        torch.from_numpy(pixels).permute(2, 0, 1),
        Truth(torch.from_numpy(record.boxes.astype(np.float32)), torch.from_numpy(numbers)),
        torch.empty((0, 4)),
        masks,
        keypoints,
    )


def record_of(seen: Seen, record: Record) -> Record:
    """What is left of a record's objects where :func:`seen_of` was changed.

    Areas stay those of whole objects.
    """
    rows = seen.truth.labels.abs().numpy() - 1
    segments = None
    if record.segments is not None and seen.masks is not None:
        drawn = [record.segments[row] is not None for row in rows.tolist()]
        masks = zip(drawn, seen.masks.numpy(), strict=True)
        segments = tuple(rle_from(mask) if there else None for there, mask in masks)
    return replace(
        record,
        size=seen.size,
        boxes=seen.truth.boxes.numpy().astype(np.float64),
        labels=record.labels[rows],
        difficult=record.difficult[rows],
        truncated=record.truncated[rows],
        crowd=record.crowd[rows],
        areas=record.areas[rows],
        segments=segments,
        keypoints=None if seen.keypoints is None else seen.keypoints.numpy().astype(np.float64),
    )


def draw_training(
    dataset: Dataset,
    records: Sequence[Record],
    training: Training,
    out: Path,
    *,
    size: int = 640,
    as_one: bool = False,
) -> list[Path]:
    """Draw what training sees and write it as :func:`~rcnnpipe.report.show.draw` does.

    Raises:
        DataError: an image or a mask cannot be read.
    """
    numbers = {record.image_id: number for number, record in enumerate(dataset.records)}

    def drawn(record: Record, pixels: Pixels) -> Callable[[int], Image.Image]:
        views = training.views(dataset, numbers[record.image_id], pixels)
        return lambda longest: draw_views(record, views, dataset.classes, longest)

    return write_pictures(records, drawn, out, size, as_one)
