"""Statistics of datasets against numpy, in memory that does not grow with the file."""

import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from rcnnpipe.report import statistics
from rcnnpipe.report.statistics import blocks, datasets_of, describe


@pytest.fixture
def file(tmp_path: Path) -> Any:
    with h5py.File(tmp_path / "some.h5", "w") as opened:
        yield opened


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64, np.bool_])
def test_figures_are_numpys(file: h5py.File, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "BLOCK_BYTES", 512)  # many blocks
    random = np.random.default_rng(0)
    values = np.maximum(random.normal(size=(501, 7)) * 3, 0).astype(dtype)
    values[:, 3] = 0
    values[17] = 0
    found = describe("x", file.create_dataset("x", data=values, chunks=(10, 7)))
    exact = values.astype(np.float64)
    norms = np.linalg.norm(exact, axis=1)
    assert (found.rows, found.rows_read) == (501, 501)
    assert (found.minimum, found.maximum) == (exact.min(), exact.max())
    assert found.mean == pytest.approx(exact.mean(), rel=1e-12)
    assert found.deviation == pytest.approx(exact.std(), rel=1e-9)
    assert found.zeros == (exact == 0).mean()
    assert found.norms == pytest.approx((norms.min(), norms.mean(), norms.max()))
    assert found.empty_rows == (norms == 0).sum()
    assert found.dead == (exact == 0).all(axis=0).sum() == 1


def test_numbers_that_are_none_are_counted_and_left_out(file: h5py.File) -> None:
    values = np.array([1, np.nan, 3, np.inf, -np.inf, np.nan], np.float32)
    found = describe("x", file.create_dataset("x", data=values))
    assert (found.not_numbers, found.infinite) == (2, 2)
    assert (found.minimum, found.mean, found.maximum) == (1, 2, 3)


def test_nothing_but_nan_has_no_mean(file: h5py.File) -> None:
    found = describe("x", file.create_dataset("x", data=np.full((3, 2), np.nan)))
    assert found.mean is None
    assert found.norms is None
    assert found.not_numbers == 6


@pytest.mark.parametrize("values", [np.zeros((0, 4)), np.float32(3), "text", ["a", "bb"]])
def test_every_shape_can_be_described(file: h5py.File, values: Any) -> None:
    found = describe("x", file.create_dataset("x", data=values))
    assert found.rows_read == found.rows


def test_large_datasets_are_sampled_evenly_in_bounded_memory(file: h5py.File) -> None:
    rows = 2_000_000  # 2 GB, of which nothing is stored
    dataset = file.create_dataset("x", (rows, 512), np.float16, chunks=(64, 512))
    tracemalloc.start()
    found = describe("x", dataset, budget=2**25)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.is_sample
    assert 0.5 * 2**25 <= found.rows_read * 1024 <= 2**25
    assert peak < 2**26
    chosen = blocks(dataset, budget=2**25)
    assert chosen[0].start == 0
    assert chosen[-1].stop == rows


def test_blocks_cover_every_row_once(file: h5py.File) -> None:
    dataset = file.create_dataset("x", (100_003, 33), np.float32, chunks=(100, 33))
    numbers = [number for rows in blocks(dataset, None) for number in range(rows.start, rows.stop)]
    assert numbers == list(range(100_003))


def test_numbers_in_names_count_by_value(file: h5py.File) -> None:
    for name in ("t/f.10.w", "t/f.2.w", "a"):
        file.create_dataset(name, data=1)
    assert [name for name, _ in datasets_of(file)] == ["a", "t/f.2.w", "t/f.10.w"]
