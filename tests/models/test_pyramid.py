"""The pyramid against the sheet's tables, loops over whole numbers, and torchvision's pooling."""

import json
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import pytest
import torch
import torchvision

from rcnnpipe.errors import SettingError
from rcnnpipe.models import pyramid as module
from rcnnpipe.models.pyramid import (
    Pyramid,
    PyramidPooling,
    build_pyramid,
    pool_windows,
)
from tests.reference import pyramid as slow

LEVELS = (1, 2, 3, 6)


def random_maps(
    channels: int, height: int, width: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """A map with negative values, as no rectifier leaves one."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(channels, height, width, generator=random).to(dtype)


def random_cells(height: int, width: int, count: int, seed: int = 0) -> torch.Tensor:
    """Windows of all sizes, one of one cell in each corner, and the whole map."""
    random = np.random.default_rng(seed)
    x, y = (np.sort(random.integers(0, side, (count, 2))) for side in (width, height))
    cells = np.stack((x[:, 0], y[:, 0], x[:, 1], y[:, 1]), axis=1)
    cells[0] = (0, 0, width - 1, height - 1)
    cells[1] = (0, 0, 0, 0)
    cells[2] = (width - 1, height - 1, width - 1, height - 1)
    return torch.from_numpy(cells)


def expected_of(maps: torch.Tensor, cells: torch.Tensor, levels: Sequence[int]) -> torch.Tensor:
    return torch.tensor(
        [slow.pool(maps, window, levels) for window in cells.tolist()], dtype=maps.dtype
    ).reshape(len(cells), -1)


def pooling(*levels: int, training: str = "windows", mode: bool = False) -> PyramidPooling:
    return PyramidPooling(Pyramid(levels, training)).train(mode)


def seen(pooled: torch.Tensor) -> list[tuple[int, int]]:
    """First cell and the one behind the last of each bin, of lit columns pooled (a, n)."""
    spans = []
    for lit in pooled.T:
        cells = lit.nonzero().flatten().tolist()
        assert cells == list(range(cells[0], cells[-1] + 1))
        spans.append((cells[0], cells[-1] + 1))
    return spans


def lit_columns(side: int) -> torch.Tensor:
    """Maps (a, 1, a, a): the n-th has ones in column n alone."""
    return torch.eye(side)[:, None, None, :].expand(side, 1, side, side).contiguous()


def spans(rule: Callable[[int, int, int], range], cells: int, bins: int) -> list[tuple[int, int]]:
    return [(bin.start, bin.stop) for bin in (rule(cells, bins, n) for n in range(bins))]


# (cells, bins): window / stride; sheet section 4, the paper's formula (the authors' prototxt has
# 7/7 for two bins of 13)
TRAINING = {
    (13, 6): (3, 2),
    (13, 4): (4, 3),
    (13, 3): (5, 4),
    (13, 2): (7, 6),
    (13, 1): (13, 13),
    (10, 6): (2, 1),
    (10, 4): (3, 2),
    (10, 3): (4, 3),
    (10, 2): (5, 5),
    (10, 1): (10, 10),
}


@pytest.mark.parametrize(("cells", "bins"), TRAINING)
def test_windows_of_training_are_the_sheets(cells: int, bins: int) -> None:
    window, stride = TRAINING[cells, bins]
    maps = lit_columns(cells)
    expected = [(i * stride, i * stride + window) for i in range(bins)]
    pool = pooling(bins, mode=True)
    assert seen(pool(maps)[:, :bins]) == expected  # the first row of bins: along x
    assert seen(pool(maps.transpose(2, 3))[:, ::bins]) == expected  # the first column: along y
    assert spans(slow.bin_in_training, cells, bins) == expected


def test_only_the_first_windows_of_training_count() -> None:
    # 10 cells, 6 bins: nine windows of 2 would fit; the first six leave cells 7, 8 and 9 unseen.
    maps = torch.zeros(1, 1, 10, 10)
    maps[..., 7:, :] = 5
    maps[..., 7:] = 5
    assert pooling(6, mode=True)(maps).tolist() == [[0] * 36]
    assert pooling(6, training="bins", mode=True)(maps).any()
    assert pooling(6, mode=False)(maps).any()


# Sheet section 4, the form of arbitrary windows
BINS = {
    (13, 6): [(0, 3), (2, 5), (4, 7), (6, 9), (8, 11), (10, 13)],
    (13, 3): [(0, 5), (4, 9), (8, 13)],
    (13, 2): [(0, 7), (6, 13)],
    (10, 6): [(0, 2), (1, 4), (3, 5), (5, 7), (6, 9), (8, 10)],
    (4, 6): [(0, 1), (0, 2), (1, 2), (2, 3), (2, 4), (3, 4)],
    (2, 6): [(0, 1)] * 3 + [(1, 2)] * 3,
}


@pytest.mark.parametrize(("cells", "bins"), BINS)
def test_bins_of_windows_are_the_sheets(cells: int, bins: int) -> None:
    expected = BINS[cells, bins]
    assert spans(slow.bin_of_window, cells, bins) == expected
    assert seen(pooling(bins)(lit_columns(cells))[:, :bins]) == expected
    # The same window somewhere in a larger map, along x and then along y.
    columns = torch.zeros(cells, 4, cells + 5)
    columns[:, :, 3 : 3 + cells] = torch.eye(cells)[:, None]
    window = torch.tensor([[3, 1, 2 + cells, 1]])
    assert seen(pool_windows(columns, window, (bins,)).view(cells, bins, bins)[:, 0]) == expected
    window = torch.tensor([[1, 3, 1, 2 + cells]])
    pooled = pool_windows(columns.transpose(1, 2), window, (bins,))
    assert seen(pooled.view(cells, bins, bins)[:, :, 0]) == expected


@pytest.mark.parametrize("levels", [(1, 2, 3, 6), (6, 3, 2, 1)])
def test_values_stand_level_by_level_and_channel_by_channel(levels: tuple[int, ...]) -> None:
    y, x = torch.meshgrid(torch.arange(6), torch.arange(6), indexing="ij")
    maps = torch.stack([100 * c + 10 * y + x + 1 for c in range(2)]).float()
    found = pool_windows(maps, torch.tensor([[0, 0, 5, 5]]), levels)[0]
    assert len(found) == 2 * 50
    start = 0
    for n in levels:
        for c, y0, x0 in product(range(2), range(n), range(n)):
            # Six cells are n bins of 6 / n; the largest value is in the last cell.
            last_y, last_x = (y0 + 1) * 6 // n - 1, (x0 + 1) * 6 // n - 1
            index = start + c * n * n + y0 * n + x0
            assert found[index] == 100 * c + 10 * last_y + last_x + 1
        start += 2 * n * n
    for mode in (False, True):  # whole windows and whole bins: the two forms agree
        assert torch.equal(pooling(*levels, mode=mode)(maps[None])[0], found)


def test_maxima_start_from_zero() -> None:
    maps = torch.tensor([[[-3.0, -1.0], [-2.0, 4.0]]])
    cells = torch.tensor([[0, 0, 0, 1], [0, 0, 1, 1]])
    assert pool_windows(maps, cells, (1, 2)).tolist() == [[0, 0, 0, 0, 0], [4, 0, 0, 0, 4]]
    for mode in (False, True):
        assert pooling(1, 2, mode=mode)(maps[None]).tolist() == [[4, 0, 0, 0, 4]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("levels", [LEVELS, (6, 3, 2, 1), (5,), (4, 7, 2)], ids=str)
def test_windows_equal_the_slow_reference(levels: tuple[int, ...], dtype: torch.dtype) -> None:
    maps, cells = random_maps(3, 9, 14, dtype=dtype), random_cells(9, 14, 30)
    found = pool_windows(maps, cells, levels)
    assert found.dtype == dtype
    assert torch.equal(found, expected_of(maps, cells, levels))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (17, 2), (33, 41), (64, 5)])
def test_maps_of_any_shape(height: int, width: int) -> None:
    maps, cells = random_maps(2, height, width, seed=height), random_cells(height, width, 12)
    expected = expected_of(maps, cells, LEVELS)
    assert torch.equal(pool_windows(maps, cells, LEVELS), expected)
    strided = torch.stack([maps, maps]).contiguous(memory_format=torch.channels_last)[1]
    assert torch.equal(pool_windows(strided, cells, LEVELS), expected)


def test_the_size_of_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, cells = random_maps(3, 9, 14), random_cells(9, 14, 30)
    expected = pool_windows(maps, cells, LEVELS)
    for size in (1, 2**12, 2**14):
        monkeypatch.setattr(module, "_CACHED_BYTES", size)
        assert torch.equal(pool_windows(maps, cells, LEVELS), expected)


def test_a_window_of_one_cell_repeats_it() -> None:
    maps = random_maps(4, 5, 6).abs()
    found = pool_windows(maps, torch.tensor([[2, 3, 2, 3]]), LEVELS)[0]
    parts = torch.split(found, [4 * n * n for n in LEVELS])
    for n, part in zip(LEVELS, parts, strict=True):
        assert torch.equal(part.view(4, n * n), maps[:, 3, 2, None].expand(4, n * n))


def test_a_pyramid_deeper_than_the_map() -> None:
    maps = random_maps(3, 2, 4)
    whole = torch.tensor([[0, 0, 3, 1]])
    expected = expected_of(maps, whole, (6, 11))
    assert torch.equal(pool_windows(maps, whole, (6, 11)), expected)
    for mode in (False, True):  # such maps have no windows of training: they have bins
        assert torch.equal(pooling(6, 11, mode=mode)(maps[None]), expected)


def test_whole_maps_equal_windows_of_whole_maps() -> None:
    maps = torch.stack([random_maps(3, 7, 10, seed) for seed in range(4)])
    whole = torch.tensor([[0, 0, 9, 6]])
    expected = torch.cat([pool_windows(one, whole, LEVELS) for one in maps])
    assert torch.equal(pooling(*LEVELS)(maps), expected)
    assert torch.equal(pooling(*LEVELS, training="bins", mode=True)(maps), expected)


@pytest.mark.parametrize("size", [(13, 13), (10, 10), (13, 10), (6, 29)])
def test_training_equals_the_slow_reference(size: tuple[int, int]) -> None:
    maps = random_maps(2, *size)
    found = pooling(*LEVELS, mode=True)(maps[None])[0].tolist()
    expected = [
        max(
            0.0,
            *(
                float(maps[c, row, column])
                for row in slow.bin_in_training(size[0], n, y)
                for column in slow.bin_in_training(size[1], n, x)
            ),
        )
        for n in LEVELS
        for c, y, x in product(range(2), range(n), range(n))
    ]
    assert found == expected


def test_no_windows() -> None:
    maps = random_maps(3, 9, 14)
    found = pool_windows(maps, torch.zeros((0, 4), dtype=torch.int64), LEVELS)
    assert found.shape == (0, 150)
    assert pooling(*LEVELS)(maps[None][:0]).shape == (0, 150)


def test_what_is_no_number_is_not_lost() -> None:
    maps = random_maps(2, 9, 14)
    maps[1, 4, 5] = torch.nan
    cells = torch.tensor([[0, 0, 13, 8], [5, 4, 5, 4], [6, 0, 13, 8]])
    found = pool_windows(maps, cells, (1,))
    assert found.isnan().tolist() == [[False, True], [False, True], [False, False]]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cuda_equals_the_reference(dtype: torch.dtype) -> None:
    for height, width in ((9, 14), (33, 41)):
        maps, cells = random_maps(3, height, width, dtype=dtype), random_cells(height, width, 20)
        found = pool_windows(maps.cuda(), cells.cuda(), LEVELS)
        assert torch.equal(found.cpu(), expected_of(maps, cells, LEVELS))
        for mode in (False, True):
            pool = pooling(*LEVELS, mode=mode)
            assert torch.equal(pool(maps[None].cuda()).cpu(), pool(maps[None]))


@pytest.mark.parametrize("mode", [False, True])
@pytest.mark.parametrize("size", [(7, 8), (10, 6), (2, 3)])
def test_gradients(size: tuple[int, int], mode: bool) -> None:
    # Different values far from each other and from 0, so that no step changes which is largest.
    count = 2 * 2 * size[0] * size[1]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    maps = (order.double() - count // 3 + 0.5).view(2, 2, *size).requires_grad_()
    assert torch.autograd.gradcheck(pooling(*LEVELS, mode=mode), (maps,))


def edges_in_float32(cells: int, bins: int) -> list[tuple[int, int]]:
    """Bins as torchvision finds them: by a bin's size in float32, within the window."""
    size = np.float32(cells) / np.float32(bins)
    number = np.arange(bins, dtype=np.float32)
    first, end = np.floor(number * size), np.ceil((number + 1) * size)
    return list(zip(first.astype(int).tolist(), end.astype(int).tolist(), strict=True))


@pytest.mark.parametrize("level", [1, 2, 3, 4, 6, 7])
def test_each_level_is_torchvisions_pooling(level: int) -> None:
    height, width = 40, 61
    maps, cells = random_maps(3, height, width).abs(), random_cells(height, width, 400)
    exact = {
        side: edges_in_float32(side, level) == spans(slow.bin_of_window, side, level)
        for side in range(1, max(height, width) + 1)
    }
    sides = (cells[:, 2:] - cells[:, :2] + 1).tolist()
    same = torch.tensor([exact[w] and exact[h] for w, h in sides])
    assert same.float().mean() > 0.9  # float32 misses a bin of few windows
    rois = torch.cat((torch.zeros(len(cells), 1), cells.float()), dim=1)
    expected = torchvision.ops.roi_pool(maps[None], rois, level, 1.0).flatten(1)
    found = pool_windows(maps, cells, (level,))
    assert torch.equal(found[same], expected[same])


def test_bins_of_the_papers_pyramids() -> None:
    assert Pyramid().levels == (1, 2, 3, 6)
    assert [Pyramid(levels).bins for levels in ((1, 2, 3, 6), (1, 2, 3, 4), (6,))] == [50, 30, 36]


def test_maxima_can_be_scaled() -> None:
    maps = random_maps(3, 9, 14)[None]
    for mode in (False, True):
        expected = 0.25 * pooling(*LEVELS, mode=mode)(maps)
        pool = PyramidPooling(Pyramid(LEVELS, scale=0.25)).train(mode)
        torch.testing.assert_close(pool(maps), expected)


@pytest.mark.parametrize("pyramid", [Pyramid(), Pyramid((6, 3, 2, 1), "bins", 0.5)])
def test_settings_round_trip(pyramid: Pyramid) -> None:
    assert build_pyramid(json.loads(json.dumps(pyramid.settings()))) == pyramid


def test_nonsense_is_refused() -> None:
    for levels, told in [((), "''"), ((0, 1), "'0, 1'"), ((-2,), "'-2'"), ((3, 1, 3), "'3, 1, 3'")]:
        with pytest.raises(SettingError, match=f"a pyramid of {told} bins a side: give different"):
            Pyramid(levels)
    with pytest.raises(SettingError, match=r"'cells' is none of \('windows', 'bins'\)"):
        Pyramid(training="cells")
    for scale in (0, -1, float("inf"), float("nan")):
        with pytest.raises(SettingError, match=r"scale of .* is no number above 0"):
            Pyramid(scale=scale)
