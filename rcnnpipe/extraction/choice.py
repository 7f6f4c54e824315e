"""Which way a network makes features of regions: by its windows, or by its pyramid."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from rcnnpipe.errors import SettingError
from rcnnpipe.extraction.detectors import DetectorExtractor
from rcnnpipe.extraction.maps import POOLED, MapExtractor
from rcnnpipe.extraction.regions import Extractor
from rcnnpipe.extraction.windows import WindowExtractor
from rcnnpipe.models.backbones import Network
from rcnnpipe.models.detector import Detector
from rcnnpipe.models.projection import geometry_of


def extractor_for(
    network: Network | Detector,
    layers: Sequence[str],
    device: torch.device,
    options: Mapping[str, Any],
    *,
    stored: bool = True,
    find: bool = False,
) -> Extractor:
    """The network's way of making features.

    Args:
        network: already on ``device``, in evaluation mode.
        layers: names of layers.
        device: where to compute.
        options: of the stage: precision, batch_size; scales, None for the network's own,
            random_scales and seed, which only mean something where it has a pyramid; images and
            flip, of detectors.
        stored: whether features are for a file, float16; detectors can give float32.
        find: whether a detector is to find its regions by its RPN, at each scale as many as its
            parts say, or max_proposals of the options.

    Raises:
        SettingError: a layer or an option that the network has no use for.
    """
    if isinstance(network, Detector):
        found = _of_detector(network, layers, device, options)
        if not find:
            return replace(found, stored=stored)
        # Of its own scales training drew one for each image; several cost their time, so that they
        # are for those who ask for them.
        looks = found.view if options.get("scales") else found.view.single()
        rules = network.parts.proposals
        if rules is not None and options["max_proposals"]:
            rules = replace(rules, keep=options["max_proposals"])
        return replace(found, stored=stored, proposals=rules, view=looks)
    if options.get("images", 1) > 1:
        raise SettingError(
            "--images is for detectors; this network looks at the windows of one image after "
            "another, so many at once as --batch-size says"
        )
    if network.head is None:
        for name in ("scales", "random_scales"):
            if options.get(name):
                raise SettingError(
                    f"--{name.replace('_', '-')} is for networks with a pyramid, which look at the "
                    "whole image; this one looks at warped windows"
                )
        return WindowExtractor(network, layers, device, options["precision"], options["batch_size"])
    names = network.layer_names
    of_regions = names[names.index(POOLED) :]
    for layer in layers:
        if layer in names and layer not in of_regions:
            raise SettingError(
                f"'{layer}' is a map of the whole image in a network with a pyramid; regions have "
                f"{', '.join(of_regions)}"
            )
    view = network.head.view
    if options.get("scales"):
        view = replace(view, scales=options["scales"])
    return MapExtractor(
        *(network, layers, device, view, geometry_of(network, network.head.map)),
        precision=options["precision"],
        batch_size=options["batch_size"],
        random_scales=bool(options.get("random_scales")),
        seed=options.get("seed", 0),
    )


def _of_detector(
    detector: Detector,
    layers: Sequence[str],
    device: torch.device,
    options: Mapping[str, Any],
) -> DetectorExtractor:
    if options.get("random_scales"):
        raise SettingError("--random-scales is for networks with a pyramid, not for detectors")
    view = detector.parts.view.at(options.get("scales"))
    images = options.get("images", 1)
    if images > 1 and options.get("flip"):
        images *= 2  # the mirrored view is as large
    return DetectorExtractor(
        *(detector, layers, device, view, options["precision"], options["batch_size"]),
        images=images,
    )
