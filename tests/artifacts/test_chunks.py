import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from rcnnpipe.artifacts.chunks import read_rows_of

ROWS, WIDTH, CHUNK = 37, 5, 8
SLICES = [slice(None), slice(0, 0), slice(3, 4), slice(7, 9), slice(8, 16), slice(30, 99)]


def written(path: Path, dtype: str, **options: Any) -> np.ndarray[Any, Any]:
    values = np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(dtype)
    with h5py.File(path, "w") as file:
        file.create_dataset("values", data=values, **options)
    return values


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<i8"])
@pytest.mark.parametrize(
    "options",
    [
        {"chunks": (CHUNK, WIDTH), "compression": "gzip", "shuffle": True},
        {"chunks": (CHUNK, WIDTH), "compression": "gzip"},
        {"chunks": (CHUNK, WIDTH), "compression": "lzf"},
        {"chunks": (CHUNK, 2), "compression": "gzip", "shuffle": True},
        {"chunks": (CHUNK, WIDTH)},
        {},
    ],
    ids=["ours", "not shuffled", "lzf", "not whole rows", "not packed", "not chunked"],
)
def test_rows_are_those_that_hdf5_reads(
    dtype: str, options: dict[str, Any], tmp_path: Path
) -> None:
    values = written(tmp_path / "f.h5", dtype, **options)
    with h5py.File(tmp_path / "f.h5") as file, ThreadPoolExecutor(2) as pool:
        for rows in SLICES:
            found = read_rows_of(file["values"], rows, pool)
            np.testing.assert_array_equal(found, values[rows])
            assert found.dtype == values.dtype


@pytest.mark.parametrize(
    "packed",
    [b"no zlib", zlib.compress(bytes(7)), zlib.compress(bytes(range(2 * CHUNK * WIDTH)))[:40]],
    ids=["of another kind", "too short", "cut off"],
)
def test_damaged_bytes_are_told(packed: bytes, tmp_path: Path) -> None:
    whole = {"chunks": (CHUNK, WIDTH), "compression": "gzip", "shuffle": True}
    written(tmp_path / "f.h5", "<f2", **whole)
    with h5py.File(tmp_path / "f.h5", "r+") as file, ThreadPoolExecutor(2) as pool:
        file["values"].id.write_direct_chunk((CHUNK, 0), packed)
        assert len(read_rows_of(file["values"], slice(0, CHUNK), pool)) == CHUNK
        with pytest.raises(OSError, match="rows from 8 of /values cannot be unpacked"):
            read_rows_of(file["values"], slice(0, ROWS), pool)
