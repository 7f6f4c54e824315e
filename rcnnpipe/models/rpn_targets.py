"""What a Region Proposal Network should answer for each anchor, and how wrong its answers are.

Ren et al. 2015, sections 3.1.2 and 3.1.3, and py-faster-rcnn's ``anchor_target_layer.py``; Lin et
al. 2017, section 4.1. All for one image, with the anchors of all its maps in one array: the best
anchor of an object is the best over all maps.

Vocabulary: A anchors, G objects, I crowds, boxes (.., 4) x1 y1 x2 y2 in pixels of the resized
image. Labels of anchors: 1 object, 0 background, -1 neither, which is never sampled.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from rcnnpipe.boxes import encode, iou, share_inside
from rcnnpipe.errors import SettingError
from rcnnpipe.matching import IGNORED_SHARE
from rcnnpipe.models.losses import smooth_l1

STRADDLES = ("drop", "keep")
# Ren et al. 2015, section 3.1.2; what their code has are the defaults of AnchorRules.
PAPERS_LOSS: dict[str, Any] = {"box_weight": 256 / 240, "beta": 1.0}


@dataclass(frozen=True)
class AnchorRules:
    """Labels, sampling and the weights of the loss.

    The sources contradict each other. For the box loss, Ren et al. write a weight of lambda = 10
    over about 2400 positions, 1 / 240 for each positive anchor, and a smooth L1 with beta = 1;
    their code has 1 / 256 and beta = 1 / 9, and so have Detectron and torchvision. The defaults are
    the code's, :data:`PAPERS_LOSS` is the paper's text. It matters little: by the
    paper, lambdas from 1 to 100 move mAP by about 1 %.

    Of anchors that reach over the border, Ren et al. say that training diverges with them, and drop
    them, as Detectron does; Lin et al., detectron2 and torchvision keep them.

    Attributes:
        positive: an anchor with at least this IoU with an object is one.
        negative: an anchor with less than this IoU with every object is background.
        batch: anchors sampled from an image.
        fraction: of them positive, at most.
        straddle: "drop" leaves out anchors that reach over the border; "keep" treats them as the
            others.
        beta: where smooth L1 turns from a square to a line; 1 / sigma^2 in the authors' code.
        box_weight: factor of the box loss.
    """

    positive: float = 0.7
    negative: float = 0.3
    batch: int = 256
    fraction: float = 0.5
    straddle: str = "drop"
    beta: float = 1 / 9
    box_weight: float = 1.0

    def __post_init__(self) -> None:
        """Numbers are in their ranges."""
        if not 0 <= self.negative <= self.positive <= 1:
            raise SettingError(
                f"anchors are background under an overlap of {self.negative:g} and objects from "
                f"{self.positive:g}: give 0 <= background <= objects <= 1"
            )
        if self.batch < 1 or not 0 <= self.fraction <= 1:
            raise SettingError(
                f"{self.batch} anchors an image, {self.fraction:g} of them objects: give at least "
                "1 and a fraction in 0 to 1"
            )
        if self.straddle not in STRADDLES:
            raise SettingError(f"'{self.straddle}' is none of {', '.join(STRADDLES)}")
        if not (0 <= self.beta < math.inf and 0 <= self.box_weight < math.inf):
            raise SettingError(
                f"a beta of {self.beta:g} and a box weight of {self.box_weight:g}: give 0 or more"
            )


def label_anchors(
    anchors: Tensor, truth: Tensor, ignored: Tensor, size: tuple[int, int], rules: AnchorRules
) -> tuple[Tensor, Tensor]:
    """The label of each anchor, and the object its deltas should lead to.

    An object's best anchors, all that are equally good, are positive however small their overlap.

    Args:
        anchors: (A, 4).
        truth: (G, 4), the objects; G may be 0.
        ignored: (I, 4), the crowds: anchors mostly inside one are not background.
        size: (height, width) of the resized image, without its padding.
        rules: the thresholds and what happens at the border.

    Returns:
        labels (A,) int64: 1, 0 or -1; matched (A,) int64: number of the object with which the
        anchor itself has the largest IoU, the first of equals. That need not be the one whose best
        anchor it is. It is 0, and means nothing, for anchors that are left out at the border and
        where there are no objects.
    """
    labels = torch.full((len(anchors),), -1, device=anchors.device)
    matched = torch.zeros_like(labels)
    rows = torch.arange(len(anchors), device=anchors.device)
    if rules.straddle == "drop":
        rows = rows[inside(anchors, size)]
    counted = anchors[rows]
    found, matched[rows] = _by_overlap(iou(counted, truth), rules)
    in_crowd = share_inside(counted, ignored) > IGNORED_SHARE
    labels[rows] = found.masked_fill(in_crowd & (found == 0), -1)
    return labels, matched


def inside(anchors: Tensor, size: tuple[int, int]) -> Tensor:
    """(A,) bool: the anchor does not reach over the border."""
    height, width = size
    x1, y1, x2, y2 = anchors.unbind(1)
    return (x1 >= 0) & (y1 >= 0) & (x2 <= width) & (y2 <= height)


def _by_overlap(overlaps: Tensor, rules: AnchorRules) -> tuple[Tensor, Tensor]:
    """IoUs (A, G) to labels (A,) and the numbers of the nearest objects (A,)."""
    if overlaps.numel() == 0:
        none = torch.zeros(len(overlaps), dtype=torch.int64, device=overlaps.device)
        return none, none
    best, matched = overlaps.max(dim=1)
    of_object = overlaps.amax(dim=0)  # (G,)
    # Every anchor has the largest overlap with an object that no anchor touches: it is 0.
    is_best = ((overlaps == of_object) & (of_object > 0)).any(dim=1)
    labels = (best < rules.negative).long() - 1
    # Last, so that an object's best anchor stays positive below the background's threshold.
    return labels.masked_fill(is_best | (best >= rules.positive), 1), matched


def sample_anchors(
    labels: Tensor, rules: AnchorRules, generator: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Indices of positive anchors and of background, int64, ascending, none twice.

    Background takes the places that too few positives leave; where both are few, so is the batch.
    The same on every device.

    Args:
        labels: (A,) 1, 0 or -1.
        rules: how many.
        generator: what chooses among too many.
    """
    most = int(rules.batch * rules.fraction)
    positives = _choose((labels == 1).nonzero().flatten(), most, generator)
    negatives = _choose((labels == 0).nonzero().flatten(), rules.batch - len(positives), generator)
    return positives, negatives


