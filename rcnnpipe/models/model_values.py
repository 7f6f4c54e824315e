"""Values of a network or a detector as a model file has them, and what is said of those that do not
fit it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rcnnpipe.devices import is_lack_of_memory
from rcnnpipe.errors import SettingError, one_line


def to_arrays(values: Mapping[str, Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    """Tensors of any device as arrays of the same shapes."""
    return {
        name: np.ascontiguousarray(value.detach().cpu().numpy()) for name, value in values.items()
    }


def from_arrays(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    """The inverse of :func:`to_arrays`; copies."""
    return {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}


@contextmanager
def refusing_unfit(kind: type[nn.Module]) -> Iterator[None]:
    """Say in one sentence why a model file's settings and tensors do not make a module.

    Args:
        kind: of the module.

    Raises:
        SettingError: they do not.
    """
    try:
        yield
    except (KeyError, TypeError, RuntimeError) as error:
        reason = one_line(error).rpartition(f"{kind.__name__}: ")[2]
        if isinstance(error, KeyError):
            reason = f"there is no {reason}"
        elif is_lack_of_memory(error):
            reason = "that would not fit into the memory"
        raise SettingError(f"the model's settings and tensors do not fit ({reason})") from None
