"""Fine-tuning a classifier of windows: batches of warped windows, their loss, what is trained.

Girshick et al. 2014, section 2.3. Images are decoded ahead by threads and kept for a while; each is
copied to the device once for all its windows of a batch and warped there.

Vocabulary: B windows of a piece, S their side, K classes.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rcnnpipe.ahead import ahead
from rcnnpipe.datasets.pixels import read_pixels
from rcnnpipe.datasets.records import Record
from rcnnpipe.errors import SettingError
from rcnnpipe.models.backbones import Network
from rcnnpipe.models.warp import Crop, warp
from rcnnpipe.systems.rcnn import CROPS, Sampling, Solver
from rcnnpipe.training.average import Average
from rcnnpipe.training.distributed import Ranks
from rcnnpipe.training.loop import Batch, Part, Trainer
from rcnnpipe.training.optimizers import make_optimizer
from rcnnpipe.training.schedules import Schedule, cosine, steps, warmed_up
from rcnnpipe.training.windows import Draw, Windows, by_image, draw_batch, image_ids_of

Piece = tuple[Tensor, Tensor]  # (B, 3, S, S) network input, or (B, D); (B,) int64 labels
_AHEAD_BYTES = 2**28  # decoded images that wait for the device


class PixelCache:
    """Decoded images, kept while they fit into a limit; the one unused for longest goes first.

    Safe in threads.
    """

    def __init__(self, records: Sequence[Record], limit: int) -> None:
        """Keep at most ``limit`` bytes of the images of ``records``."""
        self._records, self._limit = records, limit
        self._held: OrderedDict[int, npt.NDArray[np.uint8]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __call__(self, number: int) -> npt.NDArray[np.uint8]:
        """The image (H, W, 3) of record ``number``; not to be written to."""
        with self._lock:
            if number in self._held:
                self._held.move_to_end(number)
                return self._held[number]
        image = read_pixels(self._records[number])
        with self._lock:
            if number not in self._held and image.nbytes <= self._limit:
                self._held[number] = image
                self._bytes += image.nbytes
            while self._bytes > self._limit:
                self._bytes -= self._held.popitem(last=False)[1].nbytes
        return image


@dataclass(frozen=True)
class WindowSource:
    """Batches of windows, any iteration by its number.

    Attributes:
        windows: of the whole data set.
        records: its images.
        network: for its crop and preprocessing.
        sampling: what a batch is.
        ranks: this process takes every ``world``-th window of a batch.
        seed: of the draws.
        accumulate: pieces in which a batch is computed.
        workers: threads that decode.
        cache_bytes: decoded images kept.
    """

    windows: Windows
    records: Sequence[Record]
    network: Network
    sampling: Sampling
    ranks: Ranks
    seed: int = 0
    accumulate: int = 1
    workers: int = 1
    cache_bytes: int = 2**30

    def batches(self, start: int, stop: int) -> Iterator[Batch[Piece]]:
        """The batches of iterations ``start`` up to, not including, ``stop``."""
        ids = [record.image_id for record in self.records]
        numbers = (
            number
            for iteration in range(start, stop)
            for groups in self._plan(self._draw(iteration))
            for number, _ in groups
        )
        cache = PixelCache(self.records, self.cache_bytes)
        images = ahead(cache, numbers, self.workers, self._depth())
        for iteration in range(start, stop):
            draw = self._draw(iteration)
            pieces = (self._warped(groups, images) for groups in self._plan(draw))
            yield Batch(image_ids_of(self.windows, draw, ids), pieces)

    def _draw(self, iteration: int) -> Draw:
        return draw_batch(self.windows, self.sampling, self.seed, iteration)

    def _plan(self, draw: Draw) -> list[list[tuple[int, Draw]]]:
        """For each piece of this rank's share, images in the order they are needed."""
        share = draw.part(self.ranks.rank, self.ranks.world)
        return [
            by_image(self.windows, share.part(number, self.accumulate))
            for number in range(self.accumulate)
        ]

    def _depth(self) -> int:
        """How many images may be decoded ahead: those of two batches, if they are not huge."""
        largest = max(3 * record.size[0] * record.size[1] for record in self.records)
        return max(self.workers, min(2 * self.sampling.batch_size, _AHEAD_BYTES // largest), 1)

    def _warped(
        self, groups: list[tuple[int, Draw]], images: Iterator[npt.NDArray[np.uint8]]
    ) -> Piece:
        network, device = self.network, self.ranks.device
        parts = []
        for _, draw in groups:
            image = torch.from_numpy(next(images)).to(device, non_blocking=True).permute(2, 0, 1)
            boxes = torch.from_numpy(self.windows.boxes[draw.rows])
            flip = torch.from_numpy(draw.flip)
            parts.append(warp(image, boxes, network.crop, network.preprocessing, flip))
        labels = np.concatenate([self.windows.labels[draw.rows] for _, draw in groups])
        return torch.cat(parts), torch.from_numpy(labels).long().to(device, non_blocking=True)


@dataclass(frozen=True)
class WindowLoss:
    """Softmax loss of windows, averaged over the whole batch on all ranks.

    Attributes:
        network: whose logits (B, K + 1) are taken.
        batch_size: windows of the whole batch, the divisor.
        source: the layer whose values windows are, if they are not images.
    """

    network: Network
    batch_size: int
    source: str = "image"

    def __call__(self, piece: Piece, /) -> Part:
        """The piece's part of the loss, and how many of its windows are told rightly."""
        images, labels = piece
        logits = self.network.logits(images, self.source).float()
        loss = cross_entropy(logits, labels, reduction="sum") / self.batch_size
        right = logits.detach().argmax(1) == labels
        foreground = labels > 0
        return Part(
            loss,
            {
                "foreground-accuracy": _share(right, foreground),
                "background-accuracy": _share(right, ~foreground),
            },
        )


def _share(right: Tensor, of: Tensor) -> Tensor:
    return torch.stack(((right & of).sum(), of.sum())).float()


def freeze_below(network: Network, layer: str | None) -> None:
    """Let only ``layer`` and what follows it be trained; None trains everything.

    Raises:
        SettingError: the network has no such layer.
    """
    if layer is None:
        return
    if layer not in network.layer_names:
        raise SettingError(
            f"{network.name} has no layer '{layer}' to train from; its layers are "
            f"{', '.join(network.layer_names)}"
        )
    there = dict(network.named_modules())  # of a detector's network parts are gone
    for name in network.layer_names[: network.layer_names.index(layer)]:
        for module in network.architecture.layers[name].modules:
            if module in there:
                there[module].requires_grad_(False)


def parameter_groups(
    module: torch.nn.Module, solver: Solver, classifier: str = ""
) -> list[dict[str, Any]]:
    """Weights and biases of the layers and of the classifier, with their rates and decays.

    Args:
        module: what is trained.
        solver: the multipliers.
        classifier: path of the classifier in it, if that has a rate of its own.

    Returns:
        groups for an optimizer, each with "lr_multiplier" for the loop.
    """
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            key = (bool(classifier) and name.startswith(f"{classifier}."), name.endswith(".bias"))
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "lr_multiplier": (solver.classifier_multiplier if new else 1.0)
            * (solver.bias_multiplier if bias else 1.0),
            "weight_decay": 0.0 if bias else solver.weight_decay,
        }
        for (new, bias), parameters in groups.items()
    ]


