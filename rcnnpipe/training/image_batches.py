"""Batches of whole images for a detector: which, mirrored or not, at which scale, what is in them.

Girshick 2015, section 2.3: images are taken in a random order until all have been taken, each as it
is and mirrored. Vocabulary: N images of a piece, P proposals and G objects of an image.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rcnnpipe.ahead import ahead
from rcnnpipe.datasets.policy import Policy, labels_under
from rcnnpipe.datasets.records import Record
from rcnnpipe.models.image_view import ImageView, resize, to_batch
from rcnnpipe.models.preprocessing import Preprocessing
from rcnnpipe.randomness import generator
from rcnnpipe.training.augmentation import UNCHANGED, Augmentation
from rcnnpipe.training.distributed import Ranks
from rcnnpipe.training.finetuning import PixelCache
from rcnnpipe.training.loop import Batch
from rcnnpipe.training.region_targets import Truth
from rcnnpipe.training.seen import Seen, mirror

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Example:
    """One image of a batch; boxes are in pixels of what is seen of the original image.

    Attributes:
        size: (height, width) of what is seen: all of it, mirrored or not, or a crop.
        scale: resized over original.
        proposals: (P, 4).
        truth: its objects.
        key: iteration and place in the batch, from which random choices are seeded.
    """

    size: tuple[int, int]
    scale: float
    proposals: Tensor
    truth: Truth
    key: tuple[int, int]


Piece = tuple[Tensor, list[Example]]  # (N, 3, H, W) network input, and what is in each image


@dataclass(frozen=True)
class ImageSource:
    """Batches of images, any iteration by its number.

    Attributes:
        records: of the data set.
        proposals: boxes (P, 4) of each record, empty where the detector finds its own.
        view: how images become network input; of several scales one is drawn for each image.
        preprocessing: what the weights expect of pixels.
        policy: which objects count.
        images: of a batch.
        ranks: this process takes every ``world``-th image of a batch.
        mirror: whether images come mirrored as well.
        augmentation: what else is changed at random.
        seed: of the draws.
        accumulate: pieces in which a batch is computed.
        workers: threads that decode.
        cache_bytes: decoded images kept.
    """

    records: Sequence[Record]
    proposals: Sequence[Floats]
    view: ImageView
    preprocessing: Preprocessing
    policy: Policy
    images: int
    ranks: Ranks
    mirror: bool = True
    augmentation: Augmentation = UNCHANGED
    seed: int = 0
    accumulate: int = 1
    workers: int = 1
    cache_bytes: int = 2**30

    def batches(self, start: int, stop: int) -> Iterator[Batch[Piece]]:
        """The batches of iterations ``start`` up to, not including, ``stop``."""
        cache = PixelCache(self.records, self.cache_bytes)
        share = slice(self.ranks.rank, None, self.ranks.world)
        todo = (
            (iteration, place, *choice)
            for iteration in range(start, stop)
            for place, choice in list(enumerate(self.draw(iteration)))[share]
        )
        ready = ahead(lambda one: self._prepared(cache, *one), todo, self.workers)
        own = len(range(self.images)[share])
        for iteration in range(start, stop):
            prepared = [next(ready) for _ in range(own)]
            parts = [prepared[number :: self.accumulate] for number in range(self.accumulate)]
            ids = [self.records[image].image_id for image, _ in self.draw(iteration)]
            yield Batch(ids, [self._piece(part) for part in parts if part])

    def only(self, numbers: Sequence[int]) -> "ImageSource":
        """The source of some of the records."""
        return replace(
            self,
            records=[self.records[number] for number in numbers],
            proposals=[self.proposals[number] for number in numbers],
        )

    def draw(self, iteration: int) -> list[tuple[int, bool]]:
        """The images of an iteration: number of the record, and whether it is mirrored."""
        return draw_images(len(self.records), self.images, self.mirror, self.seed, iteration)

    def truth_of(self, image: int) -> Truth:
        """The objects of a record under the policy; those that are dropped are not among them."""
        record = self.records[image]
        labels = labels_under(record, self.policy)
        kept = labels != 0
        boxes = record.boxes[kept].astype(np.float32)
        return Truth(torch.from_numpy(boxes), torch.from_numpy(labels[kept]))

    def _prepared(
        self, cache: PixelCache, iteration: int, place: int, image: int, flip: bool
    ) -> tuple[Tensor, Example]:
        key = (iteration, place)
        seen = self._seen(cache(image), image)
        seen = self.augmentation.apply(mirror(seen) if flip else seen, self.seed, key)
        random = generator(self.seed, "scale of an image", *key)
        shorter = self.view.scales[int(random.integers(len(self.view.scales)))]
        scale = self.view.scale_of(seen.size, shorter) * self.augmentation.factor(self.seed, key)
        prepared = self.preprocessing.apply(seen.pixels)
        resized = resize(prepared, self.view.resized_size(seen.size, scale))
        return resized, Example(seen.size, scale, seen.proposals, seen.truth, key)

    def _seen(self, pixels: npt.NDArray[np.uint8], image: int) -> Seen:
        """A whole image of ``pixels`` (H, W, 3)."""
        return Seen(
            torch.from_numpy(pixels).permute(2, 0, 1),
            self.truth_of(image),
            torch.from_numpy(np.ascontiguousarray(self.proposals[image], np.float32)),
        )

    def _piece(self, prepared: list[tuple[Tensor, Example]]) -> Piece:
        images = to_batch([image for image, _ in prepared], self.view.multiple)
        device = self.ranks.device
        return images.to(device, non_blocking=True), [example for _, example in prepared]


def draw_images(
    count: int, images: int, mirrored: bool, seed: int, iteration: int
) -> list[tuple[int, bool]]:
    """Which of ``count`` images are in a batch of ``images``, and whether each is mirrored.

    All are taken, as they are and with ``mirrored`` the other way round as well, before any comes
    again.
    """
    total = count * (2 if mirrored else 1)
    chosen = []
    for place in range(iteration * images, (iteration + 1) * images):
        epoch, number = divmod(place, total)
        drawn = int(_order(seed, epoch, total)[number])
        image, flip = divmod(drawn, 2) if mirrored else (drawn, 0)
        chosen.append((image, bool(flip)))
    return chosen


@lru_cache(maxsize=2)  # every draw of an epoch asks for it
def _order(seed: int, epoch: int, total: int) -> npt.NDArray[np.int64]:
    return generator(seed, "images of an epoch", epoch).permutation(total)
