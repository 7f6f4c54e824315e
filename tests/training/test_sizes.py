from dataclasses import replace

import numpy as np
import pytest
import torch

from rcnnpipe.errors import SettingError
from rcnnpipe.models.backbones import Network, create_network
from rcnnpipe.models.preprocessing import Preprocessing
from rcnnpipe.models.pyramid import Pyramid
from rcnnpipe.models.pyramid_head import head_for
from rcnnpipe.models.warp import Crop
from rcnnpipe.systems.pretraining import PRETRAINING
from rcnnpipe.training.sizes import crop_at, preprocessing_at, require_sizes, size_of_epoch, takes

TWO = replace(PRETRAINING, sizes=(224, 180))
DRAWN = replace(PRETRAINING, random_size=(180, 184))


def network(name: str, pyramid: bool = False) -> Network:
    return create_network(name, 3, head=head_for(name, Pyramid()) if pyramid else None)


def test_sizes_take_turns() -> None:
    assert [size_of_epoch(TWO, 227, 0, epoch) for epoch in range(5)] == [224, 180, 224, 180, 224]
    assert [size_of_epoch(PRETRAINING, 227, 0, epoch) for epoch in range(2)] == [227, 227]


def test_a_random_size_depends_on_seed_and_epoch_alone() -> None:
    first = [size_of_epoch(DRAWN, 227, 0, epoch) for epoch in range(200)]
    again = [size_of_epoch(DRAWN, 227, 0, epoch) for epoch in reversed(range(200))][::-1]
    assert first == again
    assert first != [size_of_epoch(DRAWN, 227, 1, epoch) for epoch in range(200)]
    values, counts = np.unique(first, return_counts=True)
    assert values.tolist() == [180, 181, 182, 183, 184]  # both ends
    assert counts.min() > 20  # 40 each on average


def test_a_window_of_another_side_shows_the_same_region() -> None:
    assert crop_at(Crop(224, 16), 224) == Crop(224, 16)
    assert crop_at(Crop(224, 16), 112) == Crop(112, 8)
    assert crop_at(Crop(224, 16, "square", False), 180) == Crop(180, 13, "square", False)  # 12.86


def test_a_mean_image_is_warped_to_the_window() -> None:
    plain = Preprocessing(torch.zeros(3), torch.ones(3))
    assert preprocessing_at(plain, 3) is plain
    # columns 0, 4, 8, 12 at half the size: halfway between each two
    image = torch.arange(0.0, 16, 4).repeat(3, 4, 1)
    found = preprocessing_at(Preprocessing(image, torch.ones(3)), 2).mean_image
    assert found is not None
    assert found[0].tolist() == [[2, 10], [2, 10]]


def test_what_networks_take() -> None:
    assert [takes(network("demo"), size) for size in (56, 45, 112)] == [True, False, False]
    assert [takes(network("demo", True), size) for size in (6, 7, 45, 112)] == [False] + [True] * 3
    assert takes(network("resnet18"), 100)  # its classifier sees an average


def test_sizes_that_cannot_be_taken_are_told() -> None:
    require_sizes(network("demo"), PRETRAINING)
    require_sizes(network("demo"), replace(PRETRAINING, sizes=(56,)))
    require_sizes(network("demo", True), replace(PRETRAINING, sizes=(56, 45)))
    require_sizes(network("zf5"), TWO)
    alone = "demo's fully connected layers take windows of 56 pixels, not of 45; give --pyramid"
    with pytest.raises(SettingError, match=alone + ".*leave --sizes out"):
        require_sizes(network("demo"), replace(PRETRAINING, sizes=(56, 45)))
    with pytest.raises(SettingError, match=alone + ".*leave --random-size out"):
        require_sizes(network("demo"), replace(PRETRAINING, random_size=(45, 56)))
    with pytest.raises(SettingError, match=r"windows of 5 pixels are too small for demo.*--sizes"):
        require_sizes(network("demo", True), replace(PRETRAINING, sizes=(56, 5)))