def prepare_network(
    network: Network,
    outputs: int,
    generator: torch.Generator,
    *,
    crop: str = "warp",
    padding: int | None = None,
    train_from: str | None = None,
    keep_statistics: bool = True,
) -> None:
    """Make a pre-trained network one that can be fine-tuned, in place.

    Args:
        network: as its weights left it.
        outputs: K + 1.
        generator: of the new classifier's weights.
        crop: a key of ``CROPS``.
        padding: context in window pixels, None for the crop's or the network's own.
        train_from: see :func:`freeze_below`.
        keep_statistics: whether batch norms stay as pre-training left them. A batch of warped
            windows, a quarter of them objects, has other statistics than an image at test time.

    Raises:
        SettingError: a layer or padding that the network or crop does not have.
    """
    if crop == "tight" and padding:
        raise SettingError(f"a tight crop has no padding, but {padding} is set; use --crop warp")
    own = {"padding": network.architecture.padding} if padding is None else {"padding": padding}
    network.crop = Crop(network.crop.size, **(own | dict(CROPS[crop])))
    network.replace_classifier(outputs, generator)
    if keep_statistics:
        network.freeze_batch_norm()
    freeze_below(network, train_from)


def new_trainer(
    network: torch.nn.Module, solver: Solver, ranks: Ranks, precision: str = "fp32", seed: int = 0
) -> Trainer:
    """A trainer by the paper's rules; see :class:`Solver`."""
    network.to(ranks.device)
    classifier = network.architecture.classifier if isinstance(network, Network) else ""
    optimizer = make_optimizer(parameter_groups(network, solver, classifier), solver)
    return Trainer(
        *(network, optimizer, schedule_of(solver), ranks),
        precision=precision,
        seed=seed,
        clip=solver.clip,
        average=Average(network, solver.average) if solver.average is not None else None,
    )


def schedule_of(solver: Solver) -> Schedule:
    """The solver's rates.

    Raises:
        SettingError: they would still grow at the end.
    """
    if 0 < solver.iterations < solver.warm_up:
        raise SettingError(
            f"--warm-up {solver.warm_up} is more than all {solver.iterations} iterations; lower it"
        )
    if solver.schedule == "cosine":
        schedule = cosine(solver.learning_rate, solver.iterations)
    else:
        schedule = steps(solver.learning_rate, solver.step, solver.gamma)
    return warmed_up(schedule, solver.warm_up)
