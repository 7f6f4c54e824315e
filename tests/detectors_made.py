"""Small detectors with random weights, for tests of what trains, runs and stores them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from rcnnpipe.models.backbones import Network, create_network
from rcnnpipe.models.detector import Detector
from rcnnpipe.models.fpn import Neck
from rcnnpipe.models.image_view import ImageView
from rcnnpipe.models.parts import Parts
from rcnnpipe.models.region_pooling import RegionPooling
from rcnnpipe.systems import fast

VIEW = ImageView((72,), 120)  # the images of tests.training.made as they are
NECK = Neck(("conv2", "conv5"), channels=8, extra=False)


def fast_parts(network: Network, **changed: Any) -> Parts:
    return replace(fast.parts_of(network, VIEW), **changed)


def neck_parts(network: Network, **changed: Any) -> Parts:
    """A pyramid of two maps of the demo network, strides 4 and 8."""
    pooling = RegionPooling("align", 4, strides=(4, 8), reference=29, level_of_reference=3)
    return replace(Parts(VIEW, pooling, neck=NECK, hidden=24), **changed)


def detector_of(
    name: str = "demo",
    classes: int = 3,
    *,
    parts: Callable[..., Parts] = fast_parts,
    seed: int = 0,
    dropout: bool = False,
    loud: bool = True,
    **changed: Any,
) -> Detector:
    """A detector in evaluation mode.

    Args:
        name: of its network.
        classes: K + 1.
        parts: makes them from the network.
        seed: of its weights.
        dropout: without it, training computes what evaluation does.
        loud: give the outputs and what normalises deltas values that matter.
        changed: fields of the parts.
    """
    random = torch.Generator().manual_seed(seed)
    network = create_network(name, 7, random)
    network.freeze_batch_norm()
    detector = Detector(network, parts(network, **changed), classes)
    detector.initialise(random)
    with torch.no_grad():
        for output in (detector.class_scores, detector.box_deltas) if loud else ():
            output.weight.normal_(0, output.in_features**-0.5, generator=random)
            output.bias.normal_(0, 0.3, generator=random)
        if loud:
            detector.deltas_mean.normal_(0, 0.1, generator=random)
            detector.deltas_std.uniform_(0.1, 0.5, generator=random)
    for module in detector.modules() if not dropout else ():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return detector.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload, no-any-return]
