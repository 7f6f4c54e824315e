import json
from typing import Any

import pytest
import torch

from rcnnpipe.errors import SettingError
from rcnnpipe.models.backbones import Network, build_network, create_network
from rcnnpipe.models.pyramid import Pyramid
from rcnnpipe.models.pyramid_head import head_for
from rcnnpipe.training.initial import PYRAMID_OPTIONS, calibrate, on_pyramid

NONE: dict[str, Any] = dict.fromkeys(PYRAMID_OPTIONS)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def on_its_pyramid(**options: Any) -> Network:
    network = create_network("demo", 3, generator())
    return on_pyramid(network, NONE | {"pyramid": (1, 2)} | options, generator())[0]


def test_calibrated_features_have_a_mean_square_of_one() -> None:
    network = on_its_pyramid()
    windows = 100 * torch.rand(4, 3, 56, 56, generator=generator())
    before = network(windows, ("pool5",))["pool5"].detach()
    calibrate(network, windows)
    after = network(windows, ("pool5",))["pool5"].detach()
    assert float(before.square().mean()) > 10
    assert float(after.square().mean()) == pytest.approx(1, rel=1e-4)
    settings = json.loads(json.dumps(network.settings()))
    rebuilt = build_network(settings, network.tensors())
    assert torch.equal(rebuilt(windows, ("pool5",))["pool5"], after)


def test_a_network_that_sees_nothing_is_not_calibrated() -> None:
    network = on_its_pyramid()
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    calibrate(network, torch.rand(2, 3, 56, 56))
    assert network.head is not None
    assert network.head.pyramid.scale == 1


def test_options_make_the_head() -> None:
    head = on_its_pyramid(
        map="conv4", hidden=7, scales=(100, 200), reference=50.0, projection="authors"
    ).head
    assert head is not None
    assert (head.map, head.hidden, head.view.scales) == ("conv4", 7, (100, 200))
    assert (head.view.reference, head.view.projection) == (50.0, "authors")
    usual = head_for("demo", Pyramid((1, 2)))
    assert on_its_pyramid().head == usual
    # The paper's scales for windows of 224, for windows of 56.
    assert usual.view.scales == (120, 144, 172, 216, 300)


def test_a_pyramid_is_neither_put_twice_nor_half() -> None:
    with pytest.raises(SettingError, match="has a pyramid of its own; leave --pyramid out"):
        on_pyramid(on_its_pyramid(), NONE | {"pyramid": (1,)}, generator())
    network = create_network("demo", 3, generator())
    with pytest.raises(SettingError, match="--hidden is for a network with a pyramid"):
        on_pyramid(network, NONE | {"hidden": 5}, generator())
    assert on_pyramid(network, NONE, generator()) == (network, {"head": None})
