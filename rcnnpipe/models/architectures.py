"""The networks by name: how each is built and which of its modules make which named layer.

Parameters are named as torchvision names them, so that its weights load as they are. Every layer
ends after its rectifier, as Caffe's in-place ReLU has it: ``fc7`` is max(0, W x + b).

``pool5`` is, as in R-CNN, the last map with its layout in place: what the first fully connected
layer sees. SqueezeNet, ResNet and MobileNet have no such layer and average the whole map instead
(``avgpool``); their ``pool5`` is a side branch, the last map averaged over 3 x 3 cells, because box
regression cannot do with an average that has forgotten where things are.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple

import torchvision.models
from torch import nn

from rcnnpipe.models.classic import CaffeNet, Demo, Zf5


class Layer(NamedTuple):
    """What makes a layer: the layer (or "image") it starts from and the modules it runs through."""

    source: str
    modules: tuple[str, ...]


@dataclass(frozen=True)
class Architecture:
    """A network as data.

    Attributes:
        build: number of outputs -> the module that holds the parameters.
        layers: layer name -> how it is made, in order; "logits" is the classifier's output.
        classifier: the module whose outputs are the logits.
        map: the last layer that is a map of convolutions: what a pyramid pools.
        hidden: outputs of the fully connected layers; of those put on a pyramid where it has none.
        input_size: the side of its windows.
        padding: context in window pixels: 16 of 227, or nearly that part of other sizes.
        preprocessing: preset of its usual weights.
        torchvision: whether torchvision has weights under the same name.
    """

    build: Callable[[int], nn.Module]
    layers: dict[str, Layer]
    classifier: str
    map: str
    input_size: int = 224
    padding: int = 16
    preprocessing: str = "torchvision"
    torchvision: bool = False
    hidden: int = 4096


def chain(**modules: str) -> dict[str, Layer]:
    """Layers that each start from the one before."""
    layers: dict[str, Layer] = {}
    source = "image"
    for name, path in modules.items():
        layers[name] = Layer(source, tuple(path.split()))
        source = name
    return layers


def keep_modules(body: nn.Module, used: Collection[str], prefix: str = "") -> None:
    """Delete the modules that are not used, by their paths."""
    for name, child in list(body.named_children()):
        path = prefix + name
        if any(one.startswith(f"{path}.") for one in used):
            keep_modules(child, used, f"{path}.")
        elif path not in used:
            delattr(body, name)


def _with(module: nn.Module, **parts: nn.Module) -> nn.Module:
    """Add parts without parameters that torchvision's forward does by function calls."""
    for name, part in parts.items():
        module.add_module(name, part)
    return module


def _alexnet(outputs: int) -> nn.Module:
    return _with(torchvision.models.alexnet(num_classes=outputs), flatten=nn.Flatten())


def _vgg16(outputs: int) -> nn.Module:
    """Caffe's poolings round sizes up: 38 x 63 cells of 600 x 1000 pixels, as many of 224."""
    body = torchvision.models.vgg16(num_classes=outputs)
    for module in body.modules():
        if isinstance(module, nn.MaxPool2d):
            module.ceil_mode = True
    return _with(body, flatten=nn.Flatten())


def _squeezenet(outputs: int) -> nn.Module:
    body = torchvision.models.squeezenet1_0(num_classes=outputs)
    return _with(body, flatten=nn.Flatten(), cells=nn.AdaptiveAvgPool2d(3))


def _with_average(build: Callable[..., nn.Module]) -> Callable[[int], nn.Module]:
    def build_with_parts(outputs: int) -> nn.Module:
        body = build(num_classes=outputs)
        return _with(body, flatten=nn.Flatten(), cells=nn.AdaptiveAvgPool2d(3))

    return build_with_parts


_ALEXNET = chain(
    conv1="features.0 features.1",
    pool1="features.2",
    conv2="features.3 features.4",
    pool2="features.5",
    conv3="features.6 features.7",
    conv4="features.8 features.9",
    conv5="features.10 features.11",
    pool5="features.12 avgpool",
    fc6="flatten classifier.0 classifier.1 classifier.2",
    fc7="classifier.3 classifier.4 classifier.5",
    logits="classifier.6",
)

_VGG16 = chain(
    conv1_1="features.0 features.1",
    conv1_2="features.2 features.3",
    pool1="features.4",
    conv2_1="features.5 features.6",
    conv2_2="features.7 features.8",
    pool2="features.9",
    conv3_1="features.10 features.11",
    conv3_2="features.12 features.13",
    conv3_3="features.14 features.15",
    pool3="features.16",
    conv4_1="features.17 features.18",
    conv4_2="features.19 features.20",
    conv4_3="features.21 features.22",
    pool4="features.23",
    conv5_1="features.24 features.25",
    conv5_2="features.26 features.27",
    conv5_3="features.28 features.29",
    pool5="features.30 avgpool",
    fc6="flatten classifier.0 classifier.1",
    fc7="classifier.2 classifier.3 classifier.4",
    logits="classifier.5 classifier.6",
)

