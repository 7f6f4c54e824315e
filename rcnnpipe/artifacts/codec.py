"""Compression of HDF5 chunks outside HDF5, so that several threads can do it at once.

The bytes are those HDF5's own filters would read, written by ``write_direct_chunk``.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rcnnpipe.errors import SettingError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Codec:
    """How a chunk becomes bytes and back.

    Attributes:
        compress, decompress: on bytes whose equal-significance bytes stand together ("shuffled").
        shuffled: whether they are; a codec that does nothing leaves them in place.
        hdf5_options: what ``create_dataset`` needs to read the bytes back.
    """

    compress: Callable[[bytes], bytes]
    decompress: Callable[[bytes], bytes]
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
        """The chunk that :meth:`pack` took."""
        if not self.shuffled:
            return np.frombuffer(packed, dtype).reshape(shape)
        raw = np.frombuffer(self.decompress(packed), np.uint8).reshape(dtype.itemsize, -1)
        return np.ascontiguousarray(raw.T).view(dtype).reshape(shape)


def codec_named(name: str) -> Codec:
    """The codec for "gzip" (level 1, any HDF5 reader opens it), "zstd" (an extra) or "none".

    Raises:
        SettingError: zstd's packages are not installed.
    """
    if name == "gzip":
        options = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
        return Codec(lambda data: zlib.compress(data, 1), zlib.decompress, True, options)
    if name == "none":
        return Codec(lambda data: data, lambda data: data, False, {})
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
        lambda data: zstandard.ZstdDecompressor().decompress(data),
        True,
        {**hdf5plugin.Zstd(clevel=1), "shuffle": True},
    )
