"""Sizes of whole images against the sheet's table, and batches against torchvision's transform."""

import json
from typing import Any

import pytest
import torch
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from rcnnpipe.errors import SettingError
from rcnnpipe.models.image_view import (
    ImageView,
    build_image_view,
    corner_factors,
    resize,
    to_batch,
)
from rcnnpipe.models.preprocessing import PRESETS, preset

# Fast R-CNN sheet, section 3: size -> scale, resized
TABLE = {
    (375, 500): (1.6, (600, 800)),
    (333, 500): (1.801802, (600, 901)),
    (480, 640): (1.25, (600, 800)),
    (300, 900): (1.111111, (333, 1000)),
}


@pytest.mark.parametrize("size", TABLE)
def test_sizes_are_the_sheets(size: tuple[int, int]) -> None:
    expected, resized = TABLE[size]
    view = ImageView()
    for turned in (size, size[::-1]):
        scale = view.scale_of(turned, view.scales[0])
        assert scale == pytest.approx(expected, abs=5e-7)
        assert view.resized_size(turned, scale) == (resized if turned == size else resized[::-1])


def test_the_limit_is_compared_after_rounding() -> None:
    size = (601, 1002)  # the longer side becomes 1000.33
    assert ImageView().scale_of(size, 600) == 600 / 601
    assert ImageView(rounding="floor").scale_of(size, 600) == 1000 / 1002
    assert ImageView().scale_of((600, 1001), 600) == 1000 / 1001


def test_sizes_are_whole_and_never_nothing() -> None:
    halves = {"round": (2, 4), "floor": (2, 3)}  # of 2.5 and 3.5
    for rounding, expected in halves.items():
        view = ImageView(rounding=rounding)
        assert view.resized_size((5, 7), 0.5) == expected
        scale = view.scale_of((1, 5000), 600)
        assert scale == 0.2
        assert view.resized_size((1, 5000), scale) == (1, 1000)


def random_image(height: int, width: int, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=random, dtype=torch.uint8)


@pytest.mark.parametrize(
    "sizes",
    [
        [(375, 500)],
        [(333, 500), (500, 353)],
        [(120, 400), (64, 64), (101, 77)],
        [(900, 1400), (31, 57)],
    ],
    ids=str,
)
def test_batches_are_torchvisions(sizes: list[tuple[int, int]]) -> None:
    view = ImageView((200,), 333, 32, "floor")
    usual = PRESETS["torchvision"]
    transform = GeneralizedRCNNTransform(200, 333, usual["mean"], usual["std"]).eval()
    images = [random_image(*size, seed=number) for number, size in enumerate(sizes)]
    expected, _ = transform([image / 255 for image in images])

    resized = []
    for image, size in zip(images, sizes, strict=True):
        new_size = view.resized_size(size, view.scale_of(size, view.scales[-1]))
        resized.append(resize(preset("torchvision").apply(image), new_size))
    assert [tuple(image.shape[1:]) for image in resized] == expected.image_sizes
    batch = to_batch(resized, view.multiple)
    torch.testing.assert_close(batch, expected.tensors, rtol=0, atol=1e-5)


def test_scales_are_torchvisions_for_every_size() -> None:
    # floor(side * scale) may miss the shorter side by a pixel; theirs does the same.
    transform = GeneralizedRCNNTransform(80, 133, [0.0] * 3, [1.0] * 3).eval()
    view = ImageView((80,), 133, 32, "floor")
    for height in range(5, 200, 13):
        for width in range(5, 200, 17):
            image, _ = transform.resize(torch.zeros(3, height, width))
            size = (height, width)
            assert view.resized_size(size, view.scale_of(size, 80)) == tuple(image.shape[1:])


def test_resizing_interpolates_between_the_middles_of_pixels() -> None:
    ramp = torch.arange(4.0).expand(3, 2, 4)
    expected = [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]
    assert resize(ramp, (4, 8))[2, 1].tolist() == expected
    assert resize(ramp, (2, 2))[0, 0].tolist() == [0.5, 2.5]
    assert torch.equal(resize(ramp, (2, 4)), ramp)


def test_a_batch_is_padded_with_zeros_right_and_below() -> None:
    images = [torch.ones(3, 4, 6), 2 * torch.ones(3, 5, 2)]
    batch = to_batch(images)
    assert batch.shape == (2, 3, 5, 6)
    assert to_batch(images, 4).shape == (2, 3, 8, 8)
    for multiple in (1, 4, 32):
        padded = to_batch(images, multiple)
        assert torch.equal(padded[0, :, :4, :6], images[0])
        assert torch.equal(padded[1, :, :5, :2], images[1])
        assert padded.sum() == 3 * (4 * 6 + 2 * 5 * 2)


def test_a_batch_keeps_the_dtype_and_shares_nothing() -> None:
    image = torch.ones(3, 4, 6, dtype=torch.float64)
    batch = to_batch([image])
    assert batch.dtype == torch.float64
    batch.zero_()
    assert image.all()


@pytest.mark.parametrize("view", [ImageView(), ImageView((480, 576), 2000, 32, "floor")])
def test_settings_round_trip(view: ImageView) -> None:
    assert build_image_view(json.loads(json.dumps(view.settings()))) == view


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"scales": ()}, "shorter sides of ''"),
        ({"scales": (600, 0)}, "shorter sides of '600, 0'"),
        ({"longest": 500}, "a longest side of 500 pixels is below a shorter side of 600"),
        ({"multiple": 0}, "multiples of 0 pixels"),
        ({"rounding": "ceil"}, "rounding 'ceil' is none of round, floor"),
    ],
)
def test_nonsense_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingError, match=told):
        ImageView(**settings)


def test_factors_of_boxes() -> None:
    size = (201, 333)
    authors, theirs = ImageView((160,), 266), ImageView((160,), 266, rounding="floor")
    scale = theirs.scale_of(size, 160)
    assert theirs.resized_size(size, scale) == (160, 265)
    assert theirs.factors(size, scale) == (265 / 333, 160 / 201)
    assert authors.factors(size, scale) == (scale, scale)
    assert corner_factors((2.0, 3.0)).tolist() == [2, 3, 2, 3]
