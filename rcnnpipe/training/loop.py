"""The one training loop: batches, a loss, a schedule. It knows no system by name.

A step is a pure function of the network, the optimizer and the iteration's number: batches and
dropout masks are drawn for that number and for nothing else. So a checkpoint needs no state of a
generator, and resumed training equals uninterrupted training to the byte on the same device.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from rcnnpipe.randomness import generator
from rcnnpipe.training.average import Average
from rcnnpipe.training.checkpoints import load_checkpoint, save_checkpoint
from rcnnpipe.training.distributed import Ranks, require_agreement, sum_over_ranks
from rcnnpipe.training.optimizers import optimizer_tensors, restore_optimizer
from rcnnpipe.training.repeatable import repeatable
from rcnnpipe.training.schedules import Schedule
from rcnnpipe.training.stopping import (
    SMALLER_BATCH,
    KeepBad,
    images_told,
    memory_told,
    require_finite,
)
from rcnnpipe.training.validation import Validation

_log = logging.getLogger(__name__)
Piece = TypeVar("Piece")
PieceIn = TypeVar("PieceIn", contravariant=True)

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Batch(Generic[Piece]):
    """What one iteration learns from.

    Attributes:
        image_ids: of the whole batch, on all ranks; for messages.
        pieces: this rank's share, in parts small enough for the device; read once, one by one.
    """

    image_ids: Sequence[str]
    pieces: Iterable[Piece]


@dataclass(frozen=True)
class Part:
    """What one piece of a batch adds.

    Attributes:
        loss: scalar; the sum over all pieces and ranks is the loss of the batch.
        shares: curve name -> (2,) float numerator and denominator, summed over pieces, ranks and
            iterations before one is divided by the other: accuracies.
    """

    loss: Tensor
    shares: Mapping[str, Tensor]


class LossFunction(Protocol[PieceIn]):
    """From one piece of a batch to its part of the loss."""

    def __call__(self, piece: PieceIn, /) -> Part:
        """Run the network; called in training mode and under the precision's autocast."""


