"""The one training loop: batches, a loss, a schedule. It knows no system by name.

A step is a pure function of the network, the optimizer and the iteration's number: batches and
dropout masks are drawn for that number and for nothing else. So a checkpoint needs no state of a
generator, and resumed training equals uninterrupted training to the byte on the same device.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from rcnnpipe.devices import is_lack_of_memory
from rcnnpipe.errors import DataError, SettingError
from rcnnpipe.randomness import generator
from rcnnpipe.training.checkpoints import load_checkpoint, save_checkpoint
from rcnnpipe.training.distributed import Ranks, require_agreement, sum_over_ranks
from rcnnpipe.training.schedules import Schedule

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
    ) -> None:
        """Begin at iteration 0.

        Args:
            network: to be trained.
            optimizer: its groups may carry "lr_multiplier", a factor of the schedule's rate.
            schedule: iteration -> base rate.
            ranks: this process among all, and its device.
            precision: a key of :data:`PRECISIONS`; weights stay float32 in all of them.
            seed: of the dropout masks.
        """
        self.network = network.to(ranks.device).train()
        self.optimizer, self.schedule, self.ranks = optimizer, schedule, ranks
        self.iteration = 0
        self.curves: dict[str, list[float]] = {"iteration": [], "loss": [], "learning-rate": []}
        self._precision, self._seed = precision, seed
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
        with _repeatable(device, int(key)):
            for piece in pieces:
                dtype = PRECISIONS[self._precision]
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    part = loss_function(piece)
                self._scaler.scale(part.loss).backward()  # type: ignore[no-untyped-call]
                loss += part.loss.detach()
                for name, share in part.shares.items():
                    shares[name] = shares.get(name, 0) + share.detach()
        sum_over_ranks([*self._gradients(), loss, *shares.values()], self.ranks)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.iteration += 1
        self._add({"loss": torch.stack((loss, torch.ones_like(loss))), **shares})
        return loss

    def _gradients(self) -> list[Tensor]:
        parameters = (p for group in self.optimizer.param_groups for p in group["params"])
        return [p.grad for p in parameters if p.grad is not None]

    def _add(self, shares: Mapping[str, Tensor]) -> None:
        for name, share in shares.items():
            self._sums[name] = self._sums.get(name, 0) + share.double()

    def log(self) -> dict[str, float]:
        """Close an interval: its means go to the curves and are returned."""
        means = {"iteration": float(self.iteration)}
        means |= {name: float(top / bottom) for name, (top, bottom) in self._sums.items()}
        means["learning-rate"] = self.schedule(self.iteration - 1)
        for name, mean in means.items():
            self.curves.setdefault(name, []).append(mean)
        self._sums = {}
        return means

    def save(self, folder: Path) -> None:
        """Keep everything that :meth:`resume` needs; only the first rank writes."""
        if not self.ranks.first:
            return
        tensors = {f"network/{name}": value for name, value in self.network.state_dict().items()}
        for number, entry in self.optimizer.state_dict()["state"].items():
            for name, value in entry.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{number}/{name}"] = value
        state = {
            "iteration": self.iteration,
            "curves": self.curves,
            "sums": {name: sums.tolist() for name, sums in self._sums.items()},
            "scaler": self._scaler.state_dict(),
        }
        save_checkpoint(folder, tensors, state)

    def resume(self, folder: Path) -> None:
        """Go on from the checkpoint in a folder, where there is one; every rank reads it."""
        checkpoint = load_checkpoint(folder)
        found = checkpoint.state["iteration"] if checkpoint else 0
        require_agreement(found, self.ranks, "checkpoints")
        if checkpoint is None:
            return
        network: dict[str, Tensor] = {}
        entries: dict[int, dict[str, Tensor]] = {}
        for name, value in checkpoint.tensors.items():
            part, _, rest = name.partition("/")
            if part == "network":
                network[rest] = value
            else:
                number, _, key = rest.partition("/")
                entries.setdefault(int(number), {})[key] = value
        self.network.load_state_dict(network)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": entries, "param_groups": groups})
        self._scaler.load_state_dict(checkpoint.state["scaler"])
        self.iteration = found
        self.curves = checkpoint.state["curves"]
        self._sums = {
            name: torch.tensor(sums, dtype=torch.float64, device=self.ranks.device)
            for name, sums in checkpoint.state["sums"].items()
        }
        _log.info("going on after iteration %d, which an earlier run had reached", found)


@contextmanager
def _repeatable(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's generator of the device for one step, and put everything back afterwards.

    Dropout draws from that generator, layers cannot be handed one. Between steps the process's
    random state is untouched, and a step's masks depend on nothing but the seed. cuDNN is held to
    algorithms that always add up in the same order.
    """
    if device.type == "cuda":
        source = torch.cuda.default_generators[device.index or 0]
    else:
        source = torch.default_generator
    state, free = source.get_state(), torch.backends.cudnn.deterministic
    source.manual_seed(seed)
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        source.set_state(state)
        torch.backends.cudnn.deterministic = free


