"""The feature pyramid against torchvision's, slow ablations, and the sheet's sizes."""

import json
import math
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from rcnnpipe.errors import SettingError
from rcnnpipe.models.fpn import FeaturePyramid, Neck, build_neck
from tests.reference import fpn as slow

WIDTHS = (3, 5, 4, 6)
ABLATIONS: dict[str, dict[str, bool]] = {
    "whole": {},
    "no extra map": {"extra": False},
    "no lateral": {"lateral": False},
    "no top-down": {"top_down": False},
    "finest only": {"finest_only": True},
    "finest alone": {"finest_only": True, "top_down": False},
    "finest, no lateral": {"finest_only": True, "lateral": False},
}


def random_maps(height: int, width: int, images: int = 2, seed: int = 0) -> list[Tensor]:
    """Bottom-up maps of an image of so many finest cells, halved and rounded up each time."""
    random = torch.Generator().manual_seed(seed)
    maps = []
    for channels in WIDTHS:
        maps.append(torch.randn(images, channels, height, width, generator=random))
        height, width = math.ceil(height / 2), math.ceil(width / 2)
    return maps


def pyramid_of(channels: int = 7, seed: int = 0, **settings: Any) -> FeaturePyramid:
    """A pyramid with values, biases too."""
    random = torch.Generator().manual_seed(seed)
    pyramid = FeaturePyramid(Neck(channels=channels, **settings), WIDTHS)
    pyramid.initialise(random)
    with torch.no_grad():
        for name, value in pyramid.named_parameters():
            if name.endswith("bias"):
                value.normal_(generator=random)
    return pyramid


def torchvisions(channels: int = 7) -> FeaturePyramidNetwork:
    return FeaturePyramidNetwork(list(WIDTHS), channels, extra_blocks=LastLevelMaxPool())


@pytest.mark.parametrize("size", [(32, 48), (25, 43), (13, 1), (9, 10)])
def test_the_whole_pyramid_is_torchvisions(size: tuple[int, int]) -> None:
    theirs, ours, maps = (
        torchvisions(),
        FeaturePyramid(Neck(channels=7), WIDTHS),
        random_maps(*size),
    )
    ours.load_state_dict(theirs.state_dict())
    expected = list(theirs(OrderedDict(enumerate(maps))).values())
    found = ours(maps)
    assert len(found) == 5
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_gradients_are_torchvisions() -> None:
    theirs, ours, maps = (
        torchvisions(),
        FeaturePyramid(Neck(channels=7), WIDTHS),
        random_maps(9, 14),
    )
    ours.load_state_dict(theirs.state_dict())
    for outputs in (ours(maps), theirs(OrderedDict(enumerate(maps))).values()):
        sum((output**2).sum() for output in outputs).backward()
    expected = {name: value.grad for name, value in theirs.named_parameters()}
    for name, value in ours.named_parameters():
        torch.testing.assert_close(value.grad, expected[name])


@pytest.mark.parametrize("size", [(16, 24), (13, 21)], ids=str)
@pytest.mark.parametrize("name", ABLATIONS)
def test_ablations_equal_the_slow_reference(name: str, size: tuple[int, int]) -> None:
    pyramid, maps = pyramid_of(**ABLATIONS[name]), random_maps(*size)
    expected = slow.pyramid(maps, pyramid.state_dict(), **ABLATIONS[name])
    with torch.no_grad():
        found = pyramid.double()([level.double() for level in maps])
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


