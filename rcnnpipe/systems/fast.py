"""Fast R-CNN: Girshick 2015 (arXiv 1504.08083) and the authors' code, rbgirshick/fast-rcnn.

One network looks at the whole image; each proposal is pooled from its map, runs through the fully
connected layers and is classified and moved at once. Importing this loads nothing heavy: commands
take their defaults from it.
"""

from typing import TYPE_CHECKING

from rcnnpipe.systems.rcnn import Sampling, Solver

if TYPE_CHECKING:
    from rcnnpipe.models.backbones import Network
    from rcnnpipe.models.image_view import ImageView
    from rcnnpipe.models.parts import Parts

# Section 2.3: 2 images, 64 regions of each, a quarter objects; background overlaps one by .1 to .5.
SAMPLING = Sampling(batch_size=128, foreground=32, background_from=0.1)
IMAGES = 2

# Section 2.3; biases: models/VGG16/train.prototxt
SOLVER = Solver(
    iterations=40_000, learning_rate=0.001, step=30_000, bias_multiplier=2.0,
    classifier_multiplier=1.0,
)  # fmt: skip

# Equation 3: where the smooth L1 loss becomes linear; the same in py-faster-rcnn and Detectron.
BETA = 1.0
# Of layers of regions: section 2.3's (FPN's: Detectron's), or those of torchvision's detectors.
FIRST_VALUES = ("paper", "torchvision")

# lib/fast_rcnn/config.py: shorter and longest side, for windows of 224. Several scales are 480,
# 576, 688, 864, 1200 and at most 2000 (experiments/cfgs/multiscale.yml): in the same proportion.
SCALES, LONGEST = (600,), 1000

# Section 4.5: the layers from which on networks are trained; conv1 is left alone, in VGG16 conv2
# too. ResNets: Detectron's FREEZE_AT 2. MobileNet: torchvision's detectors.
TRAIN_FROM = {
    "alexnet": "conv2",
    "caffenet": "conv2",
    "demo": "conv2",
    "mobilenet_v3_large": "block7",
    "resnet18": "layer2",
    "resnet50": "layer2",
    "resnet101": "layer2",
    "squeezenet": "fire2",
    "vgg16": "conv3_1",
    "zf5": "conv2",
}


def window_factor(window: int) -> float:
    """How a network's windows compare to the papers' 224 and 227, which are one size here."""
    return window / 224 if window < 200 else 1.0


def usual_view(window: int) -> "ImageView":
    """600 and at most 1000 pixels, or as many more or less as the network's windows have."""
    from rcnnpipe.models.image_view import ImageView

    factor = window_factor(window)
    return ImageView(tuple(round(s * factor) for s in SCALES), round(LONGEST * factor))


def parts_of(network: "Network", view: "ImageView | None" = None, pooling: str = "pool") -> "Parts":
    """How Fast R-CNN is put together from a network.

    Args:
        network: any.
        view: None takes the paper's.
        pooling: "pool" as in the paper, or "align".
    """
    from rcnnpipe.models.parts import Parts
    from rcnnpipe.models.projection import geometry_of
    from rcnnpipe.models.region_cut import usual_cut
    from rcnnpipe.models.region_pooling import RegionPooling

    cut = usual_cut(network.name)
    stride = geometry_of(network, cut.map).stride
    return Parts(
        view=view or usual_view(network.architecture.input_size),
        pooling=RegionPooling(pooling, cut.size, strides=(stride,)),
        cut=cut,
    )
