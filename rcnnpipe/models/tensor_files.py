"""Files of named tensors: names and shapes first, values when asked for, no pickled objects."""

import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from rcnnpipe.errors import DataError, one_line

Shape = tuple[int, ...]
Opened = tuple[Mapping[str, Shape], Callable[[str], Tensor]]

# Deflate shrinks data at most this much: a larger promise is false.
_LARGEST_RATIO = 1040


@contextmanager
def open_torch(path: Path) -> Iterator[Opened]:
    """A .pth of tensors, bare or under "state_dict" or "model"; DistributedDataParallel's prefix
    is taken off."""
    _check_zip(path)
    try:
        with warnings.catch_warnings():  # of pickle protocols; what cannot be read is an error
            warnings.simplefilter("ignore")
            held = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise DataError(
            f"{path} holds more than tensors, which could run code; save its state_dict alone"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, LookupError, AttributeError) as error:
        raise DataError(f"{path} cannot be read as PyTorch weights ({_one_line(error)})") from None
    for wrapper in ("state_dict", "model"):
        if isinstance(held, Mapping) and isinstance(held.get(wrapper), Mapping):
            held = held[wrapper]
    if not isinstance(held, Mapping) or not all(isinstance(v, Tensor) for v in held.values()):
        raise DataError(f"{path} holds no state_dict: a mapping of names to tensors is needed")
    tensors = {str(name).removeprefix("module."): value for name, value in held.items()}
    yield (
        {name: tuple(value.shape) for name, value in tensors.items()},
        lambda name: _plain(tensors[name]),
    )


@contextmanager
def open_safetensors(path: Path) -> Iterator[Opened]:
    """A .safetensors file; the library checks its header against the file's size."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise DataError(
            f"{path} needs the safetensors package: pip install 'rcnnpipe[safetensors]'"
        ) from None
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
            yield shapes, lambda name: _plain(file.get_tensor(name))
    except SafetensorError as error:
        reason = _one_line(error).removeprefix("Error while deserializing header: ")
        raise DataError(f"{path} is no safetensors file, or damaged ({reason})") from None


@contextmanager
def open_npz(path: Path) -> Iterator[Opened]:
    """A .npz of arrays."""
    _check_zip(path)
    try:
        with zipfile.ZipFile(path) as archive:
            shapes = {}
            for entry in archive.infolist():
                with archive.open(entry) as member:
                    shapes[entry.filename.removesuffix(".npy")] = _npy_shape(member, entry)
        with np.load(path, allow_pickle=False) as arrays:
            yield shapes, lambda name: _plain(torch.from_numpy(arrays[name]))
    except (zipfile.BadZipFile, ValueError, EOFError, struct.error, TypeError) as error:
        raise DataError(f"{path} is no .npz of arrays, or damaged ({_one_line(error)})") from None


def _npy_shape(member: IO[bytes], entry: zipfile.ZipInfo) -> Shape:
    version = np.lib.format.read_magic(member)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read(member)
    if dtype.hasobject or dtype.kind not in "fiu":
        raise ValueError(f"{entry.filename} holds {dtype}, no numbers")
    length = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if length > entry.file_size:
        raise ValueError(f"{entry.filename} claims {length} bytes but holds {entry.file_size}")
    return tuple(shape)


def _check_zip(path: Path) -> None:
    """Refuse an archive that claims more than its bytes can hold; other formats pass."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            claimed = sum(entry.file_size for entry in archive.infolist())
    except zipfile.BadZipFile as error:
        raise DataError(f"{path} is damaged ({_one_line(error)})") from None
    held = path.stat().st_size
    if claimed > _LARGEST_RATIO * held:
        raise DataError(f"{path} claims {claimed} bytes but holds {held}; it is damaged or false")


def _plain(value: Tensor) -> Tensor:
    """float32 for every kind of float, as it is for counters."""
    return value.float() if value.is_floating_point() else value


def _one_line(error: BaseException) -> str:
    told = getattr(error, "strerror", None) or error
    return one_line(told)[:200]


READERS: dict[str, Callable[[Path], AbstractContextManager[Opened]]] = {
    ".npz": open_npz,
    ".pt": open_torch,
    ".pth": open_torch,
    ".safetensors": open_safetensors,
}