# The paper's own network and its small likeness: names of the layers are names of the modules.
_CAFFENET = chain(
    conv1="conv1 relu",
    pool1="pool norm",
    conv2="conv2 relu",
    pool2="pool norm",
    conv3="conv3 relu",
    conv4="conv4 relu",
    conv5="conv5 relu",
    pool5="pool",
    fc6="flatten fc6 relu",
    fc7="dropout fc7 relu",
    logits="dropout fc8",
)
_ZF5 = chain(
    conv1="conv1 relu",
    pool1="norm pool",
    conv2="conv2 relu",
    pool2="norm pool",
    conv3="conv3 relu",
    conv4="conv4 relu",
    conv5="conv5 relu",
    pool5="grid",
    fc6="flatten fc6 relu",
    fc7="dropout fc7 relu",
    logits="dropout fc8",
)
_DEMO = chain(
    conv1="conv1 relu",
    pool1="pool",
    conv2="conv2 relu",
    pool2="pool",
    conv3="conv3 relu",
    conv4="conv4 relu",
    conv5="conv5 relu",
    pool5="pool",
    fc6="flatten fc6 relu",
    fc7="dropout fc7 relu",
    logits="dropout fc8",
)

# Without its global average the classifier is conv10, a rectifier and the average of its map.
_SQUEEZENET = chain(
    conv1="features.0 features.1",
    pool1="features.2",
    fire2="features.3",
    fire3="features.4",
    fire4="features.5",
    pool4="features.6",
    fire5="features.7",
    fire6="features.8",
    fire7="features.9",
    fire8="features.10",
    pool8="features.11",
    fire9="features.12",
) | {
    "pool5": Layer("fire9", ("cells",)),
    "avgpool": Layer("fire9", ("classifier.3",)),
    "logits": Layer("fire9", ("classifier", "flatten")),
}

_RESNET = chain(
    conv1="conv1 bn1 relu",
    pool1="maxpool",
    layer1="layer1",
    layer2="layer2",
    layer3="layer3",
    layer4="layer4",
) | {
    "pool5": Layer("layer4", ("cells",)),
    "avgpool": Layer("layer4", ("avgpool",)),
    "logits": Layer("avgpool", ("flatten", "fc")),
}

# MobileNetV3 (Howard et al. 2019, table 1); block 13 is the first of stride 32.
_MOBILENET = chain(
    conv1="features.0",
    **{f"block{number}": f"features.{number}" for number in range(1, 16)},
    conv2="features.16",
) | {
    "pool5": Layer("conv2", ("cells",)),
    "avgpool": Layer("conv2", ("avgpool",)),
    "fc6": Layer("avgpool", ("flatten", "classifier.0", "classifier.1")),
    "logits": Layer("fc6", ("classifier.2", "classifier.3")),
}

NETWORKS = {
    # 227 pixels: Girshick et al. 2014, 2.1; VGG16's 224: its section 3.3 and the model's own
    "alexnet": Architecture(_alexnet, _ALEXNET, "classifier.6", "conv5", 227, torchvision=True),
    "caffenet": Architecture(CaffeNet, _CAFFENET, "fc8", "conv5", 227, preprocessing="caffe"),
    "demo": Architecture(Demo, _DEMO, "fc8", "conv5", 56, padding=4, hidden=256),
    "mobilenet_v3_large": Architecture(
        _with_average(torchvision.models.mobilenet_v3_large),
        *(_MOBILENET, "classifier.3", "conv2"),
        torchvision=True,
    ),
    "resnet101": Architecture(
        _with_average(torchvision.models.resnet101), _RESNET, "fc", "layer4", torchvision=True
    ),
    "resnet18": Architecture(
        _with_average(torchvision.models.resnet18), _RESNET, "fc", "layer4", torchvision=True
    ),
    "resnet50": Architecture(
        _with_average(torchvision.models.resnet50), _RESNET, "fc", "layer4", torchvision=True
    ),
    "squeezenet": Architecture(
        _squeezenet, _SQUEEZENET, "classifier.1", "fire9", 227, torchvision=True
    ),
    "vgg16": Architecture(_vgg16, _VGG16, "classifier.6", "conv5_3", torchvision=True),
    "zf5": Architecture(Zf5, _ZF5, "fc8", "conv5", preprocessing="constant128"),
}
