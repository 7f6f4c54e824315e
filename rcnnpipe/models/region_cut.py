"""Where a network is cut: convolutions of whole images before, layers of each region behind.

Girshick 2015, section 2.1: the last max pooling becomes RoI pooling, what stood behind it is the
head. Networks without fully connected layers are cut before their last stage, as He et al. 2016 do
with ResNet.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from rcnnpipe.errors import SettingError
from rcnnpipe.models.architectures import NETWORKS, keep_modules
from rcnnpipe.models.backbones import Network
from rcnnpipe.models.without_values import without_values


@dataclass(frozen=True)
class Cut:
    """Layers of a network, by their names.

    Attributes:
        map: the last layer that is computed for the whole image.
        source: the layer that the pooled regions stand for.
        layer: the last one of a region: what is classified.
        size: cells of a pooled region, a side.
    """

    map: str
    source: str
    layer: str
    size: int

    def settings(self) -> dict[str, Any]:
        """JSON for the model file."""
        return asdict(self)


_CUTS = {
    "alexnet": Cut("conv5", "pool5", "fc7", 6),
    "caffenet": Cut("conv5", "pool5", "fc7", 6),
    "demo": Cut("conv5", "pool5", "fc7", 3),
    "vgg16": Cut("conv5_3", "pool5", "fc7", 7),
    "zf5": Cut("conv5", "pool5", "fc7", 6),
    "squeezenet": Cut("pool8", "pool8", "avgpool", 7),
    # 14 x 14 cells, of which the stride of layer4 leaves 7 x 7: Detectron's ResNet-C4.
    "mobilenet_v3_large": Cut("block12", "block12", "fc6", 14),
    "resnet18": Cut("layer3", "layer3", "avgpool", 14),
    "resnet50": Cut("layer3", "layer3", "avgpool", 14),
    "resnet101": Cut("layer3", "layer3", "avgpool", 14),
}


def usual_cut(name: str) -> Cut:
    """Where a network by name is usually cut.

    Raises:
        SettingError: there is no such network.
    """
    if name not in _CUTS:
        raise SettingError(f"there is no network {name!r}; there are {', '.join(NETWORKS)}")
    return _CUTS[name]


def build_cut(settings: Mapping[str, Any]) -> Cut:
    """The inverse of :meth:`Cut.settings`."""
    return Cut(**settings)


def layers_of_regions(network: Network, cut: Cut) -> tuple[str, ...]:
    """The network's layers behind the cut, first to last."""
    table, names, layer = network.architecture.layers, [], cut.layer
    while layer != cut.source:
        names.append(layer)
        layer = table[layer].source
    return tuple(reversed(names))


def channels_of(network: Network, layer: str) -> int:
    """Channels of one of a network's maps; nothing is computed."""
    image = torch.empty(1, 3, 224, 224, device="meta")
    return int(without_values(network, network.forward, image, (layer,))[layer].shape[1])


def length_behind(network: Network, cut: Cut, channels: int, side: int) -> int:
    """D of the layer that is classified, of regions of so many channels and cells a side."""
    pooled = torch.empty(1, channels, side, side, device="meta")
    found = without_values(network, network.forward, pooled, (cut.layer,), True, cut.source)
    return int(found[cut.layer].shape[1])


def dropout_of(network: Network) -> nn.Module:
    """What the network does to its last layer before it classifies it: dropout, or nothing."""
    with torch.device("meta"):
        whole = network.architecture.build(1)  # of a detector's network this part is gone
    parts = [whole.get_submodule(path) for path in network.architecture.layers["logits"].modules]
    dropouts = [one for part in parts for one in part.modules() if isinstance(one, nn.Dropout)]
    return dropouts[0] if dropouts else nn.Identity()


def keep_layers(network: Network, layers: tuple[str, ...]) -> None:
    """Delete everything that these layers, and what they are made from, do not need, in place."""
    table = network.architecture.layers
    used: set[str] = set()
    for layer in layers:
        while layer != "image":
            used.update(table[layer].modules)
            layer = table[layer].source
    keep_modules(network, used)


def pad_by_half_kernels(network: Network) -> None:
    """Pad every convolution and pooling by half of its kernel, in place: where odd kernels are.

    Cell i of a map is then in the middle of what it sees at pixel S i of an image, where RoI
    pooling and anchors take it to be; without padding, as for windows, the first cell of CaffeNet
    or ZF-5 sees around pixel 20, and the cells at the right border are missing. The authors do the
    same to both networks and keep their ImageNet weights (models/CaffeNet/test.prototxt,
    models/pascal_voc/ZF of py-faster-rcnn: pad 5, 1, 2, 1 and 3, 1, 2, 1).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            rows, columns = module.kernel_size
            if rows % 2 and columns % 2:
                module.padding = rows // 2, columns // 2
        elif isinstance(module, nn.MaxPool2d):
            side = module.kernel_size
            assert isinstance(side, int)
            if side % 2:
                module.padding = side // 2
