"""Faster R-CNN: Ren et al. 2015 (arXiv 1506.01497), py-faster-rcnn and the authors' MATLAB code.

Fast R-CNN whose regions come from a network on the same maps. Two ways to train it: both parts at
once ("faster"), where proposals are constants, or in four steps, "rpn" and "fast" in turn, with
`propose --method rpn` between. Importing this loads nothing heavy: commands take their defaults
from it.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rcnnpipe.systems import fast
from rcnnpipe.systems.rcnn import Sampling, Solver

if TYPE_CHECKING:
    from rcnnpipe.models.backbones import Network
    from rcnnpipe.models.image_view import ImageView
    from rcnnpipe.models.parts import Parts

# experiments/cfgs/faster_rcnn_end2end.yml: 128 regions of an image, background from an overlap of 0
# on; VGG16's solver has one image and iter_size 2, which makes two images of a step.
SAMPLING = Sampling(batch_size=256, foreground=64, background_from=0.0)
IMAGES = 2
# models/pascal_voc/VGG16/faster_rcnn_end2end/solver.prototxt and tools' 70k iterations
SOLVER = replace(fast.SOLVER, iterations=70_000, step=50_000)
# Section 3.2: 60k iterations at .001, 20k at .0001, one image each
RPN_SOLVER: Solver = replace(fast.SOLVER, iterations=80_000, step=60_000)
RPN_IMAGES = 1

DELTA_STD = (0.1, 0.1, 0.2, 0.2)  # lib/fast_rcnn/config.py, BBOX_NORMALIZE_STDS
TRAIN_FROM = fast.TRAIN_FROM

# Section 3.3: areas of 128^2, 256^2, 512^2 pixels, ratios 1:1, 1:2, 2:1, on maps of stride 16
ANCHOR_SIZES, RATIOS = (128, 256, 512), (0.5, 1.0, 2.0)
STRADDLE = "drop"  # section 3.3
DIFFICULT = "drop"  # lib/datasets/pascal_voc.py, use_diff; Fast R-CNN's code keeps them
# lib/fast_rcnn/config.py, TRAIN.RPN_* and TEST.RPN_*
_MIN_SIZE = 16
TRAINING: dict[str, Any] = {"before": 12_000, "keep": 2000, "min_size": _MIN_SIZE}
TEST: dict[str, Any] = {"before": 6000, "keep": 300, "min_size": _MIN_SIZE}
PER_LEVEL = {"per_level": False}

# Section 3.1: 256 for ZF, 512 for VGG; the demo's maps have 96 channels.
RPN_CHANNELS = {"vgg16": 512, "demo": 64}

usual_view = fast.usual_view


def parts_of(
    network: "Network",
    view: "ImageView | None" = None,
    pooling: str = "pool",
    anchor_sizes: tuple[int, ...] | None = None,
) -> "Parts":
    """How Faster R-CNN is put together from a network.

    Args:
        network: any.
        view: None takes the paper's.
        pooling: "pool" as in the paper, or "align".
        anchor_sizes: sides in pixels of the resized image; None takes the paper's, in the
            proportion of the network's windows to 224.
    """
    from rcnnpipe.models.anchors import Anchors
    from rcnnpipe.models.rpn import ProposalRules

    parts = fast.parts_of(network, view, pooling)
    factor = fast.window_factor(network.architecture.input_size)
    sizes = anchor_sizes or tuple(round(size * factor) for size in ANCHOR_SIZES)
    rules = TEST | {"min_size": _MIN_SIZE * factor}
    return replace(
        parts,
        anchors=Anchors((tuple(map(float, sizes)),), RATIOS),
        rpn_channels=RPN_CHANNELS.get(network.name, 256),
        proposals=ProposalRules(**rules, **PER_LEVEL),
    )
