"""Layers of regions behind a feature pyramid, which has none of a network's own to take.

Two fully connected layers (Lin et al. 2017, section 4.2), or convolutions with batch norms and one
(He and Girshick's ``Xconv1fc``; torchvision's ``FastRCNNConvFCHead``).

Vocabulary: R regions, C channels, P cells of a pooled region a side.
"""

import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.misc import Conv2dNormActivation


def hidden_layers(convolutions: int) -> tuple[str, ...]:
    """Names of the fully connected layers."""
    return ("fc6",) if convolutions else ("fc6", "fc7")


def head_modules(channels: int, side: int, hidden: int, convolutions: int) -> dict[str, nn.Module]:
    """The modules by name, without values.

    Args:
        channels: C.
        side: P.
        hidden: outputs of the fully connected layers.
        convolutions: 3 x 3, each with a batch norm that is constant; 0 for two fully connected
            layers.
    """
    length = channels * side**2
    if not convolutions:
        return {"fc6": empty_linear(length, hidden), "fc7": empty_linear(hidden, hidden)}
    with torch.device("meta"):
        blocks = nn.Sequential(
            *(
                Conv2dNormActivation(channels, channels, norm_layer=FrozenBatchNorm2d)
                for _ in range(convolutions)
            )
        )
    return {
        "convolutions": blocks.to_empty(device="cpu"),
        "fc6": empty_linear(length, hidden),
    }


def initialise_head(head: dict[str, nn.Module], values: str, generator: torch.Generator) -> None:
    """First values, drawn on the CPU.

    Convolutions N(0, 2 / fan out) (He et al. 2015), as torchvision's; their norms the identity.

    Args:
        head: :func:`head_modules`.
        values: of fully connected layers. "paper" for Detectron's ``XavierFill``, which counts
            inputs alone: U(-b, b), b^2 = 3 / inputs, biases 0; "torchvision" for
            :func:`_initialise_as_torchvision`.
        generator: what they are drawn from.
    """
    for module in (one for part in head.values() for one in part.modules()):
        if isinstance(module, nn.Linear) and values == "paper":
            nn.init.kaiming_uniform_(module.weight, a=1, generator=generator)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            _initialise_as_torchvision(module, generator)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(
                module.weight, mode="fan_out", nonlinearity="relu", generator=generator
            )
        elif isinstance(module, FrozenBatchNorm2d):
            reset_norm(module)


def initialise_outputs(
    scores: nn.Linear, deltas: nn.Linear, values: str, generator: torch.Generator
) -> None:
    """First values of the two outputs of regions, drawn on the CPU.

    Args:
        scores, deltas: of classes, and of boxes.
        values: "paper" for N(0, .01) and N(0, .001), biases 0 (Girshick 2015, section 2.3);
            "torchvision" for :func:`_initialise_as_torchvision`.
        generator: what they are drawn from.
    """
    for layer, deviation in ((scores, 0.01), (deltas, 0.001)):
        if values == "paper":
            nn.init.normal_(layer.weight, 0, deviation, generator=generator)
            nn.init.zeros_(layer.bias)
        else:
            _initialise_as_torchvision(layer, generator)


def _initialise_as_torchvision(layer: nn.Linear, generator: torch.Generator) -> None:
    """Weights and biases U(-b, b), b^2 = 1 / inputs: PyTorch's own, which its detectors keep."""
    bound = layer.in_features**-0.5
    for parameter in (layer.weight, layer.bias):
        nn.init.uniform_(parameter, -bound, bound, generator=generator)


def reset_norm(norm: FrozenBatchNorm2d) -> None:
    """Make a constant batch norm the identity but for its epsilon."""
    for values, start in (
        (norm.weight, 1.0),
        (norm.bias, 0.0),
        (norm.running_mean, 0.0),
        (norm.running_var, 1.0),
    ):
        values.fill_(start)


def empty_linear(inputs: int, outputs: int) -> nn.Linear:
    """Without values: false sizes of a damaged file then take no memory."""
    with torch.device("meta"):
        layer = nn.Linear(inputs, outputs)
    return layer.to_empty(device="cpu")
