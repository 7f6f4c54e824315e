"""Networks under a pyramid: their layers, what they keep of their weights, one length for all."""

import json

import pytest
import torch
from torch import nn

from rcnnpipe.errors import SettingError
from rcnnpipe.models.architectures import NETWORKS
from rcnnpipe.models.backbones import Network, build_network, create_network
from rcnnpipe.models.map_view import MapView
from rcnnpipe.models.pyramid import Pyramid
from rcnnpipe.models.pyramid_head import PyramidHead, build_head, head_for, maps_of
from rcnnpipe.models.weights import put_on_pyramid

LEVELS = (1, 2, 3, 6)
HIDDEN = 16
# Channels of each network's last map
CHANNELS = {
    "alexnet": 256,
    "caffenet": 256,
    "demo": 96,
    "mobilenet_v3_large": 960,
    "resnet101": 2048,
    "resnet18": 512,
    "resnet50": 2048,
    "squeezenet": 512,
    "vgg16": 512,
    "zf5": 256,
}
BEHIND = ("pool5", "fc6", "fc7", "logits")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def head_of(name: str, *levels: int, map_layer: str | None = None) -> PyramidHead:
    return head_for(name, Pyramid(levels or LEVELS), map_layer, HIDDEN)


def pooled(name: str, *levels: int, map_layer: str | None = None, outputs: int = 5) -> Network:
    head = head_of(name, *levels, map_layer=map_layer)
    return create_network(name, outputs, generator(), head=head)


def images_of(height: int, width: int, count: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, height, width, generator=generator(seed))


def owners(network: Network) -> set[str]:
    """Every module that a layer runs through."""
    return {path for layer in network.architecture.layers.values() for path in layer.modules}


def test_every_network_is_told() -> None:
    assert CHANNELS.keys() == NETWORKS.keys()


@pytest.mark.parametrize("name", CHANNELS)
def test_every_network_can_stand_under_a_pyramid(name: str) -> None:
    network = create_network(name, 5, head=head_of(name))
    usual = NETWORKS[name]
    maps = maps_of(usual)
    assert maps[-1] == usual.map
    assert network.layer_names == (*maps, *BEHIND)
    layers = network.architecture.layers
    assert {layer: layers[layer] for layer in maps} == {
        layer: usual.layers[layer] for layer in maps
    }
    length = 50 * CHANNELS[name]
    sizes = {"fc6": (HIDDEN, length), "fc7": (HIDDEN, HIDDEN), "fc8": (5, HIDDEN)}
    for part, shape in sizes.items():
        assert tuple(network.get_parameter(f"{part}.weight").shape) == shape
    assert network.classifier_module is network.get_submodule("fc8")
    # No module is left that no layer runs through: not the old classifier, not the old fc layers.
    used = owners(network)
    for parameter, _ in network.named_parameters():
        assert any(parameter.startswith(f"{path}.") for path in used), parameter
    found = network.layer_sizes
    assert [found[layer] for layer in BEHIND] == [length, HIDDEN, HIDDEN, 5]


def test_units_and_dropout_are_the_networks_own() -> None:
    units = {name: head_for(name, Pyramid()).hidden for name in NETWORKS}
    assert units == {name: 256 if name == "demo" else 4096 for name in NETWORKS}
    assert [pooled(name).get_submodule("dropout").p for name in ("demo", "zf5", "resnet18")] == [
        0.2,
        0.5,
        0.5,
    ]


@pytest.mark.parametrize(
    ("name", "map_layer", "channels", "gone"),
    [
        ("demo", "conv3", 96, ("conv4.", "conv5.")),
        ("demo", "pool1", 32, ("conv2.", "conv3.")),
        ("resnet18", "layer3", 256, ("layer4.", "fc.")),
        ("squeezenet", "fire8", 512, ("features.12.", "classifier.")),
    ],
)
def test_earlier_maps(name: str, map_layer: str, channels: int, gone: tuple[str, ...]) -> None:
    network = pooled(name, 1, 4, map_layer=map_layer)
    assert network.layer_names[-5:] == (map_layer, *BEHIND)
    assert not any(key.startswith(gone) for key in network.state_dict())
    assert network.get_parameter("fc6.weight").shape[1] == 17 * channels
    assert network.logits(images_of(64, 80)).shape == (2, 5)


