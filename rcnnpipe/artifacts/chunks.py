"""Rows of a chunked dataset, unpacked by several threads outside HDF5's lock.

HDF5 lets one thread at a time unpack, which takes longer than most of what is done with the rows.
Here only the packed bytes are read under its lock.
"""

from concurrent.futures import Executor
from typing import Any

import h5py
import numpy as np

from rcnnpipe.artifacts.codec import Codec, codec_of

Array = np.ndarray[Any, Any]


def read_rows_of(dataset: h5py.Dataset, rows: slice, pool: Executor) -> Array:
    """``dataset[rows]`` of a dataset whose chunks are whole rows.

    Args:
        dataset: (R, ...); chunked and packed in whatever way, ours are read by the pool.
        rows: contiguous.
        pool: threads that unpack.

    Raises:
        OSError: packed bytes are damaged.
    """
    start, stop, _ = rows.indices(len(dataset))
    codec = codec_of(dataset)
    if codec is None or dataset.chunks[1:] != dataset.shape[1:] or stop <= start:
        values: Array = dataset[rows]
        return values
    height = dataset.chunks[0]
    found = np.empty((stop - start, *dataset.shape[1:]), dataset.dtype)

    def unpack(first: int) -> None:
        chunk = _chunk(dataset, first, codec)
        low, high = max(start, first), min(stop, first + height)
        found[low - start : high - start] = chunk[low - first : high - first]

    list(pool.map(unpack, range(start - start % height, stop, height)))
    return found


def _chunk(dataset: h5py.Dataset, first: int, codec: Codec) -> Array:
    """The chunk that begins with a row."""
    mask, packed = dataset.id.read_direct_chunk((first, *(0,) * (dataset.ndim - 1)))
    if mask:  # written without some of its filters, which is not our way
        whole: Array = dataset[first : first + dataset.chunks[0]]
        return whole
    try:
        return codec.unpack(packed, dataset.dtype, dataset.chunks)
    except ValueError as error:
        raise OSError(f"rows from {first} of {dataset.name} cannot be unpacked: {error}") from error
