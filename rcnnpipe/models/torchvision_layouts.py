"""torchvision's Faster R-CNNs on feature pyramids: what each is put together from, and its names.

torchvision's ``models/detection/faster_rcnn.py``. Names are those of state dicts.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from rcnnpipe.errors import SettingError
from rcnnpipe.models.anchors import Anchors
from rcnnpipe.models.detector import Detector
from rcnnpipe.models.fpn import Neck
from rcnnpipe.models.image_view import ImageView
from rcnnpipe.models.parts import Parts
from rcnnpipe.models.region_pooling import RegionPooling
from rcnnpipe.models.rpn import ProposalRules

_NAMES = {  # ours, theirs
    "network.": "backbone.body.",
    "neck.": "backbone.fpn.",
    "rpn.conv.": "rpn.head.conv.0.0.",
    "rpn.objectness.": "rpn.head.cls_logits.",
    "rpn.deltas.": "rpn.head.bbox_pred.",
    "fc6.": "roi_heads.box_head.fc6.",
    "fc7.": "roi_heads.box_head.fc7.",
    "class_scores.": "roi_heads.box_predictor.cls_score.",
    "box_deltas.": "roi_heads.box_predictor.bbox_pred.",
}


@dataclass(frozen=True)
class Layout:
    """One of torchvision's builders.

    Attributes:
        like: the function that builds it on its usual network.
        network: ours that stands below, None for residual ones.
        parts: of its detectors.
        names: starts of our tensors' names -> of theirs; the first that fits counts.
    """

    like: str
    network: str | None
    parts: Parts
    names: Mapping[str, str]

    def their_name(self, key: str) -> str:
        """What they call a tensor.

        Raises:
            SettingError: they have no such tensor.
        """
        for ours, theirs in self.names.items():
            if key.startswith(ours):
                return theirs + key.removeprefix(ours)
        raise SettingError(f"torchvision's detector has nothing like the tensor {key}")


_RULES = ProposalRules(
    before=1000, keep=1000, min_size=1e-3, per_level=True, drop_first=False, resized=True
)
V1 = Layout(
    "fasterrcnn_resnet50_fpn",
    None,
    Parts(
        ImageView((800,), 1333, 32, "floor"),
        RegionPooling("align", 7, sampling=2, strides=(4, 8, 16, 32)),
        neck=Neck(),
        anchors=Anchors(
            ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,)), placement="torchvision", spread=True
        ),
        proposals=_RULES,
        smallest=1e-2,
    ),
    MappingProxyType(_NAMES),
)
V2 = Layout(  # Li et al. 2021 (arXiv 2111.11429), section 3
    "fasterrcnn_resnet50_fpn_v2",
    None,
    replace(V1.parts, neck=Neck(norm=True), convolutions=4, rpn_depth=2),
    MappingProxyType(
        {
            "rpn.conv.0.": "rpn.head.conv.0.0.",
            "rpn.conv.2.": "rpn.head.conv.1.0.",
            "convolutions.": "roi_heads.box_head.",
            "fc6.": "roi_heads.box_head.5.",
        }
        | {key: name for key, name in _NAMES.items() if key not in ("rpn.conv.", "fc6.", "fc7.")}
    ),
)


_MOBILE_RULES = replace(_RULES, least_score=0.05)
MOBILE = Layout(
    "fasterrcnn_mobilenet_v3_large_fpn",
    "mobilenet_v3_large",
    replace(
        V1.parts,
        # Both of its maps and the pyramid's have stride 32; regions are pooled from the first.
        pooling=RegionPooling("align", 7, sampling=2, strides=(32,)),
        neck=Neck(("block13", "conv2")),
        anchors=Anchors(
            ((32.0, 64.0, 128.0, 256.0, 512.0),) * 3, placement="torchvision", spread=True
        ),
        proposals=_MOBILE_RULES,
        rpn_strides=(32, 32, 64),
    ),
    MappingProxyType({"network.features.": "backbone.body."} | _NAMES),
)
MOBILE_320 = replace(
    MOBILE,
    like="fasterrcnn_mobilenet_v3_large_320_fpn",
    parts=replace(
        MOBILE.parts,
        view=ImageView((320,), 640, 32, "floor"),
        proposals=replace(_MOBILE_RULES, before=150, keep=150),
    ),
)
_MOBILES = {"mobilenet_v3_large": MOBILE, "mobilenet_v3_large_320": MOBILE_320}
# The last differs from the one before in settings alone, which no file of tensors tells.
NETWORKS = ("resnet50", "resnet18", "resnet101", *_MOBILES)


def layout_of_file(name: str, keys: Collection[str]) -> Layout:
    """Which layout a file has, of the network's name, one of :data:`NETWORKS`, and its tensors'."""
    if name in _MOBILES:
        return _MOBILES[name]
    return V2 if "rpn.head.conv.1.0.weight" in keys else V1


def layout_of(detector: Detector) -> Layout:
    """Which layout a detector of ours comes next to."""
    parts, name = detector.parts, detector.network.name
    if name in _MOBILES:
        return _MOBILES[name]
    return V2 if parts.convolutions or parts.rpn_depth > 1 else V1
