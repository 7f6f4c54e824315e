"""The detector that training starts from: a system's parts, put on a network or on a detector."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from rcnnpipe.artifacts.store import open_artifact, read_attribute
from rcnnpipe.errors import SettingError
from rcnnpipe.models.backbones import Network
from rcnnpipe.models.detector import Detector
from rcnnpipe.models.image_view import ImageView
from rcnnpipe.models.parts import Parts
from rcnnpipe.models.weights import read_model_of_regions, require_named
from rcnnpipe.systems import fast, faster, fpn
from rcnnpipe.training.finetuning import freeze_below
from rcnnpipe.training.initial import initial_generator, initial_network

ARRANGEMENTS: dict[str, ModuleType] = {
    "fast": fast,
    "faster": faster,
    "rpn": faster,
    "fpn": fpn,
}
ALL_FIXED = "outputs"  # --train-from: the whole network stays as it is
_ABLATIONS = ["lateral", "top_down", "finest_only"]
_OUTPUTS = ("class_scores.", "box_deltas.", "deltas_")


def detector_to_train(
    options: Mapping[str, Any], inputs: dict[str, Any], classes: int
) -> tuple[Detector, dict[str, Any], bool]:
    """The detector to train, settings that took late defaults, and whether its outputs have learnt.

    Args:
        options: of the stage, complete.
        inputs: the file of ``--init`` joins them.
        classes: K + 1.

    Raises:
        SettingError: the parts do not fit the network, or the detector of ``--init``.
    """
    before = _detector_of(options, inputs)
    _check_parts(options, before)
    if before is None:
        network, random, resolved = initial_network(
            options["network"], options["init"], options["seed"], inputs
        )
        if options["init"] != "none":
            network.freeze_batch_norm()
    else:
        network, resolved = before.network, {}
        random = initial_generator(options["seed"])
    name, system = network.name, ARRANGEMENTS[options["system"]]
    parts = _parts(network, options, before)
    train_from = options["train_from"]
    if train_from is None and options["init"] != "none":
        train_from = system.TRAIN_FROM[name]
    held = before.state_dict() if before else {}
    detector = Detector(network, parts, classes)
    detector.initialise(random)
    if before is not None:
        _take_over(detector, held, keep_outputs=not options["new_outputs"])
    if train_from == ALL_FIXED:
        detector.network.requires_grad_(False)
    else:
        freeze_below(detector.network, train_from)
    resolved |= {"network": name, "train-from": train_from, "parts": parts.settings()}
    learnt = before is not None and before.classes == classes and not options["new_outputs"]
    return detector, resolved, learnt


def _detector_of(options: Mapping[str, Any], inputs: dict[str, Any]) -> Detector | None:
    """The detector that ``--init`` names, if it is one."""
    path = Path(options["init"])
    if path.suffix != ".h5":
        return None
    with open_artifact(path, "model") as (_, file):
        if "detector" not in read_attribute(file, "architecture"):
            return None
    inputs["init"], detector = read_model_of_regions(path)
    assert isinstance(detector, Detector)
    require_named(path, detector.network, options["network"])
    return detector


def _parts(network: Network, options: Mapping[str, Any], before: Detector | None) -> Parts:
    """The system's parts, or those of the detector that is trained on, with a part it lacks."""
    system = ARRANGEMENTS[options["system"]]
    view = before.parts.view if before else system.usual_view(network.architecture.input_size)
    if options["scales"]:
        view = view.at(options["scales"])
    if options["longest"]:
        view = replace(view, longest=options["longest"])
    if before is None:
        return _own_parts(network, options, view)
    parts = replace(before.parts, view=view)
    if _lacks_rpn(before, options["system"]):
        own = _own_parts(network, options, view)
        parts = replace(
            parts,
            anchors=own.anchors,
            proposals=own.proposals,
            rpn_channels=own.rpn_channels,
        )
    return parts


def _lacks_rpn(before: Detector, system: str) -> bool:
    return before.rpn is None and system != "fast"


def _check_parts(options: Mapping[str, Any], before: Detector | None) -> None:
    """Refuse settings of parts that the detector of ``--init`` has already, or of no detector."""
    if before is None:
        if options["new_outputs"]:
            raise SettingError("--new-outputs is for a detector of --init, which is none here")
        return
    if (before.parts.neck is not None) != (options["system"] == "fpn"):
        kind = "a feature pyramid" if before.parts.neck else "no feature pyramid"
        raise SettingError(f"the detector of --init has {kind}; give another --system")
    fixed = ["pooling", *_ABLATIONS]
    if not _lacks_rpn(before, options["system"]):
        fixed.append("anchor_sizes")
    for name in fixed:
        if options[name] is not None:
            flag = name.replace("_", "-")
            raise SettingError(f"the detector of --init has its own --{flag}; leave it out")


def _own_parts(network: Network, options: Mapping[str, Any], view: ImageView) -> Parts:
    """The system's parts on a network."""
    arguments: dict[str, Any] = {"view": view}
    names = ["pooling"]
    names += ["anchor_sizes"] if options["system"] != "fast" else []
    names += _ABLATIONS if options["system"] == "fpn" else []
    arguments |= {name: options[name] for name in names if options[name] is not None}
    parts: Parts = ARRANGEMENTS[options["system"]].parts_of(network, **arguments)
    return parts


def _take_over(detector: Detector, held: Mapping[str, torch.Tensor], keep_outputs: bool) -> None:
    """Values of the detector before, where this one has the same part; outputs only if asked for.

    Ren et al. 2015, step 4: the authors' MATLAB code goes on with the outputs of step 2, their
    Python code restarts them.
    """
    own = detector.state_dict()
    for name, value in held.items():
        output = name.startswith(_OUTPUTS)
        if name in own and own[name].shape == value.shape and (keep_outputs or not output):
            own[name] = value
    detector.load_state_dict(own)
