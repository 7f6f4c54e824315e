"""Batch norms that are constants, folded into the convolutions before them: half of a pass less."""

from typing import Any

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops import FrozenBatchNorm2d

_NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d)


def fold_batch_norm(module: nn.Module) -> None:
    """Fold every batch norm that directly follows a convolution into it, in place; for evaluation.

    The outputs stay the same but for rounding. In mixed precision a frozen batch norm otherwise
    costs as much as the convolution: its scale is float32 and makes the whole map so.
    """
    previous: nn.Module | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, _NORMS) and isinstance(previous, nn.Conv2d):
            _fold(previous, child)
            module.add_module(name, nn.Identity())
        elif not isinstance(child, nn.Conv2d):
            fold_batch_norm(child)
        previous = child


def _fold(convolution: nn.Conv2d, norm: Any) -> None:
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        *(convolution.weight, convolution.bias, norm.running_mean, norm.running_var),
        *(norm.eps, norm.weight, norm.bias),
    )
