"""Feature Pyramid Networks: Lin et al. 2017 (arXiv 1612.03144), and Detectron by the same group.

Faster R-CNN on several maps: a top-down path brings what coarse maps know to the fine ones, each
level has anchors of one size, and regions are pooled from the level of their size. Importing this
loads nothing heavy: commands take their defaults from it.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rcnnpipe.systems import fast, faster
from rcnnpipe.systems.rcnn import Sampling, Solver

if TYPE_CHECKING:
    from rcnnpipe.models.backbones import Network
    from rcnnpipe.models.image_view import ImageView
    from rcnnpipe.models.parts import Parts

# Section 5.2: 512 regions of an image; 8 GPUs with 2 images. Fewer images want a lower rate: .0025
# for two and one GPU (linear scaling).
IMAGES = 16
SAMPLING = Sampling(batch_size=512 * IMAGES, foreground=128 * IMAGES, background_from=0.0)
SOLVER = Solver(
    iterations=80_000,
    learning_rate=0.02,
    step=60_000,
    weight_decay=1e-4,
    bias_multiplier=1.0,
    classifier_multiplier=1.0,
)

DELTA_STD = faster.DELTA_STD  # Detectron's box code (10, 10, 5, 5)
TRAIN_FROM = fast.TRAIN_FROM

RATIOS = faster.RATIOS
ANCHOR_SIZES = (32, 64, 128, 256, 512)  # section 4.1, on maps of stride 4 to 64
STRADDLE = "keep"  # section 4.1, footnote; Detectron drops them
# Detectron's 1x configurations; 2000 of a GPU's two images are 1000 of each.
TRAINING: dict[str, Any] = {"before": 2000, "keep": 1000, "min_size": 0, "drop_first": False}
TEST: dict[str, Any] = {"before": 1000, "keep": 1000, "min_size": 0, "drop_first": False}
PER_LEVEL = {"per_level": True}

CHANNELS, HIDDEN = 256, 1024  # sections 3 and 4.2
SCALE, LONGEST, MULTIPLE = 800, 1333, 32  # section 5; Detectron
# Layers of the last block of each stage, and where a region of the size of the network's windows
# belongs: the level of stride 16 for 224 pixels (equation 1), of stride 8 for the demo's 56.
LEVELS = {
    "demo": (("conv2", "conv5", "pool5"), 3),
    **dict.fromkeys(
        ("resnet18", "resnet50", "resnet101"), (("layer1", "layer2", "layer3", "layer4"), 4)
    ),
}


def usual_view(window: int) -> "ImageView":
    """800 and at most 1333 pixels, or as many less as the network's windows have."""
    from rcnnpipe.models.image_view import ImageView

    factor = fast.window_factor(window)
    return ImageView((round(SCALE * factor),), round(LONGEST * factor), MULTIPLE)


def parts_of(
    network: "Network",
    view: "ImageView | None" = None,
    pooling: str = "pool",
    anchor_sizes: tuple[int, ...] | None = None,
    shared_heads: bool = True,
    **ablations: bool,
) -> "Parts":
    """How FPN is put together from a network.

    Args:
        network: one of :data:`LEVELS`.
        view: None takes the paper's.
        pooling: "pool" as in the paper, or "align" as in Detectron.
        anchor_sizes: of each level, finest first, in pixels of the resized image; None takes the
            paper's: eight strides.
        shared_heads: one head of the RPN for all maps, or one for each (section 4.1).
        ablations: lateral, top_down, finest_only of the neck (tables 1 to 3).

    Raises:
        SettingError: the network has no levels, or another number of them than anchor sizes; or
            separate heads for one map.
    """
    from rcnnpipe.errors import SettingError
    from rcnnpipe.models.anchors import Anchors
    from rcnnpipe.models.fpn import Neck
    from rcnnpipe.models.parts import Parts
    from rcnnpipe.models.projection import geometry_of
    from rcnnpipe.models.region_pooling import RegionPooling
    from rcnnpipe.models.rpn import ProposalRules

    if network.name not in LEVELS:
        raise SettingError(
            f"there is no feature pyramid on {network.name}, only on {', '.join(LEVELS)}"
        )
    layers, level = LEVELS[network.name]
    neck = Neck(layers, _channels(network.name), **ablations)
    if neck.finest_only and not shared_heads:
        raise SettingError("--separate-heads are for several maps, which --finest-only has not")
    strides = tuple(geometry_of(network, layer).stride for layer in layers)
    window = network.architecture.input_size
    if neck.finest_only:
        strides = strides[:1]
    pooled = RegionPooling(
        pooling, 7, strides=strides, reference=min(window, 224), level_of_reference=level
    )
    parts = Parts(view or usual_view(window), pooled, neck=neck, hidden=_hidden(network.name))
    maps = len(parts.strides) if not neck.finest_only else 1
    sizes = anchor_sizes or tuple(8 * stride for stride, _ in parts.strides)
    levels: tuple[tuple[float, ...], ...]
    if neck.finest_only and not anchor_sizes:  # table 1: all scales on the finest map
        levels = (tuple(float(8 * strides[0] * 2**n) for n in range(5)),)
    elif neck.finest_only:
        levels = (tuple(map(float, sizes)),)
    else:
        levels = tuple((float(size),) for size in sizes)
    if len(levels) != maps:
        raise SettingError(f"{len(levels)} sizes of anchors for {maps} maps; give one for each")
    return replace(
        parts,
        anchors=Anchors(levels, RATIOS, "torchvision"),
        rpn_channels=neck.channels,
        separate_heads=not shared_heads,
        proposals=ProposalRules(**TEST, **PER_LEVEL),
    )


def _channels(name: str) -> int:
    return 32 if name == "demo" else CHANNELS


def _hidden(name: str) -> int:
    return 256 if name == "demo" else HIDDEN
