import copy
import json

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from rcnnpipe.errors import SettingError
from rcnnpipe.models.architectures import NETWORKS
from rcnnpipe.models.backbones import Network, build_network, create_network
from rcnnpipe.models.classic import WithinChannelNorm
from rcnnpipe.models.preprocessing import Preprocessing
from rcnnpipe.models.warp import Crop

TORCHVISION = {
    "alexnet": torchvision.models.alexnet,
    "mobilenet_v3_large": torchvision.models.mobilenet_v3_large,
    "resnet101": torchvision.models.resnet101,
    "resnet18": torchvision.models.resnet18,
    "resnet50": torchvision.models.resnet50,
    "squeezenet": torchvision.models.squeezenet1_0,
    "vgg16": torchvision.models.vgg16,
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fresh(name: str, outputs: int = 5) -> Network:
    return create_network(name, outputs, generator())


@pytest.mark.parametrize("name", TORCHVISION)
def test_parameters_are_named_as_torchvision_names_them(name: str) -> None:
    with torch.device("meta"):
        theirs = TORCHVISION[name]().state_dict()
    ours = create_network(name).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {
        key: value.shape for key, value in theirs.items()
    }


@pytest.mark.parametrize("name", ["alexnet", "squeezenet", "resnet18", "mobilenet_v3_large"])
def test_logits_equal_torchvision(name: str) -> None:
    network = fresh(name, 1000)
    theirs = TORCHVISION[name]()
    theirs.load_state_dict(network.state_dict())
    images = torch.randn(2, 3, 127, 127, generator=generator(1))
    with torch.inference_mode():
        expected = theirs.eval()(images)
        atol = 2e-5 * max(5.0, float(expected.abs().max()))  # MobileNet's grow, with no rectifiers
        torch.testing.assert_close(network.logits(images), expected, atol=atol, rtol=1e-4)


# Sheets: CaffeNet pool5 = 256 x 6 x 6 = 9216; ZF-5 at 224: 110, 55, 26, 13, 13
SIZES = {
    ("caffenet", "pool5"): 9216,
    ("caffenet", "fc7"): 4096,
    ("caffenet", "logits"): 5,
    ("alexnet", "pool5"): 9216,
    ("vgg16", "pool5"): 512 * 7 * 7,
    ("zf5", "conv1"): 96 * 110 * 110,
    ("zf5", "pool1"): 96 * 55 * 55,
    ("zf5", "conv2"): 256 * 26 * 26,
    ("zf5", "pool2"): 256 * 13 * 13,
    ("zf5", "conv5"): 256 * 13 * 13,
    ("zf5", "pool5"): 9216,
    ("squeezenet", "pool5"): 512 * 9,
    ("squeezenet", "avgpool"): 512,
    ("resnet50", "avgpool"): 2048,
    ("mobilenet_v3_large", "pool5"): 960 * 9,
    ("mobilenet_v3_large", "fc6"): 1280,
    ("demo", "pool5"): 864,
    ("demo", "fc6"): 256,
}


def test_layer_sizes() -> None:
    networks = {name: create_network(name, 5) for name in NETWORKS}
    found = {(name, layer): networks[name].layer_sizes[layer] for name, layer in SIZES}
    assert found == SIZES


@pytest.mark.parametrize("name", ["demo", "squeezenet"])
def test_one_pass_gives_what_single_passes_give(name: str) -> None:
    network = fresh(name)
    images = torch.randn(3, 3, 56, 56, generator=generator(1))
    with torch.inference_mode():
        together = network(images, network.layer_names)
        assert tuple(together) == network.layer_names
        for layer in network.layer_names:
            assert torch.equal(network(images, [layer])[layer], together[layer]), layer
    flat = network(images, ["pool5"], flatten=True)["pool5"]
    assert torch.equal(flat, together["pool5"].flatten(1))


def test_nothing_runs_after_the_last_layer_asked_for() -> None:
    network = fresh("demo")
    ran: list[str] = []
    for part, module in network.named_children():
        module.register_forward_hook(lambda *_, part=part: ran.append(part))
    network(torch.zeros(1, 3, 56, 56), ["conv3", "pool1"])
    assert ran == ["conv1", "relu", "pool", "conv2", "relu", "pool", "conv3", "relu"]


def test_fully_connected_layers_end_after_the_rectifier() -> None:
    network = fresh("demo")
    layers = network(torch.randn(2, 3, 56, 56, generator=generator()), ["fc6", "fc7"])
    expected = network.get_submodule("fc7")(layers["fc6"]).relu()
    torch.testing.assert_close(layers["fc7"], expected)
    assert (layers["fc7"] >= 0).all()
    assert (layers["fc7"] == 0).any()


def test_unknown_names_are_told() -> None:
    with pytest.raises(SettingError, match="'fc7'; its layers are conv1, pool1, layer1"):
        create_network("resnet18")(torch.zeros(1, 3, 64, 64), ["fc7"])
    with pytest.raises(SettingError, match="no network 'lenet'; there are alexnet, caffenet, demo"):
        create_network("lenet")


def test_within_channel_norm_equals_a_loop() -> None:
    maps = torch.randn(1, 2, 5, 4, generator=generator()).double()
    found: torch.Tensor = WithinChannelNorm(3, alpha=0.5, beta=0.75)(maps)
    padded = nn.functional.pad(maps, (1, 1, 1, 1))
    for channel in range(2):
        for y in range(5):
            for x in range(4):
                square = padded[0, channel, y : y + 3, x : x + 3]
                expected = maps[0, channel, y, x] / (1 + 0.5 / 9 * (square**2).sum()) ** 0.75
                torch.testing.assert_close(found[0, channel, y, x], expected)


def test_across_channel_norm_is_caffes() -> None:
    norm = create_network("caffenet").get_submodule("norm")
    maps = 50 * torch.randn(1, 7, 1, 1, generator=generator())
    found = norm(maps).flatten().tolist()
    for channel in range(7):  # (1 + alpha / n * sum over 5 channels)^beta
        near = maps.flatten()[max(0, channel - 2) : channel + 3]
        divisor = (1 + 1e-4 / 5 * float((near**2).sum())) ** 0.75
        assert found[channel] == pytest.approx(float(maps.flatten()[channel]) / divisor, rel=1e-5)


@pytest.mark.parametrize("name", ["demo", "squeezenet", "resnet18"])
def test_a_new_classifier_is_drawn_from_its_generator(name: str) -> None:
    network = fresh(name, 1000)
    state = torch.get_rng_state()
    network.replace_classifier(21, generator(7))
    first = network.classifier_module.weight.detach().clone()
    assert first.shape[0] == network.outputs == 21
    assert first.mean().abs() < 0.001
    assert first.std() == pytest.approx(0.01, rel=0.05)
    assert not any(value.any() for value in [network.classifier_module.bias] if value is not None)
    network.replace_classifier(21, generator(7))
    assert torch.equal(network.classifier_module.weight, first)
    assert torch.equal(torch.get_rng_state(), state)
    assert network.logits(torch.randn(2, 3, 56, 56)).shape == (2, 21)


def test_a_new_squeezenet_classifier_is_linear_in_the_average() -> None:
    network = fresh("squeezenet", 1000)
    network.replace_classifier(4, generator(1))
    found = network(torch.randn(3, 3, 96, 96, generator=generator(2)), ["avgpool", "logits"], True)
    conv = network.classifier_module
    assert isinstance(conv, nn.Conv2d)
    expected = found["avgpool"] @ conv.weight.flatten(1).T
    torch.testing.assert_close(found["logits"], expected, atol=1e-6, rtol=1e-4)
    assert (found["logits"] < 0).any()


def test_initial_values_depend_on_the_generator_alone() -> None:
    first, second = fresh("demo"), fresh("demo")
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key])
        assert torch.isfinite(value).all()
    other = create_network("demo", 5, generator(1)).state_dict()
    assert not torch.equal(other["fc6.weight"], first.state_dict()["fc6.weight"])


