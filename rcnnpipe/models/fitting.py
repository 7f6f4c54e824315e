"""Whether the tensors of a file are those that a network has: names and shapes, then values."""

from collections.abc import Mapping

import torch
from torch import Tensor

from rcnnpipe.errors import DataError, some_of

Shape = tuple[int, ...]
_NAMES_SHOWN = 3


def require_fit(
    name: str, wanted: Mapping[str, Shape], where: str, held: Mapping[str, Shape]
) -> None:
    """Refuse names or shapes that are not the network's; counters of batch norms may lack.

    Args:
        name: of the network, for the message.
        wanted: its tensors.
        where: the file, for the message.
        held: the file's tensors.

    Raises:
        DataError: names the first faults.
    """
    missing = sorted(key for key in wanted.keys() - held.keys() if not is_counter(key))
    unexpected = sorted(key for key in held.keys() - wanted.keys() if not is_counter(key))
    told = {"it lacks": missing, "it has besides": unexpected}
    faults = [f"{what} {some_of(names, _NAMES_SHOWN)}" for what, names in told.items() if names]
    if faults:
        raise DataError(f"{where} does not fit {name}: {'; '.join(faults)}")
    wrong = [key for key in wanted if key in held and held[key] != wanted[key]]
    if wrong:
        key = wrong[0]
        raise DataError(f"{where} does not fit {name}: {key} is {held[key]}, not {wanted[key]}")


def require_finite(where: str, values: Mapping[str, Tensor]) -> None:
    """Refuse values that are no finite numbers.

    Raises:
        DataError: names the first tensors that have some.
    """
    bad = [key for key, value in values.items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise DataError(f"{where} holds values that are not finite in {some_of(bad, _NAMES_SHOWN)}")


def is_counter(key: str) -> bool:
    """Whether a tensor only counts a batch norm's batches."""
    return key.endswith("num_batches_tracked")
