"""Several ranks under torchrun: who this process is, where it computes, and sums over all ranks.

Every rank draws the same batches and computes its share of each; gradients are summed, so the
step is the one that a single process would have made; nearly so for detectors, which average the
loss of regions within the images of a rank (or of a part of ``--accumulate``), where some of their
images have fewer regions to sample than others.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from rcnnpipe.devices import choose_device, this_rank
from rcnnpipe.errors import ArtifactError, SettingError, one_line

Item = TypeVar("Item")


@dataclass(frozen=True)
class Ranks:
    """This process among all.

    Attributes:
        rank: its number, from 0; the first one writes.
        world: how many there are.
        device: where it computes.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0


@contextmanager
def join_ranks(device: str = "auto", precision: str = "fp32") -> Iterator[Ranks]:
    """Meet the other processes torchrun has started; alone where it has not.

    Args:
        device: "auto", "cpu" or "cuda"; on CUDA each rank of a machine takes its own device.
        precision: what it is to compute in.

    Raises:
        SettingError: the environment is incomplete, the ranks cannot meet, or devices are too few.
    """
    _check_environment()
    own = this_rank()
    rank, world = own.number, own.world
    if not rank < world:
        raise SettingError(f"RANK is {rank} of WORLD_SIZE {world}; start the ranks with torchrun")
    place = choose_device(device, precision)
    if place.type == "cuda":
        if own.local >= torch.cuda.device_count():
            raise SettingError(
                f"local rank {own.local} has no CUDA device of its own, there are "
                f"{torch.cuda.device_count()}; lower --nproc-per-node or use --device cpu"
            )
        torch.cuda.set_device(place)
    if world == 1:
        yield Ranks(0, 1, place)
        return
    try:
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    except (RuntimeError, ValueError) as error:
        cause = one_line(error)
        message = f"rank {rank} of {world} cannot meet the others ({cause}); start with torchrun"
        raise SettingError(message) from error
    try:
        yield Ranks(rank, world, place)
    finally:
        dist.destroy_process_group()


def _check_environment() -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        text = os.environ.get(name, "0")
        if not text.isdecimal():
            raise SettingError(f"the environment variable {name} is '{text}', which is no number")


def sum_over_ranks(tensors: Sequence[Tensor], ranks: Ranks) -> None:
    """Replace each float tensor by its sum over all ranks, in place: one message for all."""
    if ranks.world == 1:
        return
    message = torch.cat([tensor.detach().flatten().float() for tensor in tensors])
    dist.all_reduce(message)
    parts = torch.split(message, [tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.detach().copy_(part.view_as(tensor))


def require_agreement(number: int, ranks: Ranks, what: str) -> None:
    """Stop when the ranks do not all hold the same number, e.g. iterations found in a checkpoint.

    Raises:
        ArtifactError: on every rank.
    """
    if ranks.world == 1:
        return
    numbers = [torch.zeros(1, dtype=torch.int64, device=ranks.device) for _ in range(ranks.world)]
    dist.all_gather(numbers, torch.tensor([number], device=ranks.device))
    found = sorted({int(one) for one in numbers})
    if len(found) > 1:
        raise ArtifactError(
            f"the ranks find different {what} ({', '.join(map(str, found))}); all need one shared "
            "folder for --out and the same inputs"
        )


def gather_items(own: Sequence[Item], ranks: Ranks) -> list[Item]:
    """The items of all ranks, of which each has every ``world``-th, in order and on every rank."""
    if ranks.world == 1:
        return list(own)
    parts: list[list[Item]] = [[] for _ in range(ranks.world)]
    dist.all_gather_object(parts, list(own))
    total = sum(map(len, parts))
    return [parts[number % ranks.world][number // ranks.world] for number in range(total)]


def from_first_rank(tensors: Iterable[Tensor], ranks: Ranks) -> None:
    """Replace tensors of any dtype by those of the first rank, in place."""
    for tensor in tensors if ranks.world > 1 else ():
        dist.broadcast(tensor, 0)
