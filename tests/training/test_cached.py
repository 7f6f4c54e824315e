"""Batches of rows of a features file: what they are, and that memory and ranks change nothing."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rcnnpipe.artifacts.features import Features, open_features
from rcnnpipe.errors import ArtifactError, DataError
from rcnnpipe.systems import sppnet
from rcnnpipe.systems.rcnn import Sampling
from rcnnpipe.training import cached
from rcnnpipe.training.cached import RowSource, gather_rows, windows_of
from rcnnpipe.training.distributed import Ranks
from rcnnpipe.training.loop import Batch
from rcnnpipe.training.windows import draw_batch
from tests.artifacts_made import DEPTH, make_features

CPU = torch.device("cpu")
ALONE = Ranks(0, 1, CPU)
SAMPLING = Sampling(batch_size=12, foreground=3, background_from=0.1, mirror=False)
COUNTS = (20, 0, 33, 1, 27)
LAYOUT: dict[str, Any] = {
    "counts": COUNTS,
    "image_ids": ("a", "b", "c", "d", "e"),
    "sizes": np.full((5, 2), 100),
}
ROW_BYTES = 2 * DEPTH


@pytest.fixture
def features(tmp_path: Path) -> Iterator[Features]:
    with open_features(make_features(tmp_path / "f.h5", **LAYOUT)) as features:
        yield features


def source_of(features: Features, **settings: Any) -> RowSource:
    ranks = settings.pop("ranks", ALONE)
    windows = windows_of(features, SAMPLING)
    return RowSource(windows, features, "pool5", SAMPLING, ranks, **settings)


def flat(batches: Iterator[Batch[Any]]) -> list[torch.Tensor]:
    return [tensor for batch in batches for piece in batch.pieces for tensor in piece]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> None:
    assert len(first) == len(second) > 0
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_background_overlaps_an_object_a_little(tmp_path: Path) -> None:
    overlap = np.array([1, 0.5, 0.49, 0.1, 0.099, 0, 0.3, 0.7, 0.3, 0.05], np.float32)
    labels = np.array([2, 1, 2, 1, 1, 0, -1, -1, 2, 2])
    path = make_features(tmp_path / "f.h5", overlap=overlap, labels=labels)
    with open_features(path) as features:
        windows = windows_of(features, sppnet.SAMPLING)
        assert windows.labels.tolist() == [2, 1, 0, 0, -1, -1, -1, -1, 0, -1]
        assert windows.foreground.tolist() == [0, 1]
        assert windows.background.tolist() == [2, 3, 8]
        assert windows.images.tolist() == [0] * 4 + [2] * 6
        np.testing.assert_array_equal(windows.boxes, features.boxes)
        sampling = replace(sppnet.SAMPLING, foreground_overlap=0.7, background_overlap=0.4)
        windows = windows_of(features, replace(sampling, background_from=0))
        assert windows.labels.tolist() == [2, -1, -1, 0, 0, 0, -1, -1, 0, 0]


def test_nothing_to_draw_from_is_told(tmp_path: Path) -> None:
    cases = [
        (np.full(10, 0.3), sppnet.SAMPLING, "none of the 3 images has an object to learn from"),
        (
            np.full(10, 0.8),
            sppnet.SAMPLING,
            r"none of the 3 images has a region with an overlap of at least 0\.1 and below 0\.5, "
            "so there is no background",
        ),
        (np.full(10, 0.05), replace(sppnet.SAMPLING, foreground=0), "no background to learn from"),
    ]
    for number, (overlap, sampling, told) in enumerate(cases):
        path = make_features(tmp_path / f"{number}.h5", overlap=overlap.astype(np.float32))
        with open_features(path) as features, pytest.raises(DataError, match=told):
            windows_of(features, sampling)
    whole = replace(sppnet.SAMPLING, foreground=sppnet.SAMPLING.batch_size)
    with open_features(tmp_path / "1.h5") as features:
        assert len(windows_of(features, whole).background) == 0


@pytest.mark.parametrize("block_rows", [1, 2, 5, 30, 1000])
def test_rows_gathered_by_blocks_of_any_size(
    features: Features, block_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached, "_BLOCK_BYTES", block_rows * ROW_BYTES)
    whole = features.rows("pool5", slice(None))
    random = np.random.default_rng(block_rows)
    every = np.arange(len(whole))
    chosen = [np.sort(random.choice(every, count, replace=False)) for count in (1, 7, 50)]
    for rows in (*chosen, every, every[:0], every[-1:], every[[0, -1]]):
        found = gather_rows(features, "pool5", rows)
        assert found.dtype == np.float16
        np.testing.assert_array_equal(found, whole[rows])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_told(value: float, tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).uniform(-6e4, 6e4, (10, DEPTH))
    drawn[4, 3] = value
    spoilt: dict[str, Any] = {"layers/pool5": drawn}
    with open_features(make_features(tmp_path / "f.h5", **spoilt)) as features:
        with pytest.raises(ArtifactError, match=r"f\.h5 has features that are no finite .*'pool5'"):
            gather_rows(features, "pool5", np.arange(10))
        assert len(gather_rows(features, "pool5", np.array([0, 3, 5, 9]))) == 4


def test_no_more_than_a_block_is_read_at_once(
    features: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached, "_BLOCK_BYTES", 5 * ROW_BYTES)
    read: list[int] = []

    def rows(self: Features, name: str, rows: slice) -> Any:
        read.append(rows.stop - rows.start)
        return np.zeros((rows.stop - rows.start, DEPTH), np.float16)

    monkeypatch.setattr(Features, "rows", rows)
    gather_rows(features, "pool5", np.array([0, 4, 5, 6, 20, 79, 80]))
    assert read == [5, 2, 1, 2]  # 0 to 4, 5 to 6, 20, 79 to 80


def test_a_batch_is_what_was_drawn(features: Features) -> None:
    source, whole = source_of(features, seed=7), features.rows("pool5", slice(None))
    batches = list(source.batches(0, 6))
    assert len(batches) == 6
    for iteration, batch in enumerate(batches):
        rows = draw_batch(source.windows, SAMPLING, 7, iteration).rows
        ((values, labels),) = batch.pieces
        assert (values.dtype, labels.dtype) == (torch.float32, torch.int64)
        np.testing.assert_array_equal(values.numpy(), whole[rows].astype(np.float32))
        assert labels.tolist() == source.windows.labels[rows].tolist()
        assert [int(label) > 0 for label in labels] == [True] * 3 + [False] * 9
        images = np.searchsorted(features.offsets, rows, side="right") - 1
        assert list(batch.image_ids) == [features.image_ids[n] for n in np.unique(images)]
    other = flat(source_of(features, seed=8).batches(0, 1))
    assert not torch.equal(other[0], flat(iter(batches[:1]))[0])


# For one iteration at once, for two, for five, and for the whole file
MEMORIES = [1, 2 * 2 * 12 * ROW_BYTES, 2 * 5 * 12 * ROW_BYTES, 2**30]


@pytest.mark.parametrize("memory", MEMORIES)
def test_memory_changes_nothing(features: Features, memory: int) -> None:
    expected = flat(source_of(features).batches(0, 9))
    source = source_of(features, memory=memory)
    assert source.iterations_at_once == (1, 2, 5, 2**29 // (12 * ROW_BYTES))[MEMORIES.index(memory)]
    same(flat(source.batches(0, 9)), expected)


@pytest.mark.parametrize(("memory", "times"), list(zip(MEMORIES, [9, 5, 2, 1], strict=True)))
def test_the_file_is_read_as_seldom_as_memory_allows(
    features: Features, memory: int, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []

    def gather(features: Features, layer: str, rows: Any) -> Any:
        assert (np.diff(rows) > 0).all()
        counts.append(len(rows))
        return gather_rows(features, layer, rows)

    monkeypatch.setattr(cached, "gather_rows", gather)
    source = source_of(features, memory=memory)
    assert len(flat(source.batches(0, 9))) == 18
    assert len(counts) == times
    drawable = len(source.windows.foreground) + len(source.windows.background)
    assert max(counts) <= (drawable if times == 1 else memory // 2 // ROW_BYTES or 12)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("start", [1, 4, 8])
def test_resumed_from_the_middle_equals(features: Features, memory: int, start: int) -> None:
    expected = flat(source_of(features).batches(0, 9))[2 * start :]
    same(flat(source_of(features, memory=memory).batches(start, 9)), expected)
    assert list(source_of(features, memory=memory).batches(9, 9)) == []


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize(("world", "accumulate"), [(1, 3), (2, 1), (3, 2)])
def test_shares_of_ranks_and_parts_add_up(
    features: Features, world: int, accumulate: int, memory: int
) -> None:
    expected = flat(source_of(features).batches(0, 4))
    values = [torch.zeros_like(batch) for batch in expected[::2]]
    labels = [torch.full_like(batch, -9) for batch in expected[1::2]]
    for rank in range(world):
        ranks = Ranks(rank, world, CPU)
        source = source_of(features, ranks=ranks, accumulate=accumulate, memory=memory)
        for iteration, batch in enumerate(source.batches(0, 4)):
            pieces = list(batch.pieces)
            assert len(pieces) == accumulate
            for number, (part, told) in enumerate(pieces):
                # Every world-th window, and of those every accumulate-th
                place = slice(rank + number * world, None, world * accumulate)
                values[iteration][place] = part
                labels[iteration][place] = told
    same([t for pair in zip(values, labels, strict=True) for t in pair], expected)


def test_a_run_that_ends_early_leaves_no_thread_behind(features: Features) -> None:
    batches = source_of(features, memory=1).batches(0, 10**6)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    with pytest.raises(StopIteration):
        next(batches)
