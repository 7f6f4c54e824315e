"""Detectors by torchvision's names: its Faster R-CNN with a feature pyramid becomes ours, and back.

torchvision's ``models/detection/faster_rcnn.py``: the layouts of ``torchvision_layouts``. An
imported detector has its geometry too, so that it finds the same boxes.

Vocabulary: K classes. Names are those of state dicts.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from rcnnpipe.errors import DataError, SettingError
from rcnnpipe.models.backbones import create_network
from rcnnpipe.models.detector import Detector
from rcnnpipe.models.fitting import Shape, is_counter, require_finite, require_fit
from rcnnpipe.models.model_values import to_arrays
from rcnnpipe.models.preprocessing import preset
from rcnnpipe.models.tensor_files import READERS
from rcnnpipe.models.torchvision_layouts import NETWORKS, Layout, layout_of, layout_of_file

EPSILON = 1e-5  # of every batch norm that is built
DELTAS_STD = (0.1, 0.1, 0.2, 0.2)  # BoxCoder's weights 10, 10, 5, 5

_OWN = ("deltas_mean", "deltas_std")  # constants there
_OUTPUTS = "roi_heads.box_predictor.cls_score.weight"
# Its older files, the released weights among them, lack a number in these names.
_OLDER = (
    (re.compile(r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)"), r"\1.0.\2"),
    (re.compile(r"rpn\.head\.conv\.(weight|bias)"), r"rpn.head.conv.0.0.\1"),
)
# A tensor that only they have -> what they are, and what of it there is none of here.
_OTHERS = {
    "roi_heads.mask_predictor.mask_fcn_logits.weight": "Mask R-CNN, which has a branch for masks",
    "roi_heads.keypoint_predictor.kps_score_lowres.weight": (
        "Keypoint R-CNN, which has a branch for keypoints"
    ),
    "head.classification_head.cls_logits.weight": "a detector of one stage, without regions",
    "fc.weight": "a classifier, with which finetune --system fpn --init begins",
}


def read_detector(path: Path, name: str, classes: int, epsilon: float = EPSILON) -> Detector:
    """The detector of a file of torchvision's tensors.

    Args:
        path: .pth, .pt, .safetensors or .npz.
        name: of its network, one of ``NETWORKS``.
        classes: K + 1, the background with them.
        epsilon: what its batch norms add to variances: 0 in the released weights of
            ``fasterrcnn_resnet50_fpn``.

    Returns:
        On the CPU, in evaluation mode, batch norms frozen.

    Raises:
        SettingError: the network is none of those, or the classes are not as many.
        DataError: the file is no such detector; says which it is.
    """
    if path.suffix not in READERS:
        raise DataError(f"{path} is no file of tensors; give one of {', '.join(READERS)}")
    if not path.is_file():
        raise DataError(f"{path}: there is no such file of weights")
    with READERS[path.suffix](path) as (shapes, read):
        return import_detector(name, classes, str(path), shapes, read, epsilon)


def import_detector(
    name: str,
    classes: int,
    where: str,
    shapes: Mapping[str, Shape],
    read: Callable[[str], Tensor],
    epsilon: float = EPSILON,
) -> Detector:
    """As :func:`read_detector`, of tensors of any origin.

    Args:
        name, classes, epsilon: as there.
        where: they come from, for messages.
        shapes: theirs, by their names.
        read: gives one by its name.
    """
    if name not in NETWORKS:
        raise SettingError(
            f"torchvision's detector on {name} cannot be read, only on {', '.join(NETWORKS)}"
        )
    names = {_present_name(key): key for key in shapes}
    _require_kind(where, names, name)
    given = shapes[names[_OUTPUTS]][0]
    if given != classes:
        raise SettingError(
            f"{where} tells {given} classes apart, the background with them, so --classes takes "
            f"{given - 1} names, not {classes - 1}"
        )
    layout = layout_of_file(name, names)
    network = create_network(layout.network or name, preprocessing=preset("torchvision"))
    network.freeze_batch_norm(EPSILON if layout.network else None)  # a MobileNet's own is another
    detector = Detector(network, layout.parts, classes)
    own = [key for key in detector.state_dict() if key not in _OWN]
    wanted = {layout.their_name(key): tuple(detector.state_dict()[key].shape) for key in own}
    kind = f"torchvision's detector on {name}"
    require_fit(kind, wanted, where, {key: shapes[before] for key, before in names.items()})
    values = {key: read(names[layout.their_name(key)]) for key in own}
    if epsilon != EPSILON:
        values |= _with_usual_epsilon(values, epsilon)
    require_finite(where, values)
    std = torch.tensor(DELTAS_STD).repeat(classes, 1)
    detector.load_state_dict(values | {"deltas_mean": torch.zeros(classes, 4), "deltas_std": std})
    return detector.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload, no-any-return]


def exported_tensors(detector: Detector) -> dict[str, np.ndarray[Any, Any]]:
    """A detector's values by torchvision's names, what normalises deltas folded into the weights.

    They load strictly into what :func:`arguments` build.

    Raises:
        SettingError: it has a part that torchvision's detector cannot have.
    """
    layout = layout_of(detector)
    _require_expressible(detector, layout)
    values = {key: value for key, value in detector.state_dict().items() if key not in _OWN}
    usual = torch.tensor(DELTAS_STD, device=detector.deltas_std.device)
    factor, shift = (detector.deltas_std / usual).view(-1), detector.deltas_mean / usual
    values["box_deltas.weight"] = values["box_deltas.weight"] * factor[:, None]
    values["box_deltas.bias"] = values["box_deltas.bias"] * factor + shift.view(-1)
    return to_arrays(
        {layout.their_name(key): value for key, value in values.items() if not is_counter(key)}
    )


def arguments(detector: Detector) -> dict[str, Any]:
    """What ``resnet_fpn_backbone`` and ``FasterRCNN`` take to build a detector's like, as JSON.

    "like" names the function whose RPN and head it has.

    Sizes are rounded and the anchors of the coarsest map are placed in torchvision's own way then;
    a detector that was imported has both already.
    """
    parts, preprocessing = detector.parts, detector.network.preprocessing
    assert parts.anchors is not None
    assert parts.proposals is not None
    scale = 255 * preprocessing.scale
    return {
        "like": layout_of(detector).like,
        "backbone_name": detector.network.name,
        "num_classes": detector.classes,
        "min_size": parts.view.scales[0],
        "max_size": parts.view.longest,
        "image_mean": (preprocessing.mean / scale).tolist(),
        "image_std": (preprocessing.std / scale).tolist(),
        "anchor_sizes": [list(sizes) for sizes in parts.anchors.sizes],
        "anchor_ratios": list(parts.anchors.ratios),
        "rpn_pre_nms_top_n_test": parts.proposals.before,
        "rpn_post_nms_top_n_test": parts.proposals.keep,
        "rpn_nms_thresh": parts.proposals.overlap,
        "rpn_score_thresh": parts.proposals.least_score,
    }


def _present_name(key: str) -> str:
    for pattern, replacement in _OLDER:
        if pattern.fullmatch(key):
            return pattern.sub(replacement, key)
    return key


def _require_kind(where: str, names: Mapping[str, str], network: str) -> None:
    for key, what in _OTHERS.items():
        if key in names:
            raise DataError(
                f"{where} is {what}; what can be read is Faster R-CNN on a feature pyramid of "
                f"{', '.join(NETWORKS)}"
            )
    if _OUTPUTS not in names:
        raise DataError(f"{where} is no Faster R-CNN of torchvision's: it lacks {_OUTPUTS}")
    mobile = "backbone.body.0.0.weight" in names
    if mobile != network.startswith("mobilenet"):
        is_on, name = ("a", "mobilenet_v3_large") if mobile else ("no", NETWORKS[0])
        raise DataError(
            f"{where} is on {is_on} MobileNet, so {network} does not fit; name another network, as "
            f"{name}"
        )


def _with_usual_epsilon(values: Mapping[str, Tensor], epsilon: float) -> dict[str, Tensor]:
    """Batch norms that compute with :data:`EPSILON` what they did with another one.

    Their variances go into their scales and become 1: a variance below the epsilon, of a channel
    that is almost dead, could not be made smaller.
    """
    changed = {}
    for key, variance in values.items():
        if key.endswith(".running_var"):
            scale = key.removesuffix("running_var") + "weight"
            changed[scale] = values[scale] * (variance + epsilon).rsqrt()
            changed[key] = torch.full_like(variance, 1 - EPSILON)
    return changed


def _require_expressible(detector: Detector, layout: Layout) -> None:
    parts, neck, theirs = detector.parts, detector.parts.neck, layout.parts
    reasons = {
        "is put on a feature pyramid": neck is not None,
        "finds its regions by an RPN": parts.anchors is not None,
        f"has one of {', '.join(NETWORKS)} below": detector.network.name in NETWORKS,
        "has all connections and levels of the pyramid": neck in (None, theirs.neck),
        "pools regions by RoIAlign (finetune --pooling align)": (
            parts.pooling.kind == "align" and not parts.pooling.aligned
        ),
        "pools 7 x 7 bins of 2 x 2 points": (parts.pooling.size, parts.pooling.sampling) == (7, 2),
        "pools a region of 224 pixels from stride 16": (
            (parts.pooling.reference, parts.pooling.level_of_reference) == (224, 4)
        ),
        "has anchors about the corners of cells": (
            parts.anchors is None or parts.anchors.placement == "torchvision"
        ),
        "adds 1e-05 to the variances of batch norms": all(
            norm.eps == EPSILON
            for norm in detector.modules()
            if isinstance(norm, nn.BatchNorm2d | FrozenBatchNorm2d)
        ),
        "is not compressed": not detector.compressed,
        "has one RPN head for all maps": not parts.separate_heads,
        "tells objects apart": detector.outputs_learnt,
        "sees RGB images": detector.network.preprocessing.order == "RGB",
        "has 1024 hidden units": parts.hidden == theirs.hidden,
        "has two layers of convolutions in its RPN, four before its fully connected one, and batch "
        "norms in its pyramid, or neither": (
            (parts.convolutions, parts.rpn_depth) == (theirs.convolutions, theirs.rpn_depth)
        ),
    }
    for reason, holds in reasons.items():
        if not holds:
            raise SettingError(f"torchvision's detector {reason}; this one does not")