class Trainer:
    """A network in training: its optimizer, its place in the schedule, its curves.

    Attributes:
        network: in training mode, on the device of ``ranks``.
        iteration: how many steps were made.
        curves: name -> one value for each logged interval; "iteration", "loss", "learning-rate"
            and the shares of :class:`Part`. NaN where a share had a denominator of 0.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        ranks: Ranks,
        *,
        precision: str = "fp32",
        seed: int = 0,
        clip: float | None = None,
        average: Average | None = None,
    ) -> None:
        """Begin at iteration 0.

        Args:
            network: to be trained.
            optimizer: its groups may carry "lr_multiplier", a factor of the schedule's rate.
            schedule: iteration -> base rate.
            ranks: this process among all, and its device.
            precision: a key of :data:`PRECISIONS`; weights stay float32 in all of them.
            seed: of the dropout masks.
            clip: the largest L2 norm of all gradients together; longer ones are shortened to it.
            average: of the network's weights, which is what :meth:`outcome` gives then.
        """
        self.network = network.to(ranks.device).train()
        self.optimizer, self.schedule, self.ranks = optimizer, schedule, ranks
        self.iteration = 0
        self.curves: dict[str, list[float]] = {"iteration": [], "loss": [], "learning-rate": []}
        self._precision, self._seed = precision, seed
        self._clip, self._average = clip, average
        self._scaler = torch.amp.GradScaler(ranks.device.type, enabled=precision == "fp16")
        self._sums: dict[str, Tensor] = {}  # (2,) float64 since the last logged interval

    def step(self, pieces: Iterable[Piece], loss_function: LossFunction[Piece]) -> Tensor:
        """One iteration; returns the loss of the whole batch, still on the device."""
        rate = self.schedule(self.iteration)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_multiplier", 1.0)
        self.optimizer.zero_grad()
        device = self.ranks.device
        loss = torch.zeros((), device=device)
        shares: dict[str, Tensor] = {}
        key = generator(self._seed, "dropout", self.iteration, self.ranks.rank).integers(2**63)
        with repeatable(device, int(key)):
            for piece in pieces:
                dtype = PRECISIONS[self._precision]
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    part = loss_function(piece)
                self._scaler.scale(part.loss).backward()  # type: ignore[no-untyped-call]
                loss += part.loss.detach()
                for name, share in part.shares.items():
                    shares[name] = shares.get(name, 0) + share.detach()
        sum_over_ranks([*self._gradients(), loss, *shares.values()], self.ranks)
        if self._clip is not None:
            self._scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self._parameters(), self._clip)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        if self._average is not None:
            self._average.add(self.network, self.iteration)
        self.iteration += 1
        self._add({"loss": torch.stack((loss, torch.ones_like(loss))), **shares})
        return loss

    def outcome(self) -> AbstractContextManager[None]:
        """The network holds what training comes to: the average, or its weights as they are."""
        return self._average.in_effect(self.network) if self._average else nullcontext()

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self._parameters() if p.grad is not None]

    def _add(self, shares: Mapping[str, Tensor]) -> None:
        for name, share in shares.items():
            self._sums[name] = self._sums.get(name, 0) + share.double()

    def log(self, figures: Mapping[str, float] | None = None) -> dict[str, float]:
        """Close an interval: its means go to the curves and are returned.

        Args:
            figures: found after its last iteration, curve name -> value; where they were not asked
                for, their curves have a NaN.
        """
        means = {"iteration": float(self.iteration)}
        means |= {name: float(top / bottom) for name, (top, bottom) in self._sums.items()}
        means["learning-rate"] = self.schedule(self.iteration - 1)
        means |= figures or {}
        before = len(self.curves["iteration"])
        for name in self.curves | means:
            self.curves.setdefault(name, [math.nan] * before).append(means.get(name, math.nan))
        self._sums = {}
        return means

    def save(self, folder: Path, validation: Validation | None = None) -> None:
        """Keep everything that :meth:`resume` needs; only the first rank writes."""
        if not self.ranks.first:
            return
        parts: dict[str, Mapping[str, Tensor]] = {
            "network": self.network.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer),
            "average": self._average.values if self._average else {},
        }
        state = {
            "iteration": self.iteration,
            "curves": self.curves,
            "sums": {name: sums.tolist() for name, sums in self._sums.items()},
            "scaler": self._scaler.state_dict(),
        }
        if validation is not None:
            state["validation"] = validation.state()
            best = validation.best_tensors.items()
            parts["best"] = {name: torch.from_numpy(values) for name, values in best}
        tensors = {f"{part}/{x}": value for part, own in parts.items() for x, value in own.items()}
        save_checkpoint(folder, tensors, state)

    def resume(self, folder: Path, validation: Validation | None = None) -> None:
        """Go on from the checkpoint in a folder, where there is one; every rank reads it."""
        checkpoint = load_checkpoint(folder)
        found = checkpoint.state["iteration"] if checkpoint else 0
        require_agreement(found, self.ranks, "checkpoints")
        if checkpoint is None:
            return
        parts: dict[str, dict[str, Tensor]] = {}
        for name, value in checkpoint.tensors.items():
            part, _, rest = name.partition("/")
            parts.setdefault(part, {})[rest] = value
        self.network.load_state_dict(parts["network"])
        restore_optimizer(self.optimizer, parts.get("optimizer", {}))
        for name, value in (self._average.values if self._average else {}).items():
            value.copy_(parts["average"][name])
        if validation is not None:
            best = {name: value.numpy() for name, value in parts.get("best", {}).items()}
            validation.restore(checkpoint.state["validation"], best)
        self._scaler.load_state_dict(checkpoint.state["scaler"])
        self.iteration = found
        self.curves = checkpoint.state["curves"]
        self._sums = {
            name: torch.tensor(sums, dtype=torch.float64, device=self.ranks.device)
            for name, sums in checkpoint.state["sums"].items()
        }
        _log.info("going on after iteration %d, which an earlier run had reached", found)


def train(
    trainer: Trainer,
    batches: Iterator[Batch[Piece]],
    loss_function: LossFunction[Piece],
    iterations: int,
    *,
    folder: Path | None = None,
    checkpoint_every: int = 0,
    log_every: int = 100,
    validation: Validation | None = None,
    remedy: str = SMALLER_BATCH,
    keep_bad: KeepBad = None,
) -> Iterator[int]:
    """Train up to ``iterations``; yields the number of finished iterations after each.

    Args:
        trainer: fresh or resumed.
        batches: of the iterations from ``trainer.iteration`` on.
        loss_function: from a batch's piece to its part of the loss.
        iterations: where to stop, counted from the very beginning.
        folder: of the checkpoint, None to keep none.
        checkpoint_every: iterations between two checkpoints; the last iteration always makes one.
        log_every: iterations of an interval of the curves; the last one may be shorter, and those
            that end where the network is judged.
        validation: judges the network meanwhile and may end training earlier.
        remedy: what to do where the memory does not suffice, the end of a sentence.
        keep_bad: writes the batch of an iteration, counted from 0, whose loss is no number.

    Raises:
        DataError: the loss is no number; names the images. The checkpoint is one from before it.
        SettingError: the memory does not suffice.
    """
    unseen: tuple[Batch[Piece], Tensor, int] | None = None
    while trainer.iteration < iterations and not (validation and validation.ended):
        with memory_told(trainer.ranks.device, remedy):
            batch = next(batches)
            with images_told(batch.image_ids):
                loss = trainer.step(batch.pieces, loss_function)
        # One step late, so that the device never waits for the host to look at a number.
        _require_finite(unseen, keep_bad)
        unseen = (batch, loss, trainer.iteration)
        last = trainer.iteration == iterations
        looks = validation is not None and validation.due(trainer.iteration, iterations)
        logs = trainer.iteration % log_every == 0 or last or looks
        saves = last or (checkpoint_every > 0 and trainer.iteration % checkpoint_every == 0)
        if logs or saves:
            _require_finite(unseen, keep_bad)
            unseen = None
        figures = _look(trainer, validation) if validation is not None and looks else {}
        if logs:
            _tell(trainer.log(figures), iterations)
        if saves and folder is not None:
            trainer.save(folder, validation)
        yield trainer.iteration


def _look(trainer: Trainer, validation: Validation) -> dict[str, float]:
    """Judge what training comes to so far; random state and weights are the same afterwards."""
    kept = torch.random.fork_rng(devices=[])  # a network built anew draws on the CPU
    with repeatable(trainer.ranks.device, 0), kept, trainer.outcome():
        return validation.look(trainer.iteration)


def _require_finite(unseen: tuple[Batch[Any], Tensor, int] | None, keep_bad: KeepBad) -> None:
    if unseen is not None:
        batch, loss, iteration = unseen
        require_finite(loss, iteration, batch.image_ids, keep_bad)


def _tell(means: Mapping[str, float], iterations: int) -> None:
    values = ", ".join(
        f"{name.replace('-', ' ')} {value:.4g}"
        for name, value in means.items()
        if name != "iteration"
    )
    _log.info("iteration %d of %d: %s", round(means["iteration"]), iterations, values)
