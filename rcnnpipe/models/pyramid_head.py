"""A spatial pyramid between the convolutions of any network and two fully connected layers.

He et al. 2014, section 2.2: the pyramid replaces the last pooling layer, so that images and windows
of any size give vectors of one length.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from rcnnpipe.errors import SettingError
from rcnnpipe.models.architectures import NETWORKS, Architecture, Layer, keep_modules
from rcnnpipe.models.map_view import MapView, build_view, usual_view
from rcnnpipe.models.pyramid import Pyramid, PyramidPooling, build_pyramid


@dataclass(frozen=True)
class PyramidHead:
    """What stands on the convolutions.

    Attributes:
        map: the layer that is pooled.
        hidden: outputs of fc6 and of fc7.
        pyramid: how it is pooled.
        view: how regions are found on it.
    """

    map: str
    hidden: int
    pyramid: Pyramid = field(default_factory=Pyramid)
    view: MapView = field(default_factory=MapView)

    def settings(self) -> dict[str, Any]:
        """JSON for the model file."""
        return {
            "map": self.map,
            "hidden": self.hidden,
            "pyramid": self.pyramid.settings(),
            "view": self.view.settings(),
        }


def build_head(settings: Mapping[str, Any]) -> PyramidHead:
    """The inverse of :meth:`PyramidHead.settings`."""
    return PyramidHead(
        *(settings["map"], settings["hidden"]),
        build_pyramid(settings["pyramid"]),
        build_view(settings["view"]),
    )


def head_for(
    name: str, pyramid: Pyramid, map_layer: str | None = None, hidden: int | None = None
) -> PyramidHead:
    """The head of a network by name; None takes its last map, and as many units as it has itself.

    Raises:
        SettingError: there is no such network, or it has no such map.
    """
    if name not in NETWORKS:
        raise SettingError(f"there is no network {name!r}; there are {', '.join(NETWORKS)}")
    usual = NETWORKS[name]
    maps = maps_of(usual)
    if map_layer is not None and map_layer not in maps:
        raise SettingError(
            f"{name} has no map '{map_layer}' to pool by a pyramid; its maps are {', '.join(maps)}"
        )
    view = usual_view(usual.input_size)
    return PyramidHead(map_layer or usual.map, hidden or usual.hidden, pyramid, view)


def maps_of(architecture: Architecture) -> list[str]:
    """The layers up to the last map, first to last."""
    names = list(architecture.layers)
    return names[: names.index(architecture.map) + 1]


def with_pyramid(base: Architecture, head: PyramidHead) -> Architecture:
    """The network's layers up to the head's map, then pool5 (the pyramid), fc6, fc7 and logits."""
    names = maps_of(base)
    layers = {name: base.layers[name] for name in names[: names.index(head.map) + 1]}
    used = {path for layer in layers.values() for path in layer.modules}

    def build(outputs: int) -> nn.Module:
        body = base.build(outputs)
        dropout = getattr(body, "dropout", nn.Dropout(0.5))  # He et al. 2014, section 3.1.1
        keep_modules(body, used)
        length = _channels(body, layers.values()) * head.pyramid.bins
        parts = {
            "pyramid": PyramidPooling(head.pyramid),
            "fc6": nn.Linear(length, head.hidden),
            "fc7": nn.Linear(head.hidden, head.hidden),
            "fc8": nn.Linear(head.hidden, outputs),
            "relu": nn.ReLU(inplace=True),
            "dropout": dropout,
        }
        for name, part in parts.items():
            body.add_module(name, part)
        return body

    return replace(
        base,
        build=build,
        layers=layers
        | {
            "pool5": Layer(head.map, ("pyramid",)),
            "fc6": Layer("pool5", ("fc6", "relu")),
            "fc7": Layer("fc6", ("dropout", "fc7", "relu")),
            "logits": Layer("fc7", ("dropout", "fc8")),
        },
        classifier="fc8",
        map=head.map,
        hidden=head.hidden,
    )


def _channels(body: nn.Module, layers: Iterable[Layer]) -> int:
    """Channels of the last of some layers of a body on the meta device: nothing is computed."""
    value: Tensor = torch.empty(1, 3, 224, 224, device="meta")
    for layer in layers:
        for path in layer.modules:
            value = body.get_submodule(path)(value)
    return value.shape[1]