# name -> levels that have a 1 x 1, levels that have a 3 x 3, maps given
PARTS: dict[str, tuple[str, str, int]] = {
    "whole": ("0123", "0123", 5),
    "no extra map": ("0123", "0123", 4),
    "no lateral": ("3", "0123", 5),
    "no top-down": ("0123", "0123", 5),
    "finest only": ("0123", "0", 1),
    "finest alone": ("0", "0", 1),
    "finest, no lateral": ("3", "0", 1),
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_has_the_parts_it_uses(name: str) -> None:
    pyramid = pyramid_of(**ABLATIONS[name])
    inner, outer, count = PARTS[name]
    assert set(pyramid.state_dict()) == {
        f"{block}.{level}.0.{kind}"
        for block, levels in (("inner_blocks", inner), ("layer_blocks", outer))
        for level in levels
        for kind in ("weight", "bias")
    }
    assert set(pyramid.state_dict()) <= set(torchvisions().state_dict())
    outputs = pyramid(random_maps(12, 9))
    assert len(outputs) == count
    sum((output**2).sum() for output in outputs).backward()
    for value in pyramid.parameters():
        assert value.grad is not None
        assert value.grad.any()


# Sheet section 1: 800 x 1344
SIZES = [(200, 336), (100, 168), (50, 84), (25, 42), (13, 21)]


def test_sizes_are_the_sheets() -> None:
    pyramid = pyramid_of(channels=2)
    with torch.no_grad():
        found = [tuple(level.shape) for level in pyramid(random_maps(200, 336, images=1))]
    assert found == [(1, 2, *size) for size in SIZES]
    assert [3 * height * width for height, width in SIZES] == [201600, 50400, 12600, 3150, 819]
    assert sum(3 * height * width for height, width in SIZES) == 268569


def test_the_extra_map_is_every_other_cell() -> None:
    *_, coarsest, extra = pyramid_of()(random_maps(41, 30))
    assert torch.equal(extra, coarsest[:, :, ::2, ::2])


def test_the_merged_map_goes_on_downward() -> None:
    pyramid, maps = pyramid_of(), random_maps(16, 16)
    before = pyramid(maps)
    with torch.no_grad():
        pyramid.layer_blocks["3"][0].weight.zero_()  # type: ignore[index]
    after = pyramid(maps)
    assert [torch.equal(one, other) for one, other in zip(before, after, strict=True)] == [
        True,
        True,
        True,
        False,
        False,
    ]


def test_channels_last_maps_stay_so() -> None:
    pyramid, maps = pyramid_of(), random_maps(16, 24)
    last = [level.contiguous(memory_format=torch.channels_last) for level in maps]
    for one, other in zip(pyramid(last), pyramid(maps), strict=True):
        assert one.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_first_values_repeat_and_come_from_the_generator_alone() -> None:
    state = torch.get_rng_state()
    first, again, other = (pyramid_of(seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in first.items():
        assert torch.equal(value, again[name])
        assert not torch.equal(value, other[name])


def test_first_values_are_detectrons() -> None:
    pyramid = FeaturePyramid(Neck(channels=64), (32, 64, 128, 256))
    pyramid.initialise(torch.Generator().manual_seed(0))
    for name, value in pyramid.state_dict().items():
        if name.endswith("bias"):
            assert not value.any()
            continue
        bound = math.sqrt(3 / value[0].numel())  # Caffe2's XavierFill: inputs alone
        assert 0.97 * bound < value.abs().max() <= bound
        assert abs(float(value.std()) / (bound / math.sqrt(3)) - 1) < 0.05
        assert abs(float(value.mean())) < 0.05 * bound


def test_one_layer_alone() -> None:
    pyramid = FeaturePyramid(Neck(("conv5",), channels=2), (3,))
    pyramid.initialise(torch.Generator().manual_seed(0))
    assert [tuple(level.shape) for level in pyramid([torch.rand(1, 3, 5, 7)])] == [
        (1, 2, 5, 7),
        (1, 2, 3, 4),
    ]


def test_numbers_of_maps_must_fit() -> None:
    with pytest.raises(ValueError, match="3 widths for 4 layers"):
        FeaturePyramid(Neck(), WIDTHS[:3])
    with pytest.raises(ValueError, match="3 maps for a pyramid on 4"):
        pyramid_of()(random_maps(8, 8)[:3])


@pytest.mark.parametrize("neck", [Neck(), Neck(("conv4", "conv5"), 32, False, True, True, False)])
def test_settings_round_trip(neck: Neck) -> None:
    assert build_neck(json.loads(json.dumps(neck.settings()))) == neck


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"layers": ()}, "a feature pyramid on ''"),
        ({"layers": ("layer1", "layer1")}, "on 'layer1, layer1': give different layers"),
        ({"channels": 0}, "of 0 channels"),
        ({"lateral": False, "top_down": False}, "neither lateral connections nor a top-down way"),
    ],
)
def test_nonsense_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingError, match=told):
        Neck(**settings)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ABLATIONS)
def test_cuda_equals_the_cpu(name: str) -> None:
    pyramid = pyramid_of(**ABLATIONS[name]).double()
    maps = [level.double() for level in random_maps(13, 21)]
    expected = pyramid(maps)
    found = pyramid.cuda()([level.cuda() for level in maps])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other)
    pyramid.initialise(torch.Generator().manual_seed(1))
    on_cpu = FeaturePyramid(pyramid.neck, WIDTHS)
    on_cpu.initialise(torch.Generator().manual_seed(1))
    for value, other in zip(pyramid.parameters(), on_cpu.parameters(), strict=True):
        assert torch.equal(value.cpu(), other.double())
