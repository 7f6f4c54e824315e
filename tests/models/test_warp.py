import numpy as np
import pytest
import torch

from rcnnpipe.errors import SettingError
from rcnnpipe.models.preprocessing import Preprocessing, preset
from rcnnpipe.models.warp import (
    Crop,
    build_crop,
    crop_geometry,
    paste_by_grid,
    round_half_away,
    warp,
)
from tests.reference.warp import warp_one

CROPS = [
    Crop(),
    Crop(size=56, padding=4),
    Crop(size=61, padding=0),
    Crop(size=61, padding=0, mode="square"),
    Crop(size=61, padding=0, mode="square", context=False),
    Crop(size=61, padding=7, mode="square"),
    Crop(size=61, padding=7, mode="square", context=False),
]


def random_case(crop: Crop, regions: int = 24, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """An image and boxes inside, across and outside of its borders; one pixel wide; fractional."""
    rng = np.random.default_rng(seed + crop.size + crop.padding)
    image = torch.from_numpy(rng.integers(0, 256, (3, 75, 110), dtype=np.uint8))
    low = np.stack([rng.uniform(-20, 100, regions), rng.uniform(-20, 65, regions)], 1)
    size = rng.uniform(1, 90, (regions, 2))
    boxes = np.concatenate([low, low + size], 1)
    boxes[: regions // 2] = np.round(boxes[: regions // 2])
    boxes[0] = (0, 0, 110, 75)
    boxes[1] = (109, 74, 110, 75)
    boxes[2] = (-60, -50, -30, -20)
    boxes[3] = (200, 10, 230, 60)
    return image, torch.from_numpy(boxes)


def reference(
    image: torch.Tensor, boxes: torch.Tensor, crop: Crop, mean: torch.Tensor, flip: torch.Tensor
) -> torch.Tensor:
    windows = [
        warp_one(
            image,
            (x1 + 1, y1 + 1, x2, y2),
            mean,
            size=crop.size,
            padding=crop.padding,
            mode=crop.mode,
            context=crop.context,
            flip=bool(mirrored),
        )
        for (x1, y1, x2, y2), mirrored in zip(boxes.tolist(), flip, strict=True)
    ]
    return torch.stack(windows).float()


# (box 1-based inclusive, expanded, unclipped w h, pasted w h, offset) on a 500 x 375 image: the
# values of the authors' code.
TABLE = [
    ((100, 80, 294, 274), (84, 64, 311, 291), (228, 228), (227, 227), (0, 0)),
    ((1, 1, 50, 100), (-3, -7, 55, 109), (59, 117), (212, 211), (15, 16)),
    ((450, 300, 500, 375), (446, 294, 505, 382), (60, 89), (208, 209), (0, 0)),
    ((1, 1, 500, 375), (-40, -30, 542, 407), (583, 438), (195, 194), (16, 16)),
]


@pytest.mark.parametrize(("box", "expanded", "unclipped", "pasted", "offset"), TABLE)
def test_geometry_is_the_authors(
    box: tuple[int, ...],
    expanded: tuple[int, ...],
    unclipped: tuple[int, ...],
    pasted: tuple[int, ...],
    offset: tuple[int, ...],
) -> None:
    x1, y1, x2, y2 = box
    continuous = torch.tensor([[x1 - 1, y1 - 1, x2, y2]], dtype=torch.float32)
    geometry = crop_geometry(continuous, (375, 500), Crop())
    assert tuple(geometry.expanded[0].tolist()) == expanded
    e = geometry.expanded[0]
    assert tuple((e[2:] - e[:2] + 1).tolist()) == unclipped
    assert tuple(geometry.pasted[0].tolist()) == pasted
    assert tuple(geometry.offset[0].tolist()) == offset


def test_mirrored_windows_start_with_the_right_hand_padding() -> None:
    # Row 3 of the table: 60 columns of which 446..500, 55, are inside: 5 * 227/60 = 18.9 -> 19
    box = torch.tensor([[449.0, 299, 500, 375]])
    geometry = crop_geometry(box, (375, 500), Crop(), flip=torch.tensor([True]))
    assert geometry.offset[0].tolist() == [19, 0]
    assert geometry.pasted[0].tolist() == [208, 209]  # 19 + 208 = 227


def test_round_half_away() -> None:
    values = torch.tensor([-2.5, -1.5, -0.5, -0.4, 0.4, 0.5, 1.5, 2.5])
    assert round_half_away(values).tolist() == [-3, -2, -1, 0, 0, 1, 2, 3]


# 255 grey levels times the rounding of float32: 255 * 2**-24 * a few operations
TOLERANCE = 2e-4


@pytest.mark.parametrize("crop", CROPS, ids=str)
def test_windows_equal_the_slow_reference(crop: Crop) -> None:
    image, boxes = random_case(crop)
    flip = torch.arange(len(boxes)) % 3 == 0
    mean = torch.tensor([104.0, 117.0, 123.0])
    preprocessing = Preprocessing(mean, torch.ones(3))
    expected = reference(
        image, boxes, crop, mean.view(3, 1, 1).expand(3, crop.size, crop.size), flip
    )
    windows = warp(image, boxes, crop, preprocessing, flip)
    assert windows.shape == (len(boxes), 3, crop.size, crop.size)
    torch.testing.assert_close(windows, expected, atol=TOLERANCE, rtol=0, check_stride=False)
    assert not windows[2].any()  # wholly outside: the mean alone
    assert not windows[3].any()
    unflipped = warp(image, boxes, crop, preprocessing)
    assert torch.equal(unflipped[~flip], windows[~flip])


# Normalised float32 places are off by up to 2**-24 * W pixels, times 255 a pixel
GRID_TOLERANCE = 5e-3


@pytest.mark.parametrize("crop", CROPS, ids=str)
def test_grid_equals_the_compiled_loop(crop: Crop) -> None:
    image, boxes = random_case(crop, seed=1)
    flip = torch.arange(len(boxes)) % 2 == 0
    preprocessing = Preprocessing(torch.tensor([104.0, 117.0, 123.0]), torch.ones(3))
    expected = warp(image, boxes, crop, preprocessing, flip)
    geometry = crop_geometry(boxes, (75, 110), crop, flip)
    windows = paste_by_grid(preprocessing.apply(image), geometry, flip, crop.size)
    torch.testing.assert_close(windows, expected, atol=GRID_TOLERANCE, rtol=0, check_stride=False)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("crop", CROPS, ids=str)
def test_cuda_equals_the_reference(crop: Crop) -> None:
    image, boxes = random_case(crop, seed=2)
    flip = torch.arange(len(boxes)) % 2 == 0
    mean = torch.from_numpy(np.random.default_rng(5).uniform(0, 255, (3, crop.size, crop.size)))
    preprocessing = Preprocessing(mean.float(), torch.ones(3))
    windows = warp(image.cuda(), boxes, crop, preprocessing, flip).cpu()
    expected = reference(image, boxes, crop, mean, flip)
    torch.testing.assert_close(windows, expected, atol=GRID_TOLERANCE, rtol=0, check_stride=False)


@pytest.mark.parametrize("crop", CROPS[:2] + CROPS[-1:], ids=str)
def test_mean_image_is_subtracted_at_the_same_place(crop: Crop) -> None:
    image, boxes = random_case(crop, seed=3)
    flip = torch.arange(len(boxes)) % 2 == 1
    mean = torch.from_numpy(np.random.default_rng(4).uniform(0, 255, (3, crop.size, crop.size)))
    windows = warp(image, boxes, crop, Preprocessing(mean.float(), torch.ones(3)), flip)
    expected = reference(image, boxes, crop, mean, flip)
    torch.testing.assert_close(windows, expected, atol=TOLERANCE, rtol=0, check_stride=False)


def test_the_filling_is_zero_after_preprocessing() -> None:
    image = torch.full((3, 40, 40), 200, dtype=torch.uint8)
    windows = warp(image, torch.tensor([[0.0, 0, 40, 40]]), Crop(), preset("torchvision"))
    # rows -2..44 of 1..40: 3 * 227 / 47 = 14.5 - a little -> 14
    assert not windows[0, :, :14].any()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (200 / 255 - mean) / std
    torch.testing.assert_close(windows[0, :, 14, 14], expected, check_stride=False)
    torch.testing.assert_close(windows[0, :, 113, 113], expected, check_stride=False)


def test_bgr_weights_see_blue_first() -> None:
    image = torch.zeros(3, 30, 30, dtype=torch.uint8)
    image[2] = 255  # blue
    windows = warp(image, torch.tensor([[5.0, 5, 20, 20]]), Crop(), preset("caffe"))
    torch.testing.assert_close(
        windows[0, :, 100, 100],
        torch.tensor([255 - 104.00698793, -116.66876762, -122.67891434]),
        check_stride=False,
    )


def test_no_boxes_give_no_windows() -> None:
    image = torch.zeros(3, 30, 30, dtype=torch.uint8)
    windows = warp(image, torch.zeros(0, 4), Crop(), preset("caffe"))
    assert windows.shape == (0, 3, 227, 227)


def test_crop_settings_round_trip_and_refuse_nonsense() -> None:
    crop = Crop(56, 4, "square", False)
    assert build_crop(crop.settings()) == crop
    with pytest.raises(SettingError, match="neither warp nor square"):
        Crop(mode="stretch")
    with pytest.raises(SettingError, match="leaves nothing of a window of 32"):
        Crop(size=32, padding=16)
    with pytest.raises(SettingError, match="mean image is 227 pixels wide, the window 56"):
        warp(
            torch.zeros(3, 9, 9, dtype=torch.uint8),
            torch.tensor([[0.0, 0, 5, 5]]),
            Crop(56, 4),
            Preprocessing(torch.zeros(3, 227, 227), torch.ones(3)),
        )
