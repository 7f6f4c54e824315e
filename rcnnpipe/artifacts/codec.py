"""Compression of HDF5 chunks outside HDF5, so that several threads can do it at once.

The bytes are those HDF5's own filters would read, written by ``write_direct_chunk``.
"""

import math
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from rcnnpipe.errors import SettingError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Codec:
    """How a chunk becomes bytes and back.

    Attributes:
        compress: on bytes whose equal-significance bytes stand together ("shuffled").
        decompress: the inverse, given the number of bytes that must come out; more are never made.
        shuffled: whether they are; a codec that does nothing leaves them in place.
        hdf5_options: what ``create_dataset`` needs to read the bytes back.
    """

    compress: Callable[[bytes], bytes]
    decompress: Callable[[bytes, int], bytes]
    shuffled: bool
    hdf5_options: Mapping[str, Any]

    def pack(self, chunk: Array) -> bytes:
        """The bytes of a chunk, as HDF5 stores them."""
        raw = np.ascontiguousarray(chunk)
        if not self.shuffled:
            return raw.tobytes()
        columns = raw.view(np.uint8).reshape(-1, raw.dtype.itemsize)
        return self.compress(np.ascontiguousarray(columns.T).tobytes())

    def unpack(self, packed: bytes, dtype: np.dtype[Any], shape: Sequence[int]) -> Array:
        """The chunk that :meth:`pack` took.

        Raises:
            ValueError: the bytes are damaged, or of another chunk.
        """
        if not self.shuffled:
            return np.frombuffer(packed, dtype).reshape(shape)
        size = dtype.itemsize * math.prod(shape)
        raw = np.frombuffer(self.decompress(packed, size), np.uint8).reshape(dtype.itemsize, -1)
        values: Array = _together(raw).view(dtype).reshape(shape)
        return values


def _together(raw: Array) -> Array:
    """Bytes of equal significance (b, n) back into n numbers of b bytes each."""
    if len(raw) == 2 and sys.byteorder == "little":  # float16: six times as fast as a transposition
        values: Array = raw[0] | raw[1].astype(np.uint16) << np.uint16(8)
        return values
    return np.ascontiguousarray(raw.T)


def codec_named(name: str) -> Codec:
    """The codec for "gzip" (level 1, any HDF5 reader opens it), "zstd" (an extra) or "none".

    Raises:
        SettingError: zstd's packages are not installed.
    """
    if name == "gzip":
        options = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
        return Codec(lambda data: zlib.compress(data, 1), _inflate, True, options)
    if name == "none":
        return Codec(lambda data: data, lambda data, size: data, False, {})
    try:
        import hdf5plugin
        import zstandard
    except ImportError:
        raise SettingError(
            "--compression zstd needs two more packages; run pip install 'rcnnpipe[zstd]'"
        ) from None
    # A compressor is not safe to share between threads; making one costs little beside a chunk.
    return Codec(
        lambda data: zstandard.ZstdCompressor(level=1).compress(data),
        lambda data, size: zstandard.ZstdDecompressor().decompress(data, size),
        True,
        {**hdf5plugin.Zstd(clevel=1), "shuffle": True},
    )


def _inflate(data: bytes, size: int) -> bytes:
    try:
        found = zlib.decompressobj().decompress(data, size)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if len(found) != size:
        raise ValueError(f"{len(found)} bytes instead of {size}")
    return found


def codec_of(dataset: h5py.Dataset) -> Codec | None:
    """The codec whose bytes a dataset holds; None where it is packed in no way of ours."""
    if dataset.chunks is None:
        return None
    filters = filters_of(dataset)
    if filters == [2, 1]:
        return codec_named("gzip")
    return None if filters else codec_named("none")


def filters_of(dataset: h5py.Dataset) -> list[int]:
    """Numbers of a dataset's HDF5 filters in order: 1 is deflate, 2 is shuffle."""
    properties = dataset.id.get_create_plist()
    return [properties.get_filter(number)[0] for number in range(properties.get_nfilters())]
