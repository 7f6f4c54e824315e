"""Optimizers by name, and their state as tensors with names, for a checkpoint."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rcnnpipe.systems.rcnn import Solver

_SECOND_BETA = 0.999  # Kingma & Ba 2015, algorithm 1


def make_optimizer(groups: Sequence[dict[str, Any]], solver: Solver) -> torch.optim.Optimizer:
    """What the solver names, over groups of parameters with their weight decays.

    "sgd" has momentum; "adamw" is Loshchilov & Hutter 2019, algorithm 2, its first beta the
    momentum, its decay decoupled from the gradients.
    """
    rate, momentum = solver.learning_rate, solver.momentum
    if solver.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=(momentum, _SECOND_BETA))
    return torch.optim.SGD(groups, lr=rate, momentum=momentum)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Its state by "NUMBER/NAME", parameters counted over all groups; not a copy."""
    return {
        f"{number}/{name}": value
        for number, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give it the state that :func:`optimizer_tensors` had told; its groups stay as they are."""
    entries: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, _, key = name.partition("/")
        entries.setdefault(int(number), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": entries, "param_groups": groups})
