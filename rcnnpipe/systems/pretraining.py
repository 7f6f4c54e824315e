"""Classification as data: how Krizhevsky et al. 2012 (sections 4.1, 5) and SPP-net train and test.

Nothing here computes or imports anything heavy: commands take their defaults from it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Pretraining:
    """How a classifier is trained.

    Attributes:
        epochs: passes over all examples.
        batch_size: windows of a batch.
        learning_rate: at the beginning.
        step: epochs after which the rate is multiplied by ``gamma``, again and again.
        gamma: see ``step``.
        momentum: of the gradients.
        weight_decay: of weights; biases have none.
        bias_multiplier: of the rate, for biases.
        jitter: how far an object's window strays: each side is scaled by e^u and the window
            shifted by u of its side, u uniform in -jitter..jitter. 0 takes the annotated box.
        background: share of a batch that is windows without an object.
        mirror: whether each window is mirrored with probability 1/2.
        sizes: sides of the windows of one epoch after another, again and again; none takes the
            network's own in every epoch.
        random_size: least and greatest side, of which each epoch draws one; None draws none.
    """

    epochs: int = 90  # section 5
    batch_size: int = 128  # section 5
    learning_rate: float = 0.01  # section 5
    # Section 5 divides by 10 three times, when the error stops falling: here every quarter.
    step: int = 23
    gamma: float = 0.1
    momentum: float = 0.9  # section 5
    weight_decay: float = 5e-4  # section 5
    bias_multiplier: float = 2.0  # Caffe's bvlc_reference_caffenet, as in R-CNN's prototxt
    jitter: float = 0.15  # ours: windows of proposals fit their objects no better
    background: float = 0.0  # ImageNet has no background class
    mirror: bool = True  # section 4.1
    sizes: tuple[int, ...] = ()  # He et al. 2014, section 2.3: 224 and 180
    random_size: tuple[int, int] | None = None  # He et al. 2014, section 3.1: 180 to 224


PRETRAINING = Pretraining()

# Krizhevsky et al. 2012, section 4.1: random 224 x 224 patches of the central 256 x 256
PATCH_SHARE = 224 / 256

# How an example is looked at when it is classified: rcnnpipe.training.views
VIEWS = ("crop", "full", "ten", "multi")

# He et al. 2014, section 3.1, multi-view testing: shorter sides of the image, windows of 224
VIEW_SCALES = (224, 256, 300, 360, 448, 560)
VIEW_WINDOW = 224
