"""What shapes a module gives, without its values: nothing is computed, and nothing takes memory."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def without_values(body: nn.Module, method: Callable[..., Any], *arguments: Any) -> Any:
    """What a method of a module gives in evaluation, on the meta device.

    Args:
        body: the module; as it was afterwards.
        method: of it, forward or another one.
        arguments: of the method, its tensors on the meta device.
    """
    empty = {f"body.{name}": value.to("meta") for name, value in body.state_dict().items()}
    training = body.training
    call = _Call(body.eval(), method)
    try:
        return torch.func.functional_call(call, empty, arguments)
    finally:
        body.train(training)


class _Call(nn.Module):
    """A method as a module, which is all that values can be exchanged in."""

    def __init__(self, body: nn.Module, method: Callable[..., Any]) -> None:
        super().__init__()
        self.body, self.method = body, method

    def forward(self, *arguments: Any) -> Any:
        return self.method(*arguments)
