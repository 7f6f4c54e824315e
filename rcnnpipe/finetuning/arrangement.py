"""The detector that training starts from: a system's parts, put on a network or on a detector."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from rcnnpipe.artifacts.store import open_artifact, read_attribute
from rcnnpipe.errors import SettingError
from rcnnpipe.models.backbones import Network
from rcnnpipe.models.compression import put_empty_pairs
from rcnnpipe.models.detector import Detector
from rcnnpipe.models.image_view import ImageView
from rcnnpipe.models.parts import Parts
from rcnnpipe.models.weights import read_model_of_regions, require_named
from rcnnpipe.systems import fast, faster, fpn
from rcnnpipe.training.finetuning import freeze_below
from rcnnpipe.training.initial import initial_generator, initial_network

_log = logging.getLogger(__name__)

ARRANGEMENTS: dict[str, ModuleType] = {
    "fast": fast,
    "faster": faster,
    "rpn": faster,
    "fpn": fpn,
}
# --train-from: all stays as it is but the outputs of regions and the RPN, or but one output.
ALL_FIXED, DELTAS_ALONE = "outputs", "deltas"
_ABLATIONS = ["lateral", "top_down", "finest_only", "shared_heads"]
_OPPOSITE = {
    **{"lateral": "no-lateral", "top_down": "no-top-down"},
    **{"finest_only": "every-level", "shared_heads": "separate-heads"},
}
_OUTPUTS = ("class_scores.", "box_deltas.", "deltas_")


def detector_to_train(
    options: Mapping[str, Any], inputs: dict[str, Any], classes: Sequence[str]
) -> tuple[Detector, dict[str, Any], bool]:
    """The detector to train, settings that took late defaults, and whether its outputs have learnt.

    Args:
        options: of the stage, complete.
        inputs: the file of ``--init`` joins them.
        classes: K + 1 names.

    Raises:
        SettingError: the parts do not fit the network, or the detector of ``--init``.
    """
    before, known = _detector_of(options, inputs)
    _check_parts(options, before)
    if before is None:
        network, random, resolved = initial_network(
            options["network"], options["init"], options["seed"], inputs
        )
    else:
        network, resolved = before.network, {}
        random = initial_generator(options["seed"])
    if options["init"] != "none":
        network.freeze_batch_norm()
    name, system = network.name, ARRANGEMENTS[options["system"]]
    parts = _parts(network, options, before)
    train_from = options["train_from"]
    if train_from is None and options["init"] != "none":
        train_from = system.TRAIN_FROM[name]
    held = before.state_dict() if before else {}
    detector = Detector(network, parts, len(classes))
    detector.initialise(random, options["first_values"])
    if before is not None:
        put_empty_pairs(detector, before.compressed, detector.linear_layers.values())
    usable = before is not None and before.outputs_learnt and not options["new_outputs"]
    learnt = usable and known == tuple(classes)
    if learnt and options["first_values"] != fast.FIRST_VALUES[0]:
        anew = "" if train_from == DELTAS_ALONE else ", or add --new-outputs"
        raise SettingError(
            f"--first-values has no meaning where the outputs of --init stay; leave it out{anew}"
        )
    if before is not None:
        if known != tuple(classes):
            _log.info("the detector of --init knows other classes; its outputs start anew")
        _take_over(detector, held, keep_outputs=learnt)
    if train_from == DELTAS_ALONE:
        _check_stage_wise(options, learnt)
        _train_alone(detector, "box_deltas")
    elif train_from == ALL_FIXED:
        _train_alone(detector, "class_scores", "box_deltas", "rpn")
    else:
        freeze_below(detector.network, train_from)
    maps_change = _trains_maps(detector)
    # A classifier over maps that only an RPN trains is none any more.
    detector.outputs_learnt = options["system"] != "rpn" or (learnt and not maps_change)
    if maps_change:
        _tell_of_what_stays(detector, options["system"], learnt)
    resolved |= {"network": name, "train-from": train_from, "parts": parts.settings()}
    return detector, resolved, learnt


def _detector_of(
    options: Mapping[str, Any], inputs: dict[str, Any]
) -> tuple[Detector | None, tuple[str, ...]]:
    """The detector that ``--init`` names, if it is one, and its classes."""
    path = Path(options["init"])
    if path.suffix != ".h5":
        return None, ()
    with open_artifact(path, "model") as (_, file):
        if "detector" not in read_attribute(file, "architecture"):
            return None, ()
    header, detector = read_model_of_regions(path)
    assert isinstance(detector, Detector)
    require_named(path, detector.network, options["network"])
    inputs["init"] = header
    return detector, header.classes


def _trains_maps(detector: Detector) -> bool:
    """Whether anything learns below the map that a cut network gives."""
    cut, network = detector.parts.cut, detector.network
    if cut is None:
        return False
    names = network.layer_names
    below = [network.architecture.layers[x].modules for x in names[: names.index(cut.map) + 1]]
    modules = [network.get_submodule(path) for paths in below for path in paths]
    return any(values.requires_grad for module in modules for values in module.parameters())


def _tell_of_what_stays(detector: Detector, system: str, learnt: bool) -> None:
    """Ren et al. 2015, step 4: what is not trained needs the maps that it has learnt on."""
    stays = {"fast": detector.rpn is not None, "rpn": learnt}.get(system, False)
    if not stays:
        return
    cut, names = detector.parts.cut, detector.network.layer_names
    assert cut is not None
    _log.warning(
        "the %s of --init stays as it is, but the maps it looks at are trained and it will no "
        "longer find %s on them; --train-from %s keeps them",
        *(("RPN", "regions") if system == "fast" else ("classifier", "objects")),
        names[names.index(cut.source) + 1],
    )


def _parts(network: Network, options: Mapping[str, Any], before: Detector | None) -> Parts:
    """The system's parts, or those of the detector that is trained on, with a part it lacks."""
    system = ARRANGEMENTS[options["system"]]
    view = before.parts.view if before else system.usual_view(network.architecture.input_size)
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
            flag = _OPPOSITE.get(name, name) if options[name] is False else name
            flag = flag.replace("_", "-")
            raise SettingError(f"the detector of --init keeps its own parts; leave --{flag} out")


def _train_alone(detector: Detector, *parts: str) -> None:
    for name, module in detector.named_children():
        module.requires_grad_(name in parts)


def _check_stage_wise(options: Mapping[str, Any], learnt: bool) -> None:
    """Girshick 2015, section 5.1: the box regression learns by itself behind a finished classifier.

    The authors' ``experiments/scripts/piecewise_*.sh``.
    """
    what = f"--train-from {DELTAS_ALONE} trains the box regression alone"
    if options["system"] == "rpn":
        raise SettingError(f"{what}, which --system rpn has not; leave it out")
    if options["box_weight"] == 0:
        raise SettingError(f"{what}, but --box-weight 0 leaves it out; raise it")
    if not learnt:
        raise SettingError(
            f"{what} of a detector that tells these classes already; give one by --init, e.g. from "
            "finetune --box-weight 0, and no --new-outputs"
        )


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
