"""The network that training starts from: where its weights come from, and how that is recorded."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rcnnpipe.artifacts.foreign import foreign_file
from rcnnpipe.artifacts.store import open_artifact
from rcnnpipe.errors import SettingError
from rcnnpipe.models.backbones import Network
from rcnnpipe.models.pyramid import Pyramid, PyramidPooling
from rcnnpipe.models.pyramid_head import PyramidHead, head_for
from rcnnpipe.models.tensor_files import READERS
from rcnnpipe.models.weights import load_network, put_on_pyramid
from rcnnpipe.randomness import generator

PYRAMID_OPTIONS = (
    *("pyramid", "pyramid_training", "map", "hidden"),
    *("scales", "reference", "scale_choice", "projection"),
)


def initial_network(
    name: str | None, init: str, seed: int, inputs: dict[str, Any]
) -> tuple[Network, torch.Generator, dict[str, Any]]:
    """Load the network that training starts from.

    Args:
        name: a key of ``NETWORKS``; None where ``init`` is a model of ours, which knows its own.
        init: a file of weights, torchvision's name for some, or "none".
        seed: of initial values.
        inputs: a file of weights joins the stage's inputs here, as "init".

    Returns:
        the network; the generator, for further initial values; what to record of ``init`` where it
        is no file.
    """
    recorded = {}
    if Path(init).suffix == ".h5":
        with open_artifact(Path(init), "model") as (header, _):
            inputs["init"] = header
    elif Path(init).suffix in READERS:
        inputs["init"] = foreign_file(Path(init))
    else:
        recorded["init"] = init
    random = initial_generator(seed)
    return load_network(name, init, random), random, recorded


def initial_generator(seed: int) -> torch.Generator:
    """What initial values of new layers are drawn from, on the CPU."""
    key = int(generator(seed, "initial weights").integers(2**63))
    return torch.Generator().manual_seed(key)


def on_pyramid(
    network: Network, options: Mapping[str, Any], random: torch.Generator
) -> tuple[Network, dict[str, Any]]:
    """The network under the pyramid that a stage's options ask for, and what to record of it.

    Args:
        network: with a pyramid already, or without.
        options: pyramid, the numbers of bins a side, and what belongs to it: pyramid_training, map,
            hidden, scales, reference, scale_choice, projection; any may be None.
        random: for the initial values of new layers.

    Raises:
        SettingError: the network has a pyramid already, or settings make no sense without one.
    """
    given = [f"--{name.replace('_', '-')}" for name in PYRAMID_OPTIONS if options[name] is not None]
    if network.head is None and options["pyramid"] is not None:
        training = {"training": options["pyramid_training"]}
        pyramid = Pyramid(options["pyramid"], **_given(training))
        head = head_for(network.name, pyramid, options["map"], options["hidden"])
        view = {name: options[name] for name in ("scales", "reference", "projection")}
        view["choice"] = options["scale_choice"]
        head = replace(head, view=replace(head.view, **_given(view)))
        network = put_on_pyramid(network, head, random)
    elif network.head is None and given:
        raise SettingError(f"{given[0]} is for a network with a pyramid; give --pyramid too")
    elif given:
        raise SettingError(f"the network of --init has a pyramid of its own; leave {given[0]} out")
    return network, {"head": _asked_for(network.head) if network.head else None}


def _asked_for(head: PyramidHead) -> dict[str, Any]:
    """A head's settings without the scale of its pyramid, which is learnt from data."""
    settings = head.settings()
    return settings | {"pyramid": {k: v for k, v in settings["pyramid"].items() if k != "scale"}}


@torch.inference_mode()
def calibrate(network: Network, windows: Tensor) -> None:
    """Scale what a pyramid pools from trained maps to a mean square of 1, in place.

    Maps of pre-trained networks may have values in the hundreds, on which new layers would diverge
    at any usual learning rate; as data-dependent initialisations do, this looks at some data first.

    Args:
        network: with a pyramid, on the CPU.
        windows: (B, 3, S, S) network input.
    """
    assert network.head is not None
    pooled = network(windows, ("pool5",))["pool5"]
    size = float(pooled.double().square().mean().sqrt())
    if size > 0:
        scale = network.head.pyramid.scale / size
        pyramid = replace(network.head.pyramid, scale=scale)
        network.head = replace(network.head, pyramid=pyramid)
        pooling = network.get_submodule("pyramid")
        assert isinstance(pooling, PyramidPooling)
        pooling.pyramid = pyramid


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