@pytest.mark.parametrize("name", ["demo", "squeezenet", "resnet18"])
def test_images_of_all_sizes_give_one_length(name: str) -> None:
    network = pooled(name, 1, 2)
    for height, width in ((56, 56), (64, 97), (130, 80), (35, 200)):
        for mode in (False, True):
            found = network.train(mode)(images_of(height, width), BEHIND)
            lengths = [found[layer].shape for layer in BEHIND]
            sizes = (5 * CHANNELS[name], HIDDEN, HIDDEN, 5)
            assert lengths == [(2, size) for size in sizes]


def test_layers_behind_the_pyramid_are_those_of_the_paper() -> None:
    network = pooled("demo")
    found = network(images_of(70, 90), ("conv5", *BEHIND))
    maps = found["conv5"]
    expected = torch.cat(
        [nn.functional.adaptive_max_pool2d(maps, n).flatten(1) for n in LEVELS], dim=1
    )
    assert torch.equal(found["pool5"], expected)
    for layer, before in (("fc6", "pool5"), ("fc7", "fc6")):
        expected = network.get_submodule(layer)(found[before]).relu()
        torch.testing.assert_close(found[layer], expected)
    torch.testing.assert_close(found["logits"], network.get_submodule("fc8")(found["fc7"]))
    assert (found["logits"] < 0).any()


@pytest.mark.parametrize("name", ["demo", "squeezenet", "resnet18"])
def test_the_tail_alone_gives_what_the_whole_pass_gives(name: str) -> None:
    network = pooled(name)
    whole = network(images_of(75, 90), BEHIND)
    for start, source in enumerate(BEHIND[:-1]):
        tail = network(whole[source], BEHIND[start:], source=source)
        for layer in BEHIND[start:]:
            assert torch.equal(tail[layer], whole[layer]), (source, layer)
    assert torch.equal(network.logits(whole["pool5"], source="pool5"), whole["logits"])
    with pytest.raises(SettingError, match=f"{name} does not make its layers from 'fc7'"):
        network(whole["fc7"], ("fc6",), source="fc7")


def rebuilt(network: Network) -> Network:
    return build_network(json.loads(json.dumps(network.settings())), network.tensors())


@pytest.mark.parametrize("name", ["demo", "squeezenet", "resnet18"])
def test_settings_and_tensors_rebuild_it(name: str) -> None:
    network = pooled(name, 6, 1)
    same(network, rebuilt(network))
    network.replace_classifier(3, generator(2))
    network.freeze_batch_norm()
    same(network, rebuilt(network))


def same(first: Network, second: Network) -> None:
    assert first.settings() == second.settings()
    assert first.head == second.head
    assert first.state_dict().keys() == second.state_dict().keys()
    images = images_of(56, 75)
    with torch.inference_mode():
        assert torch.equal(first.logits(images), second.logits(images))


def test_heads_round_trip() -> None:
    view = MapView((96, 160), 44, "nearest-scale", "authors")
    head = PyramidHead("conv4", 32, Pyramid((3, 1), "bins", 0.125), view)
    assert build_head(json.loads(json.dumps(head.settings()))) == head


def test_a_model_that_lacks_a_part_of_its_head_is_refused() -> None:
    network = pooled("demo")
    for part in ("pyramid", "view", "map"):
        settings = json.loads(json.dumps(network.settings()))
        del settings["head"][part]
        with pytest.raises(SettingError, match=f"do not fit .there is no '{part}'"):
            build_network(settings, network.tensors())
    settings = network.settings() | {"head": head_of("demo", 1, 2).settings()}
    with pytest.raises(SettingError, match=r"do not fit .*fc6\.weight"):
        build_network(settings, network.tensors())


