from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from rcnnpipe.errors import SettingError
from rcnnpipe.models.backbones import Network, create_network
from rcnnpipe.models.preprocessing import Preprocessing
from rcnnpipe.models.pyramid import Pyramid
from rcnnpipe.models.pyramid_head import head_for
from rcnnpipe.models.warp import Crop
from rcnnpipe.training.examples import patches
from rcnnpipe.training.views import Views, frames_of, squares_in, views_of, whole_view
from tests.training.made import record_of


def network(pyramid: bool = False) -> Network:
    return create_network("demo", 3, head=head_for("demo", Pyramid()) if pyramid else None)


def boxes_of(views: Views, frame: tuple[int, ...]) -> list[list[float]]:
    found: list[list[float]] = squares_in(np.array([frame], np.float32), views.squares)[0].tolist()
    return found


def test_ten_views_are_corners_and_centre_mirrored_too() -> None:
    # 80 x 64 pixels: windows are 7/8 of 64 wide, with room for 24 and 8 pixels
    views = views_of("ten", network())
    assert (views.count, views.mirrored, views.full) == (10, True, None)
    assert boxes_of(views, (0, 0, 80, 64)) == [
        [0, 0, 56, 56],
        [24, 0, 80, 56],
        [0, 8, 56, 64],
        [24, 8, 80, 64],
        [12, 4, 68, 60],
    ]
    # a shorter side of 112 is twice the window; frames may lie anywhere
    assert boxes_of(views_of("ten", network(), scale=112), (10, 20, 90, 84)) == [
        [10, 20, 42, 52],
        [58, 20, 90, 52],
        [10, 52, 42, 84],
        [58, 52, 90, 84],
        [34, 36, 66, 68],
    ]


def test_the_crop_of_an_image_is_the_middle_patch() -> None:
    views = views_of("crop", network())
    frames = np.array([[0, 0, 80, 64], [0, 0, 333, 501]], np.float32)
    middle = patches(frames, np.full((2, 2), 0.5, np.float32))
    assert np.array_equal(squares_in(frames, views.squares)[:, 0], middle)
    assert (views.count, views.mirrored) == (1, False)
    assert boxes_of(views_of("crop", network(), scale=112), (0, 0, 80, 64)) == [[24, 16, 56, 48]]


def test_the_crop_of_an_object_is_the_networks_own_window() -> None:
    views = views_of("crop", network(), whole_images=False)
    assert views == Views(stretched=True)
    assert views.count == 1


def test_multi_has_96_views_and_two_of_the_whole_with_a_pyramid() -> None:
    views = views_of("multi", network())
    assert (views.count, views.full) == (96, None)
    whole = views_of("multi", network(pyramid=True))
    assert (whole.count, whole.full, whole.squares) == (98, 64, views.squares)
    # 112 x 56: at the smallest scale three places along the longer side
    boxes = boxes_of(views, (0, 0, 112, 56))
    assert boxes[:3] == [[0, 0, 56, 56], [28, 0, 84, 56], [56, 0, 112, 56]]
    # at scale 448 nine places of half the height
    assert boxes[3 + 27 : 3 + 36] == [
        [42, 14, 70, 42],
        [0, 0, 28, 28],
        [84, 0, 112, 28],
        [0, 28, 28, 56],
        [84, 28, 112, 56],
        [42, 0, 70, 28],
        [0, 14, 28, 42],
        [84, 14, 112, 42],
        [42, 28, 70, 56],
    ]
    sides = sorted({round(box[2] - box[0], 3) for box in boxes}, reverse=True)
    assert sides == [56, 49, 41.813, 34.844, 28, 22.4]  # 56 * 224 / each scale


def test_full_has_the_whole_frame_at_256_of_224() -> None:
    assert views_of("full", network(pyramid=True)) == Views(full=64)  # 56 * 256 / 224
    assert views_of("full", network(pyramid=True), scale=40) == Views(full=40)
    assert views_of("full", network(pyramid=True)).count == 1


def test_a_whole_view_is_resized_with_its_mean() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 48, 3), np.uint8)
    mean = torch.rand(3, 56, 56, generator=torch.Generator().manual_seed(0))
    std = torch.tensor([1.0, 2, 4])
    found = whole_view(pixels, 40, Preprocessing(mean, std, "BGR", scale=0.5))
    assert found.shape == (3, 40, 64)
    image = torch.from_numpy(pixels).permute(2, 0, 1).flip(0).float()
    resized = interpolate(image[None], (40, 64), mode="bilinear")[0] / 2
    expected = resized - interpolate(mean[None], (40, 64), mode="bilinear")[0]
    torch.testing.assert_close(found, expected / std.view(3, 1, 1), atol=1e-4, rtol=1e-5)


def test_frames_are_boxes_with_context_inside_of_their_images() -> None:
    # A window of 40 with 10 of context shows twice the object. Girshick's centre lies half a pixel
    # right of the middle: 20..40 has the 1-based centre 31 and half a width of 10, so that
    # 11..51 is seen, 10..51 from 0.
    crop = Crop(40, 10)
    records = [record_of(path=Path("a"), size=(60, 80)), record_of(path=Path("b"), size=(45, 45))]
    boxes = np.array([[20, 20, 40, 40], [20, 20, 40, 40], [44.8, 0, 45.5, 9]], np.float32)
    found = frames_of(records, np.array([0, 1, 1]), boxes, crop)
    assert found[:2].tolist() == [[10, 10, 51, 51], [10, 10, 45, 45]]
    assert found[2, 2] == 45
    assert (found[2, 2:] - found[2, :2] >= 1).all()


def test_wrong_choices_are_told() -> None:
    with pytest.raises(SettingError, match=r"--views full .* takes a pyramid.*--pyramid"):
        views_of("full", network())
    with pytest.raises(SettingError, match="--scale 55 leaves no room for windows of 56"):
        views_of("ten", network(), scale=55)
    with pytest.raises(SettingError, match="no meaning with --views multi"):
        views_of("multi", network(), scale=64)
    with pytest.raises(SettingError, match="no meaning with --views crop of objects"):
        views_of("crop", network(), whole_images=False, scale=64)
