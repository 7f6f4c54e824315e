"""The exponential moving average of a network's weights: Polyak & Juditsky 1992, as users keep it.

What it holds is steadier than the weights of any one iteration. Training never sees it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Averaged weights of a network in training.

    Attributes:
        decay: what remains of the average in an iteration, in (0, 1).
        values: name in the state dict -> the average, on the network's device; buffers as they are
            in the network.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        """Begin with the weights as they are; the network must be on its device already."""
        self.decay = decay
        self.values = {name: value.clone() for name, value in network.state_dict().items()}
        self._weights = {name for name, _ in network.named_parameters()}

    @torch.no_grad()
    def add(self, network: nn.Module, iteration: int) -> None:
        """Take in the weights after an iteration, counted from 0.

        The first iterations decay by (1 + n) / (10 + n), as TensorFlow's ExponentialMovingAverage
        does: with a decay of .9999 a short training would end with its first weights otherwise.
        """
        decay = min(self.decay, (1 + iteration) / (10 + iteration))
        for name, value in network.state_dict().items():
            if name in self._weights:
                self.values[name].lerp_(value, 1 - decay)
            else:
                self.values[name].copy_(value)

    @contextmanager
    def in_effect(self, network: nn.Module) -> Iterator[None]:
        """Let the network hold the average for a while; then it has its own weights again."""
        own = {name: value.clone() for name, value in network.state_dict().items()}
        _copy(self.values, network)
        try:
            yield
        finally:
            _copy(own, network)


@torch.no_grad()
def _copy(values: dict[str, Tensor], network: nn.Module) -> None:
    for name, value in network.state_dict().items():
        value.copy_(values[name])
