"""Classification pre-training as data: Krizhevsky et al. 2012, sections 4.1 and 5.

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


PRETRAINING = Pretraining()

# Krizhevsky et al. 2012, section 4.1: random 224 x 224 patches of the central 256 x 256
PATCH_SHARE = 224 / 256
