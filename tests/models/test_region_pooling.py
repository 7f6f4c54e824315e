"""RoI pooling against the sheets' tables, loops over cells and points, and torchvision's pooler."""

import json
import math
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign

from rcnnpipe.errors import SettingError
from rcnnpipe.models.region_pooling import (
    RegionPooling,
    assign_levels,
    build_region_pooling,
)
from tests.reference import region_pooling as slow

STRIDES = (4, 8, 16, 32)
PIXELS = (256, 384)  # height and width of the images of ``random_maps``


def random_maps(
    images: int = 2,
    channels: int = 3,
    strides: tuple[int, ...] = STRIDES,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    height, width = PIXELS
    return [
        torch.randn(images, channels, height // s, width // s, generator=random).to(dtype)
        for s in strides
    ]


def random_rois(count: int, seed: int = 0, whole: bool = False) -> Tensor:
    """Regions of all sizes, some of them partly outside; ``whole`` numbers give halves of cells."""
    random = np.random.default_rng(seed)
    middle = random.uniform(0, 1, (count, 2)) * PIXELS[::-1]
    extent = np.exp(random.uniform(np.log(3), np.log(350), (count, 2)))
    rois = np.concatenate((middle - extent / 2, middle + extent / 2), axis=1)
    return torch.from_numpy(rois.round() if whole else rois).float()


def lit(height: int, width: int, columns: bool) -> Tensor:
    """A map (1, L, H, W) whose channel n has ones in column (or row) n alone."""
    if columns:
        return torch.eye(width)[None, :, None, :].repeat(1, 1, height, 1)
    return torch.eye(height)[None, :, :, None].repeat(1, 1, 1, width)


def seen(values: Tensor) -> list[tuple[int, int]]:
    """First cell and the one behind the last of each bin, of lit cells (L, P); (0, 0) for none."""
    spans = []
    for own in values.T:
        cells = own.nonzero().flatten().tolist()
        assert cells == list(range(cells[0], cells[-1] + 1)) if cells else True
        spans.append((cells[0], cells[-1] + 1) if cells else (0, 0))
    return spans


# Fast R-CNN sheet, section 4: RoI on a map of 63 x 38 cells -> rounded corners, x bins, y bins
NONE = (0, 0)
TABLE: dict[tuple[int, ...], tuple[tuple[int, ...], list[tuple[int, int]], list[tuple[int, int]]]]
TABLE = {
    (40, 56, 233, 311): (
        (3, 4, 15, 19),
        [(3, 5), (4, 7), (6, 9), (8, 11), (10, 13), (12, 15), (14, 16)],
        [(4, 7), (6, 9), (8, 11), (10, 14), (13, 16), (15, 18), (17, 20)],
    ),
    (8, 8, 39, 39): ((1, 1, 2, 2), [(1, 2)] * 3 + [(1, 3)] + [(2, 3)] * 3, []),
    (990, 590, 1030, 640): (
        (62, 37, 64, 40),
        [(62, 63)] * 3 + [NONE] * 4,
        [(37, 38)] * 2 + [NONE] * 5,
    ),
}


@pytest.mark.parametrize("roi", TABLE)
def test_bins_of_pooling_are_the_sheets(roi: tuple[int, ...]) -> None:
    corners, across, down = TABLE[roi]
    down = down or across
    assert slow.cells_of(roi, 16) == corners
    rois = [torch.tensor([roi]).float()]
    found = RegionPooling()([lit(38, 63, columns=True)], rois)
    assert seen(found[0, :, 0]) == across
    found = RegionPooling()([lit(38, 63, columns=False)], rois)
    assert seen(found[0, :, :, 0]) == down
    for (first, last), limit, expected in (
        (corners[::2], 63, across),
        (corners[1::2], 38, down),
    ):
        bins = slow.bins_of(first, last, 7, limit)
        assert [(bin.start, bin.stop) if bin else NONE for bin in bins] == expected


def test_halves_are_rounded_away_from_zero() -> None:
    # 40 / 16 = 2.5 is cell 3, and -8 / 16 = -0.5 is cell -1: a region of 2 cells then, not of 1.
    maps = torch.arange(6.0).expand(1, 1, 6, 6).contiguous()
    found = RegionPooling(size=2)([maps], [torch.tensor([[40.0, 0, 40, 0], [-8.0, 0, 0, 0]])])
    assert found[:, 0, 0].tolist() == [[3, 3], [0, 0]]
    assert [slow.round_half_away(value) for value in (2.5, -0.5, 0.5, 1.49)] == [3, -1, 1, 1]
    maps = maps + 1
    found = RegionPooling(size=2)([maps], [torch.tensor([[-8.0, 0, 0, 0]])])
    assert found[0, 0, 0].tolist() == [0, 1]  # the first of the two cells is outside


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("size", [1, 6, 7])
def test_pooling_and_its_gradients_equal_the_slow_reference(size: int, whole: bool) -> None:
    (maps,) = random_maps(strides=(16,))
    rois = [random_rois(20, seed=1, whole=whole), random_rois(15, seed=2, whole=whole)]
    maps.requires_grad_()
    found = RegionPooling(size=size)([maps], rois)
    upward = torch.randn(found.shape, generator=torch.Generator().manual_seed(3))
    (found_gradient,) = torch.autograd.grad(found, maps, upward)

    gradient = np.zeros(maps.shape)
    row = 0
    for image, own in enumerate(rois):
        single = maps[image].detach().numpy()
        for roi in own.tolist():
            values, places = slow.pool(single, roi, 16, size)
            assert np.array_equal(found[row].detach().numpy(), values)
            gradient[image] += slow.pool_gradient(single.shape, places, upward[row].numpy())
            row += 1
    assert row == len(found)
    np.testing.assert_allclose(found_gradient.numpy(), gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling", [0, 1, 2])
def test_alignment_equals_the_slow_reference(sampling: int, aligned: bool) -> None:
    (maps,) = random_maps(strides=(16,), dtype=torch.float64)
    rois = [random_rois(12, seed=1).double(), random_rois(9, seed=2).double()]
    found = RegionPooling("align", 5, sampling, aligned=aligned)([maps], rois)
    expected = [
        slow.align(maps[image].numpy(), roi, 16, 5, sampling, aligned)
        for image, own in enumerate(rois)
        for roi in own.tolist()
    ]
    np.testing.assert_allclose(found.numpy(), np.stack(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("size", "sampling"), [(7, 2), (14, 2), (5, 0)])
def test_several_maps_are_torchvisions(size: int, sampling: int) -> None:
    maps = random_maps()
    rois = [random_rois(60, seed=1), random_rois(40, seed=2)]
    names = [str(stride) for stride in STRIDES]
    theirs = MultiScaleRoIAlign(names, size, sampling, canonical_scale=90)
    expected = theirs(OrderedDict(zip(names, maps, strict=True)), rois, [PIXELS] * 2)
    pooling = RegionPooling("align", size, sampling, STRIDES, reference=90)
    found = pooling(maps, rois)
    levels = assign_levels(torch.cat(rois), 4, reference=90)
    assert levels.bincount(minlength=4).min() > 3
    assert torch.equal(found, expected)
    # A further map is not looked at; one map of several is one without a choice.
    assert torch.equal(pooling([*maps, maps[-1][:, :, ::2, ::2]], rois), expected)
    expected = MultiScaleRoIAlign(["4"], size, sampling)({"4": maps[0]}, rois, [PIXELS] * 2)
    assert torch.equal(RegionPooling("align", size, sampling, (4,))(maps, rois), expected)


@pytest.mark.parametrize("kind", ["pool", "align"])
def test_regions_keep_their_order_and_their_gradients(kind: str) -> None:
    pooling = RegionPooling(kind, 3, strides=STRIDES, reference=90)
    maps = [level.requires_grad_() for level in random_maps()]
    rois = [random_rois(30, seed=1), random_rois(0), random_rois(20, seed=2)]
    maps = [torch.cat((level[:1], level[:1], level[1:])) for level in maps]
    together = pooling(maps, rois)
    assert together.shape == (50, 3, 3, 3)

    alone = [
        pooling([level[image : image + 1] for level in maps], [roi[None]])
        for image, own in enumerate(rois)
        for roi in own
    ]
    assert torch.equal(together, torch.cat(alone))
    upward = torch.randn(together.shape, generator=torch.Generator().manual_seed(0))
    found = torch.autograd.grad(together, maps, upward)
    expected = torch.autograd.grad(torch.cat(alone), maps, upward)
    for one, other in zip(found, expected, strict=True):
        assert other.any()
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["pool", "align"])
def test_gradients(kind: str) -> None:
    # Different values far from each other, so that no step changes which is largest.
    order = torch.randperm(2 * 8 * 12 + 2 * 4 * 6, generator=torch.Generator().manual_seed(0))
    fine, coarse = torch.split(order.double(), [2 * 8 * 12, 2 * 4 * 6])
    maps = (
        fine.view(1, 2, 8, 12).requires_grad_(),
        coarse.view(1, 2, 4, 6).requires_grad_(),
    )
    rois = [torch.tensor([[0.0, 0, 9, 7], [3.0, 5, 90, 60], [40.0, 10, 45, 60]]).double()]
    pooling = RegionPooling(kind, 2, strides=(8, 16), reference=40)

    def pool(*levels: Tensor) -> Tensor:
        return pooling(levels, rois)

    assert torch.autograd.gradcheck(pool, maps)


def expected_level(width: float, height: float) -> int:
    """Equation 1, as a number of the pyramid's levels 2 to 5."""
    return min(max(math.floor(4 + math.log2(math.sqrt(width * height) / 224)), 2), 5)


# FPN sheet, section 4: width, height -> level
LEVELS = {
    (16, 16): 2,
    (111, 111): 2,
    (112, 112): 3,
    (223, 223): 3,
    (224, 224): 4,
    (447, 447): 4,
    (448, 448): 5,
    (500, 100): 3,
}


def test_levels_are_the_sheets() -> None:
    rois = torch.tensor([[10.0, 20, 10 + width, 20 + height] for width, height in LEVELS])
    assert (2 + assign_levels(rois, 4)).tolist() == list(LEVELS.values())
    assert [expected_level(*size) for size in LEVELS] == list(LEVELS.values())
    inclusive = rois - torch.tensor([0.0, 0, 1, 1])
    assert (2 + assign_levels(inclusive, 4, pixel=1)).tolist() == list(LEVELS.values())
    assert assign_levels(inclusive, 4).tolist() != assign_levels(rois, 4).tolist()


def test_levels_of_any_size() -> None:
    rois = random_rois(500, seed=5)
    extents = (rois[:, 2:] - rois[:, :2]).tolist()
    expected = [expected_level(*extent) - 2 for extent in extents]
    assert assign_levels(rois, 4).tolist() == expected
    # Half of the reference is a level more; another finest level or reference level shifts all.
    doubled = assign_levels(rois, 9, finest=0, reference=112)
    assert torch.equal(doubled, assign_levels(rois, 9, finest=-1))
    assert torch.equal(doubled, assign_levels(rois, 9, finest=0, level_of_reference=5))


def test_regions_without_extent_go_to_the_finest_map() -> None:
    nan, inf = float("nan"), float("inf")
    rois = torch.tensor(
        [[5.0, 5, 5, 5], [9, 9, 2, 2], [9, 2, 2, 300], [nan, 0, 9, 9], [0, 0, inf, inf]]
    )
    assert assign_levels(rois, 4).tolist() == [0, 0, 0, 0, 3]
    assert assign_levels(rois[:0], 4).shape == (0,)


def test_degenerate_regions_are_one_cell() -> None:
    (maps,) = random_maps(images=1, strides=(16,))
    rois = torch.tensor([[100.0, 100, 20, 30], [96.0, 96, 96, 96]])
    found = RegionPooling(size=3)([maps], [rois])
    assert torch.equal(found[0], maps[0, :, 6, 6].view(3, 1, 1).expand(3, 3, 3))
    assert torch.equal(found[1], found[0])
    found = RegionPooling("align", 3, strides=STRIDES)(random_maps(images=1), [rois])
    assert found.isfinite().all()
    one_cell = torch.tensor([[100.0, 100, 104, 104]])
    assert torch.equal(
        found[:1], RegionPooling("align", 3, strides=STRIDES)(random_maps(images=1), [one_cell])
    )


@pytest.mark.parametrize("strides", [(16,), STRIDES])
@pytest.mark.parametrize("kind", ["pool", "align"])
def test_regions_outside_of_the_image_are_zero(kind: str, strides: tuple[int, ...]) -> None:
    maps = [level.requires_grad_() for level in random_maps(images=1, strides=strides)]
    rois = torch.tensor([[-500.0, -400, -100, -90], [600, 40, 700, 90], [40, 900, 90, 999]])
    found = RegionPooling(kind, 3, strides=strides)(maps, [rois])
    assert not found.any()
    for gradient in torch.autograd.grad(found.sum(), maps):
        assert not gradient.any()


@pytest.mark.parametrize("strides", [(16,), STRIDES])
@pytest.mark.parametrize("kind", ["pool", "align"])
def test_no_regions_and_no_images(kind: str, strides: tuple[int, ...]) -> None:
    pooling = RegionPooling(kind, 3, strides=strides)
    maps = [level.requires_grad_() for level in random_maps(strides=strides)]
    found = pooling(maps, [torch.zeros(0, 4), torch.zeros(0, 4)])
    assert found.shape == (0, 3, 3, 3)
    for gradient in torch.autograd.grad(found.sum(), maps):
        assert not gradient.any()
    assert pooling([level[:0] for level in maps], []).shape == (0, 3, 3, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["pool", "align"])
def test_short_maps_are_pooled_at_exact_corners(kind: str, dtype: torch.dtype) -> None:
    pooling = RegionPooling(kind, strides=STRIDES)
    maps = random_maps(dtype=dtype)
    rois = [random_rois(30, seed=1), random_rois(20, seed=2)]
    found = pooling(maps, rois)
    assert found.dtype == dtype
    assert torch.equal(found, pooling([level.float() for level in maps], rois).to(dtype))


def test_maps_in_channels_last_memory() -> None:
    maps, rois = random_maps(), [random_rois(30, seed=1), random_rois(20, seed=2)]
    last = [level.contiguous(memory_format=torch.channels_last) for level in maps]
    for kind in ("pool", "align"):
        pooling = RegionPooling(kind, strides=STRIDES)
        assert torch.equal(pooling(last, rois), pooling(maps, rois))


def test_numbers_of_maps_and_images_must_fit() -> None:
    rois = [random_rois(3)] * 2
    with pytest.raises(ValueError, match="3 maps for 4 strides"):
        RegionPooling(strides=STRIDES)(random_maps()[:3], rois)
    with pytest.raises(ValueError, match="regions of 3 images"):
        RegionPooling()(random_maps(strides=(16,)), [*rois, rois[0]])


def test_what_a_box_loses_at_its_far_corner() -> None:
    assert (RegionPooling("pool").pixel, RegionPooling("align").pixel) == (1, 0)


@pytest.mark.parametrize(
    "pooling", [RegionPooling(), RegionPooling("align", 14, 0, STRIDES, 112.5, 5, True)]
)
def test_settings_round_trip(pooling: RegionPooling) -> None:
    assert build_region_pooling(json.loads(json.dumps(pooling.settings()))) == pooling


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"kind": "warp"}, "region pooling 'warp' is none of pool, align"),
        ({"size": 0}, "to 0 bins a side"),
        ({"sampling": -1}, "-1 points a side"),
        ({"reference": 0}, "reference of 0 pixels"),
        ({"reference": float("nan")}, "reference of nan pixels"),
        ({"strides": ()}, "strides ''"),
        ({"strides": (0,)}, "strides '0'"),
        ({"strides": (4, 16)}, "strides '4, 16': give one number above 0, or several powers of 2"),
        ({"strides": (16, 8)}, "strides '16, 8'"),
        ({"strides": (6, 12)}, "strides '6, 12'"),
    ],
)
def test_nonsense_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingError, match=told):
        RegionPooling(**settings)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("strides", [(16,), STRIDES])
@pytest.mark.parametrize("kind", ["pool", "align"])
def test_cuda_equals_the_cpu(kind: str, strides: tuple[int, ...]) -> None:
    pooling = RegionPooling(kind, strides=strides)
    maps = random_maps(strides=strides)
    rois = [random_rois(60, seed=1, whole=True), random_rois(0), random_rois(40, seed=2)]
    maps = [torch.cat((level, level[:1])).requires_grad_() for level in maps]
    on_device = [level.detach().cuda().requires_grad_() for level in maps]
    expected, found = pooling(maps, rois), pooling(on_device, [own.cuda() for own in rois])
    torch.testing.assert_close(found.cpu(), expected)
    gradients = torch.autograd.grad(found.square().sum(), on_device)
    of_cpu = torch.autograd.grad(expected.square().sum(), maps)
    for one, other in zip(gradients, of_cpu, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-4, atol=1e-4)
