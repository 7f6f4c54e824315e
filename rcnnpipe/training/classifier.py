"""Pre-training a classifier: batches of windows, and their loss.

Vocabulary: T examples, B windows of a batch, S their side, K classes. Labels 1..K; 0 is background,
which only :attr:`Pretraining.background` gives examples of.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rcnnpipe.ahead import ahead
from rcnnpipe.boxes import iou
from rcnnpipe.datasets.records import Record
from rcnnpipe.models.backbones import Network
from rcnnpipe.models.preprocessing import Preprocessing
from rcnnpipe.models.warp import Crop, warp
from rcnnpipe.randomness import generator
from rcnnpipe.systems.pretraining import Pretraining
from rcnnpipe.systems.rcnn import Solver
from rcnnpipe.training.distributed import Ranks
from rcnnpipe.training.examples import Examples, Floats, Integers, jittered, patches
from rcnnpipe.training.finetuning import PixelCache
from rcnnpipe.training.loop import Batch, Part
from rcnnpipe.training.sizes import crop_at, preprocessing_at, size_of_epoch

Piece = tuple[Tensor, Tensor]  # (B, 3, S, S) network input, (B,) int64 labels

_BACKGROUND_OVERLAP = 0.3  # below this IoU with every object; Girshick et al. 2014, 2.3
_BACKGROUND_TRIES = 20


@dataclass(frozen=True)
class CropSource:
    """Batches of windows, any iteration by its number.

    Attributes:
        examples: what there is.
        records: its images.
        network: for its crop and preprocessing.
        plan: what a batch is.
        ranks: this process takes every ``world``-th window of a batch.
        seed: of the draws.
        workers: threads that prepare batches.
        cache_bytes: decoded images kept.
    """

    examples: Examples
    records: Sequence[Record]
    network: Network
    plan: Pretraining
    ranks: Ranks
    seed: int = 0
    workers: int = 1
    cache_bytes: int = 2**30

    @property
    def crop(self) -> Crop:
        """The window's kind: the network's own for objects, without context for patches."""
        crop = self.network.crop
        return replace(crop, padding=0, mode="warp") if self.examples.whole_images else crop

    @property
    def objects(self) -> int:
        """Examples in a batch; the others are background."""
        wanted = round(self.plan.batch_size * (1 - self.plan.background))
        return max(1, min(wanted, len(self.examples.boxes)))

    @property
    def windows_of_batch(self) -> int:
        """Windows in a batch, where every background window finds its place."""
        return self.objects + self._others

    @property
    def _others(self) -> int:
        """Background windows in a batch."""
        share = 0.0 if self.examples.whole_images else self.plan.background
        return round(self.plan.batch_size * share)

    @property
    def iterations_of_epoch(self) -> int:
        """Whole batches of an epoch; what is left over waits for the next shuffle."""
        return len(self.examples.boxes) // self.objects

    def batches(self, start: int, stop: int) -> Iterator[Batch[Piece]]:
        """The batches of iterations ``start`` up to, not including, ``stop``."""
        cache = PixelCache(self.records, self.cache_bytes)
        return ahead(lambda number: self._batch(number, cache), range(start, stop), self.workers)

    def sample(self, most: int = 32) -> Tensor:
        """Some windows (B, 3, S, S) of the first batch; the same on every rank."""
        alone = replace(self, ranks=Ranks(0, 1, self.ranks.device))
        windows, _ = next(iter(next(alone.batches(0, 1)).pieces))
        return windows[:most]

    def _batch(self, iteration: int, cache: PixelCache) -> Batch[Piece]:
        boxes, images, labels, flip = self.draw(iteration)
        ids = [self.records[image].image_id for image in images]
        share = slice(self.ranks.rank, None, self.ranks.world)
        epoch = iteration // self.iterations_of_epoch
        size = size_of_epoch(self.plan, self.crop.size, self.seed, epoch)
        windows = warp_regions(
            *(cache, images[share], boxes[share], flip[share]),
            crop_at(self.crop, size),
            preprocessing_at(self.network.preprocessing, size),
        )
        return Batch(ids, [(windows, torch.from_numpy(labels[share]))])

    def draw(self, iteration: int) -> tuple[Floats, Integers, Integers, npt.NDArray[np.bool_]]:
        """Boxes (B, 4), image numbers (B,), labels (B,) and mirroring (B,) of an iteration."""
        epoch, place = divmod(iteration, self.iterations_of_epoch)
        order = generator(self.seed, "pretrain order", epoch).permutation(len(self.examples.boxes))
        rows = order[place * self.objects : (place + 1) * self.objects]
        random = generator(self.seed, "pretrain", iteration)
        boxes = self.examples.boxes[rows]
        if self.examples.whole_images:
            boxes = patches(boxes, random.random((len(rows), 2), np.float32))
        else:
            jitter = self.plan.jitter
            boxes = jittered(boxes, random.uniform(-jitter, jitter, (len(rows), 4)))
        images, labels = self.examples.images[rows], self.examples.labels[rows]
        if self._others:
            ground, places = self._background(random, self._others)
            boxes = np.concatenate((boxes, ground))
            images = np.concatenate((images, places))
            labels = np.concatenate((labels, np.zeros(len(ground), np.int64)))
        flip = (random.random(len(boxes)) < 0.5) & self.plan.mirror
        return boxes, images, labels, flip

    def _background(self, random: np.random.Generator, count: int) -> tuple[Floats, Integers]:
        """Up to ``count`` windows of random images that hold no object; fewer in crowded images."""
        images = random.integers(len(self.records), size=count)
        found: list[tuple[Floats, int]] = []
        for image in images.tolist():
            record = self.records[image]
            tries = _random_boxes(random, record.size)
            overlaps = iou(torch.from_numpy(tries), torch.from_numpy(record.boxes).float())
            free = np.flatnonzero((overlaps < _BACKGROUND_OVERLAP).all(1).numpy())
            if len(free):
                found.append((tries[free[0]], image))
        boxes = np.array([box for box, _ in found], np.float32).reshape(-1, 4)
        return boxes, np.array([image for _, image in found], np.int64)


def _random_boxes(random: np.random.Generator, size: tuple[int, int]) -> Floats:
    """(tries, 4) boxes inside an image; sides log-uniform between a tenth and all of it."""
    extent = np.array([size[1], size[0]], np.float64)
    sides = extent * 10 ** -random.random((_BACKGROUND_TRIES, 2))
    low = random.random((_BACKGROUND_TRIES, 2)) * (extent - sides)
    return np.concatenate((low, low + sides), 1).astype(np.float32)


def warp_regions(
    read: Callable[[int], npt.NDArray[np.uint8]],
    images: Integers,
    boxes: Floats,
    flip: npt.NDArray[np.bool_],
    crop: Crop,
    preprocessing: Preprocessing,
) -> Tensor:
    """Windows (B, 3, S, S) on the CPU of regions that lie in many images, in their order."""
    size = crop.size
    windows = torch.empty((len(boxes), 3, size, size), memory_format=torch.channels_last)
    for image in np.unique(images):
        rows = torch.from_numpy(np.flatnonzero(images == image))
        pixels = torch.from_numpy(read(int(image))).permute(2, 0, 1)
        windows[rows] = warp(
            pixels,
            torch.from_numpy(boxes)[rows],
            crop,
            preprocessing,
            torch.from_numpy(flip)[rows],
        )
    return windows


@dataclass(frozen=True)
class ClassLoss:
    """Softmax loss, averaged over the batch on all ranks, and the share of right answers.

    Attributes:
        network: whose logits (B, K + 1) are taken.
        batch_size: windows of the whole batch, the divisor.
        device: where the network is.
    """

    network: Network
    batch_size: int
    device: torch.device

    def __call__(self, piece: Piece, /) -> Part:
        """The piece's part of the loss."""
        images, labels = (tensor.to(self.device, non_blocking=True) for tensor in piece)
        logits = self.network.logits(images).float()
        loss = cross_entropy(logits, labels, reduction="sum") / self.batch_size
        right = (logits.detach().argmax(1) == labels).sum()
        return Part(loss, {"accuracy": torch.stack((right, torch.tensor(len(labels)).to(right)))})


def solver_of(plan: Pretraining, iterations_of_epoch: int) -> Solver:
    """The plan's steps for the trainer; all layers learn at one rate."""
    return Solver(
        iterations=plan.epochs * iterations_of_epoch,
        learning_rate=plan.learning_rate,
        step=plan.step * iterations_of_epoch,
        gamma=plan.gamma,
        momentum=plan.momentum,
        weight_decay=plan.weight_decay,
        bias_multiplier=plan.bias_multiplier,
        classifier_multiplier=1.0,
    )
