"""Unfinished training on the disk: everything that resuming needs, in one file replaced at once.

A checkpoint is an ``.npz`` of tensors and one JSON text. It is written under another name, synced
and renamed, so that a kill at any moment leaves the one before it whole. No pickle.
"""

import json
import logging
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rcnnpipe.artifacts.journal import locked, tell_of_others
from rcnnpipe.artifacts.store import partial_of

_log = logging.getLogger(__name__)
_NAME = "checkpoint.npz"
_STATE = "state.json"
_PREFIX = "tensors/"


@dataclass(frozen=True)
class Checkpoint:
    """What was saved.

    Attributes:
        tensors: name -> values, on the CPU.
        state: JSON values; floats come back to the last bit.
    """

    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Replace the checkpoint in a folder, which is made.

    Args:
        folder: of :func:`unfinished`.
        tensors: name -> values on any device, of any dtype that numpy has.
        state: JSON values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {}
    for name, value in tensors.items():
        arrays[_PREFIX + name] = value.detach().cpu().numpy()
    arrays[_STATE] = np.frombuffer(json.dumps(dict(state)).encode(), np.uint8)
    fresh = folder / (_NAME + ".new")
    try:
        with fresh.open("wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(folder / _NAME)
    except OSError:  # a full disk: the checkpoint before stays
        fresh.unlink(missing_ok=True)
        raise


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The checkpoint in a folder; None where there is none, or none that can be read."""
    path = folder / _NAME
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            state = json.loads(arrays[_STATE].tobytes())
            names = [name for name in arrays.files if name != _STATE]
            tensors = {n.removeprefix(_PREFIX): torch.from_numpy(arrays[n]) for n in names}
            return Checkpoint(tensors, state)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        _log.warning("%s is damaged (%s): starting anew", path, error)
        return None


@contextmanager
def unfinished(path: Path, identity: str, *, first: bool = True) -> Iterator[Path]:
    """The folder of a file's checkpoints, while it is trained by this process and no other.

    A checkpoint is left for the next run where training stops before its end; the folder goes when
    the block ends well, or has none.

    Args:
        path: the file that is being made.
        identity: of its header, so that other settings or inputs never resume from it.
        first: whether this is the rank that writes; others only read.

    Raises:
        ArtifactError: another process is training it.
    """
    folder = partial_of(path) / identity
    if not first:
        yield folder
        return
    folder.mkdir(parents=True, exist_ok=True)
    tell_of_others(folder)
    with locked(folder / "lock", path):
        try:
            yield folder
        except BaseException:
            if not (folder / _NAME).is_file():
                _remove(folder)
            raise
        _remove(folder)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.parent.rmdir()  # refuses while unfinished work of other settings stands there
    except OSError:
        pass