def _choose(rows: Tensor, most: int, generator: np.random.Generator) -> Tensor:
    if len(rows) <= most:
        return rows
    chosen = np.sort(generator.choice(len(rows), most, replace=False, shuffle=False))
    return rows[torch.from_numpy(chosen).to(rows.device)]


def rpn_loss(
    logits: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    truth: Tensor,
    matched: Tensor,
    positives: Tensor,
    negatives: Tensor,
    rules: AnchorRules,
) -> tuple[Tensor, Tensor]:
    """How wrong one image's sampled anchors are: equation 1, as the authors' code divides it.

    Args:
        logits: (A,) of an object.
        deltas: (A, 4) as the network gives them; nothing is normalised.
        anchors: (A, 4).
        truth: (G, 4).
        matched: (A,) int64, the object of each anchor.
        positives: indices of sampled anchors that should be objects.
        negatives: indices of sampled anchors that should be background.
        rules: the loss's beta and weight.

    Returns:
        the mean cross entropy of the sampled anchors; smooth L1 of the positive ones' deltas,
        summed and divided by the number of all sampled, times its weight. Float32 scalars, 0 where
        nothing is sampled.
    """
    sampled = torch.cat((positives, negatives))
    number = max(len(sampled), 1)
    answers = torch.zeros(len(sampled), device=logits.device)
    answers[: len(positives)] = 1
    objectness = binary_cross_entropy_with_logits(logits[sampled].float(), answers, reduction="sum")
    targets = encode(anchors[positives], truth[matched[positives]])
    errors = smooth_l1(deltas[positives].float() - targets, rules.beta)
    return objectness / number, rules.box_weight * errors.sum() / number