def train(
    trainer: Trainer,
    batches: Iterator[Batch[Piece]],
    loss_function: LossFunction[Piece],
    iterations: int,
    *,
    folder: Path | None = None,
    checkpoint_every: int = 0,
    log_every: int = 100,
) -> Iterator[int]:
    """Train up to ``iterations``; yields the number of finished iterations after each.

    Args:
        trainer: fresh or resumed.
        batches: of the iterations from ``trainer.iteration`` on.
        loss_function: from a batch's piece to its part of the loss.
        iterations: where to stop, counted from the very beginning.
        folder: of the checkpoint, None to keep none.
        checkpoint_every: iterations between two checkpoints; the last iteration always makes one.
        log_every: iterations of an interval of the curves; the last one may be shorter.

    Raises:
        DataError: the loss is no number; names the images. The checkpoint is one from before it.
        SettingError: the device's memory does not suffice.
    """
    unseen: tuple[Batch[Piece], Tensor, int] | None = None
    while trainer.iteration < iterations:
        batch = next(batches)
        loss = _step(trainer, batch, loss_function)
        # One step late, so that the device never waits for the host to look at a number.
        _stop_unless_finite(unseen)
        unseen = (batch, loss, trainer.iteration)
        last = trainer.iteration == iterations
        logs = trainer.iteration % log_every == 0 or last
        saves = last or (checkpoint_every > 0 and trainer.iteration % checkpoint_every == 0)
        if logs or saves:
            _stop_unless_finite(unseen)
            unseen = None
        if logs:
            _tell(trainer.log(), iterations)
        if saves and folder is not None:
            trainer.save(folder)
        yield trainer.iteration


def _step(trainer: Trainer, batch: Batch[Piece], loss_function: LossFunction[Piece]) -> Tensor:
    try:
        return trainer.step(batch.pieces, loss_function)
    except (RuntimeError, MemoryError) as error:
        if not is_lack_of_memory(error):
            raise
        raise SettingError(
            f"the memory of {trainer.ranks.device} does not suffice for a batch of this size; "
            "raise --accumulate, which computes it in that many parts, or lower --batch-size"
        ) from error


def _stop_unless_finite(unseen: tuple[Batch[Any], Tensor, int] | None) -> None:
    if unseen is None or bool(torch.isfinite(unseen[1])):
        return
    images = ", ".join(dict.fromkeys(unseen[0].image_ids))
    raise DataError(
        f"the loss of iteration {unseen[2]} is {float(unseen[1])}; lower --lr, or look at the "
        f"batch's images: {images}"
    )


def _tell(means: Mapping[str, float], iterations: int) -> None:
    values = ", ".join(
        f"{name.replace('-', ' ')} {value:.4g}"
        for name, value in means.items()
        if name != "iteration"
    )
    _log.info("iteration %d of %d: %s", round(means["iteration"]), iterations, values)
