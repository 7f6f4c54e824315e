"""Random state and algorithms of a device, held for a while, so that the same gives the same."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def repeatable(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's generator of the device for a while, and put everything back afterwards.

    Dropout draws from that generator, layers cannot be handed one.
    Between steps the process's random state is untouched, and a step's masks depend on nothing but
    the seed. cuDNN is held to algorithms that always add up in the same order.
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