def rebuilt(network: Network) -> Network:
    return build_network(json.loads(json.dumps(network.settings())), network.tensors())


def same_logits(first: Network, second: Network) -> None:
    images = torch.randn(2, 3, 56, 56, generator=generator(3))
    with torch.inference_mode():
        assert torch.equal(first.logits(images), second.logits(images))
    assert first.settings() == second.settings()


def test_settings_and_tensors_rebuild_a_network() -> None:
    demo = fresh("demo")
    demo.crop = Crop(56, 0, "square", False)
    demo.preprocessing = Preprocessing(torch.rand(3, 56, 56), torch.ones(3), "BGR")
    again = rebuilt(demo)
    same_logits(demo, again)
    assert again.crop == demo.crop
    assert torch.equal(again.preprocessing.mean, demo.preprocessing.mean)

    squeezenet = fresh("squeezenet", 1000)
    same_logits(squeezenet, rebuilt(squeezenet))
    squeezenet.replace_classifier(3, generator())
    same_logits(squeezenet, rebuilt(squeezenet))

    resnet = fresh("resnet18")
    resnet.state_dict()["layer1.0.bn1.weight"].fill_(2)
    before = resnet.logits(torch.ones(1, 3, 64, 64))
    resnet.freeze_batch_norm()
    torch.testing.assert_close(resnet.logits(torch.ones(1, 3, 64, 64)), before)
    same_logits(resnet, rebuilt(resnet))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in resnet.modules())


def test_settings_that_do_not_fit_are_one_sentence() -> None:
    demo = fresh("demo")
    with pytest.raises(SettingError, match="do not fit"):
        build_network(demo.settings() | {"outputs": 6}, demo.tensors())
    with pytest.raises(SettingError, match="do not fit"):
        build_network({"network": "demo"}, demo.tensors())
    tensors = {name: np.zeros(1) for name in ("fc8.weight",)}
    with pytest.raises(SettingError, match="do not fit"):
        build_network(demo.settings(), tensors)


def test_a_copy_stands_alone() -> None:
    demo = fresh("demo")
    images = torch.randn(1, 3, 56, 56, generator=generator(5))
    other = copy.deepcopy(demo)
    demo.state_dict()["fc8.weight"].zero_()
    assert other.logits(images).any()
    assert not demo.logits(images).any()
