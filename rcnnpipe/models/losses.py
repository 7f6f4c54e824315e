"""Losses that several networks share, element by element: the caller sums and divides."""

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss


def smooth_l1(difference: Tensor, beta: float) -> Tensor:
    """A square up to ``beta``, a line of slope 1 beyond it; any shape, the same shape.

    x^2 / (2 beta) where abs(x) < beta, else abs(x) - beta / 2. Girshick 2015, equation 3, has a
    beta of 1; py-faster-rcnn writes sigma = 3 for a Region Proposal Network: beta is 1 / sigma^2.
    """
    return smooth_l1_loss(difference, torch.zeros_like(difference), reduction="none", beta=beta)
