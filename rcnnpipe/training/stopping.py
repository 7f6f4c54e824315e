"""What stops training before its end, told in a sentence: no finite loss, too little memory."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rcnnpipe.devices import is_lack_of_memory
from rcnnpipe.errors import DataError, SettingError

_log = logging.getLogger(__name__)


SMALLER_BATCH = "raise --accumulate, which computes it in that many parts, or lower --batch-size"
# Writes the batch of an iteration, counted from 0, and says where; None keeps none.
KeepBad = Callable[[int], Path | None] | None


def require_finite(
    loss: Tensor, iteration: int, image_ids: Sequence[str], keep_bad: KeepBad
) -> None:
    """Stop at a loss that is no number.

    Args:
        loss: scalar, on any device.
        iteration: it is of, counted from 1.
        image_ids: of the batch.
        keep_bad: called only then; None keeps nothing.

    Raises:
        DataError: it is none; names the images and where the batch can be looked at.
    """
    if bool(torch.isfinite(loss)):
        return
    kept = keep_bad(iteration - 1) if keep_bad is not None else None
    found = f"; its network input is in {kept}" if kept else ""
    raise DataError(
        f"the loss of iteration {iteration} is {float(loss)}; lower --lr, or look at the batch's "
        f"images: {', '.join(dict.fromkeys(image_ids))}{found}"
    )


def keep_batch(path: Path, make: Callable[[], Any]) -> Path | None:
    """Write the network input of a batch for inspection; None where that fails, which is no matter.

    Args:
        path: of an ``.npz`` file with "image-ids" of the whole batch and for each piece "input-N",
            (B, 3, H, W) or (B, D), of this rank.
        make: the batch anew, a :class:`~rcnnpipe.training.loop.Batch` whose pieces are tuples that
            begin with the network input; it was read once already.
    """
    fresh = path.with_name(path.name + ".partial")
    try:
        batch = make()
        arrays = {"image-ids": np.array(list(batch.image_ids), np.str_)}
        for number, (images, *_) in enumerate(batch.pieces):
            arrays[f"input-{number}"] = images.detach().cpu().contiguous().numpy()
        with fresh.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except Exception as error:  # whatever it is, the loss is what the user must hear of
        _log.debug("the batch could not be kept: %s", error)
        fresh.unlink(missing_ok=True)
        return None
    return path


@contextmanager
def memory_told(device: torch.device, remedy: str) -> Iterator[None]:
    """Turn a lack of memory, the device's or the CPU's, into a sentence with a remedy.

    Raises:
        SettingError: there was one.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_lack_of_memory(error):
            raise
        raise SettingError(
            f"the memory of {device} does not suffice for a batch of this size; {remedy}"
        ) from error


@contextmanager
def images_told(image_ids: Sequence[str]) -> Iterator[None]:
    """Name the images of a batch in a sentence on what is wrong with one of them."""
    try:
        yield
    except SettingError as error:
        names = ", ".join(dict.fromkeys(image_ids))
        raise SettingError(f"{error}; the batch's images: {names}") from error
