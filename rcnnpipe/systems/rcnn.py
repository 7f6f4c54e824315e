"""R-CNN as data: Girshick et al. 2014, section 2.3 and appendices A and B, and the authors' code.

Nothing here computes or imports anything heavy: commands take their defaults from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sampling:
    """Which windows a batch of fine-tuning consists of.

    Windows are drawn uniformly, with replacement, from one list of all foreground windows of the
    data set and one of all background windows (Caffe's ``window_data_layer.cpp``); it is Fast R-CNN
    that draws from image to image.

    Attributes:
        batch_size: windows of a batch.
        foreground: how many of them are objects.
        foreground_overlap: from this IoU with an object on, a window is of its class.
        background_overlap: below this IoU with all objects a window is background ...
        background_from: ... if it is at least this much with one of them.
        mirror: whether each window is mirrored with probability 1/2.
    """

    batch_size: int = 128  # section 2.3
    foreground: int = 32  # section 2.3: 32 positives, 96 of the background
    foreground_overlap: float = 0.5  # section 2.3, appendix B
    background_overlap: float = 0.5  # authors' pascal_finetune_train.prototxt: bg_threshold
    background_from: float = 0.0  # appendix B; SPP-net and Fast R-CNN begin at 0.1
    mirror: bool = True  # authors' prototxt


@dataclass(frozen=True)
class Solver:
    """Stochastic gradient descent as the authors' ``pascal_finetune_solver.prototxt`` has it.

    What came later is off: another optimizer or schedule, a warm-up, clipping, averaging.

    Caffe keeps the learning rate inside of its momentum, PyTorch outside: the two differ only in
    the few iterations after the rate has changed.

    Attributes:
        iterations: batches to learn from.
        learning_rate: at the beginning; a tenth of pre-training's.
        step: iterations after which the rate is multiplied by ``gamma``, again and again.
        gamma: see ``step``.
        momentum: of the gradients.
        weight_decay: of weights; biases have none.
        bias_multiplier: of the rate, for biases.
        classifier_multiplier: of the rate, for the new classifier (its bias has both).
        optimizer: "sgd", or "adamw", whose first beta is the momentum.
        schedule: "step", or "cosine": to 0 over the iterations.
        warm_up: first iterations, in which the rate grows from a third of the schedule's.
        clip: largest L2 norm of all gradients together, None for any.
        average: decay of an exponential moving average of the weights, None for none.
    """

    iterations: int = 70_000  # the released models; the solver's max_iter is 100k, gains end ~40k
    learning_rate: float = 0.001  # section 2.3
    step: int = 20_000  # solver: stepsize
    gamma: float = 0.1  # solver
    momentum: float = 0.9  # solver
    weight_decay: float = 5e-4  # solver
    bias_multiplier: float = 2.0  # train prototxt: blobs_lr 1 and 2, weight_decay 1 and 0
    classifier_multiplier: float = 10.0  # train prototxt: fc8_pascal has blobs_lr 10 and 20
    optimizer: str = "sgd"
    schedule: str = "step"
    warm_up: int = 0
    clip: float | None = None
    average: float | None = None


SAMPLING = Sampling()
SOLVER = Solver()

# Rates and decays are an optimizer's own: these are of Swin Transformer (Liu et al. 2021, section
# 4.2), ConvNeXt and others on COCO.
ADAMW: Mapping[str, Any] = {"learning_rate": 1e-4, "weight_decay": 0.05}

# Girshick et al. 2014, appendix A, figure 7: rows without and with context are paddings 0 and 16.
PADDING = 16
CROPS: Mapping[str, Mapping[str, Any]] = {
    "warp": {"mode": "warp"},  # D, the paper's choice
    "tight": {"mode": "warp", "padding": 0},  # D without context pixels
    "square": {"mode": "square"},  # B
    "square-masked": {"mode": "square", "context": False},  # C: the mean around the region
}

# rcnn_test.m: at most 100 candidates for a class in an image, 40 on average over the set; of two
# whose IoU is larger the worse goes.
MOST_PER_IMAGE, MOST_PER_SET, NMS_OVERLAP = 100, 40, 0.3

SVM_LAYER = "fc7"  # table 2: the best layer once the network is fine-tuned
REGRESSION_LAYER = "pool5"  # appendix C