@pytest.mark.parametrize(("name", "map_layer"), [("demo", None), ("resnet18", "layer3")])
def test_convolutions_stay_bit_for_bit(name: str, map_layer: str | None) -> None:
    before = create_network(name, 7, generator(3))
    for key, value in before.state_dict().items():
        if "running" in key:  # other statistics than those of a new network
            value.copy_(torch.rand(value.shape, generator=generator()) + 0.5)
    state = torch.get_rng_state()
    head = head_of(name, map_layer=map_layer)
    network = put_on_pyramid(before, head, generator(4))
    assert torch.equal(torch.get_rng_state(), state)
    assert (network.outputs, network.head) == (7, head)
    assert network.crop == before.crop
    assert network.preprocessing is before.preprocessing
    old, new = before.state_dict(), network.state_dict()
    kept = [key for key in new if not key.startswith(("fc6.", "fc7.", "fc8."))]
    assert len(new) == len(kept) + 6
    assert all(torch.equal(new[key], old[key]) for key in kept)
    images = images_of(64, 80)
    layer = network.architecture.map
    with torch.inference_mode():
        assert torch.equal(network(images, (layer,))[layer], before(images, (layer,))[layer])
    again = put_on_pyramid(before, head, generator(4)).state_dict()
    assert all(torch.equal(again[key], new[key]) for key in new)
    other = put_on_pyramid(before, head, generator(5)).state_dict()
    assert not torch.equal(other["fc6.weight"], new["fc6.weight"])


def test_new_layers_are_new() -> None:
    # CaffeNet and the demo have layers of the same names, of other sizes: theirs are not taken.
    before = create_network("demo", 5, generator(3))
    head = head_for("demo", Pyramid((3,)))  # 96 x 3 x 3: of the same size as well
    network = put_on_pyramid(before, head, generator(4))
    assert network.get_parameter("fc6.weight").shape == before.get_parameter("fc6.weight").shape
    for layer in ("fc6", "fc7", "fc8"):
        key = f"{layer}.weight"
        assert not torch.equal(network.get_parameter(key), before.get_parameter(key))
    # N(0, 2 / fan in); the classifier's N(0, 0.01)
    deviations = {"fc6": (2 / 864) ** 0.5, "fc7": (2 / 256) ** 0.5, "fc8": 0.01}
    for layer, deviation in deviations.items():
        weight = network.get_parameter(f"{layer}.weight").detach()
        assert float(weight.std()) == pytest.approx(deviation, rel=0.05)
        assert not network.get_parameter(f"{layer}.bias").detach().any()


def test_frozen_batch_norms_stay_frozen() -> None:
    before = create_network("resnet18", 5, generator(3))
    before.state_dict()["bn1.running_mean"].fill_(0.25)
    before.freeze_batch_norm()
    network = put_on_pyramid(before, head_of("resnet18"), generator())
    assert network.frozen_batch_norm
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert bool((network.state_dict()["bn1.running_mean"] == 0.25).all())
    images = images_of(64, 64)
    assert torch.equal(
        network(images, ("layer4",))["layer4"], before(images, ("layer4",))["layer4"]
    )
    same(network, rebuilt(network))


def test_a_new_squeezenet_classifier_has_no_rectifier() -> None:
    network = pooled("squeezenet", outputs=9)
    network.replace_classifier(4, generator(1))
    found = network(images_of(96, 70), ("fc7", "logits"))
    expected = found["fc7"] @ network.get_parameter("fc8.weight").T
    torch.testing.assert_close(found["logits"], expected)
    assert (found["logits"] < 0).any()


def test_bad_names_are_told() -> None:
    with pytest.raises(SettingError, match="no network 'lenet'; there are alexnet, caffenet, demo"):
        head_for("lenet", Pyramid())
    maps = "conv1, pool1, conv2, pool2, conv3, conv4, conv5$"
    for layer in ("pool5", "fc6", "conv6", "image"):
        with pytest.raises(SettingError, match=f"demo has no map '{layer}' to pool .*are {maps}"):
            head_for("demo", Pyramid(), layer)
    with pytest.raises(SettingError, match="demo has no layer 'conv5'; its layers are conv1, "):
        pooled("demo", map_layer="conv3")(images_of(56, 56), ("conv5",))
