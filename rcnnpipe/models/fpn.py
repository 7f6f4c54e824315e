"""The feature pyramid: maps of one width at every stride, strong in meaning down to the finest.

Lin et al. 2017, section 3, and its ablations of section 5 (tables 1 and 2).

Vocabulary: N images, C channels, H x W cells of a map. C2, C3, ... are the bottom-up maps of a
backbone, finest first; P2, P3, ... those of the pyramid at the same strides, P6 (behind the fourth)
at half the cells of P5.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d

from rcnnpipe.errors import SettingError
from rcnnpipe.models.region_head import reset_norm


@dataclass(frozen=True)
class Neck:
    """Between which layers the pyramid stands, and which of its connections are there.

    Attributes:
        layers: names of the backbone's maps, finest first, each at twice the stride of the one
            before (roughly: maps of odd sizes work). The paper leaves conv1 out for its memory.
        channels: C of every map of the pyramid.
        lateral: False leaves out the 1 x 1 connections: all levels are the coarsest map, enlarged.
        top_down: False leaves out the way down: each level sees its own map alone.
        finest_only: give P2 alone, which the whole pyramid stands behind.
        extra: whether P6 follows, a plain subsample of P5 for the region proposal network; of no
            effect on ``finest_only``.
        norm: a batch norm that is constant behind every convolution, which then has no bias
            (torchvision's second version).
    """

    layers: tuple[str, ...] = ("layer1", "layer2", "layer3", "layer4")
    channels: int = 256
    lateral: bool = True
    top_down: bool = True
    finest_only: bool = False
    extra: bool = True
    norm: bool = False

    def __post_init__(self) -> None:
        """Layers are different, and every level gets something to see."""
        if not self.layers or len(set(self.layers)) < len(self.layers):
            raise SettingError(
                f"a feature pyramid on '{', '.join(self.layers)}': give different layers, at least "
                "one"
            )
        if self.channels < 1:
            raise SettingError(f"a feature pyramid of {self.channels} channels: give 1 or more")
        if not (self.lateral or self.top_down):
            raise SettingError(
                "a feature pyramid with neither lateral connections nor a top-down way has nothing "
                "to make its finer maps of: leave out one of them"
            )

    def settings(self) -> dict[str, Any]:
        """JSON for the model file; norms only where they are there."""
        settings = asdict(self) | {"layers": list(self.layers)}
        return {name: value for name, value in settings.items() if name != "norm" or value}


def build_neck(settings: Mapping[str, Any]) -> Neck:
    """The inverse of :meth:`Neck.settings`."""
    return Neck(**{**settings, "layers": tuple(settings["layers"])})


class FeaturePyramid(nn.Module):
    """Bottom-up maps to the maps of the pyramid; no rectifier anywhere, norms only if asked for.

    Parameters are named as in torchvision's ``FeaturePyramidNetwork``, ``inner_blocks.I.0.weight``
    for the 1 x 1 and ``layer_blocks.I.0.weight`` for the 3 x 3 convolution of level I, so that its
    detectors' weights load. An ablation has only those that it uses.
    """

    def __init__(self, neck: Neck, in_channels: Sequence[int]) -> None:
        """Make the convolutions, without values yet: :meth:`initialise` them, or load weights.

        Args:
            neck: the settings.
            in_channels: C of each of ``neck.layers``.
        """
        super().__init__()
        if len(in_channels) != len(neck.layers):
            raise ValueError(f"{len(in_channels)} widths for {len(neck.layers)} layers")
        self.neck = neck
        levels = range(len(neck.layers))
        smoothed = levels[:1] if neck.finest_only else levels
        if neck.top_down:
            reduced = levels if neck.lateral else levels[-1:]
        else:
            reduced = smoothed
        with torch.device("meta"):
            whole = FeaturePyramidNetwork(
                *(list(in_channels), neck.channels),
                norm_layer=FrozenBatchNorm2d if neck.norm else None,
            )
        # Dictionaries, for the numbers of levels to stay in the names where some have no block.
        self.inner_blocks = nn.ModuleDict({str(i): whole.inner_blocks[i] for i in reduced})
        self.layer_blocks = nn.ModuleDict({str(i): whole.layer_blocks[i] for i in smoothed})
        self.to_empty(device="cpu")

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The pyramid of a batch.

        Args:
            maps: one (N, C_i, H_i, W_i) for each of the neck's layers, finest first.

        Returns:
            (N, C, H_i, W_i) P2, P3, ..., finest first, and P6 (N, C, ceil(H / 2), ceil(W / 2)) of
            the coarsest where there is one.
        """
        if len(maps) != len(self.neck.layers):
            raise ValueError(f"{len(maps)} maps for a pyramid on {len(self.neck.layers)}")
        merged = self._merged(maps)
        pyramid = [block(merged[int(level)]) for level, block in self.layer_blocks.items()]
        if self.neck.extra and not self.neck.finest_only:
            # Windows of one cell: every other cell as it is. No convolution, which is RetinaNet's.
            pyramid.append(max_pool2d(pyramid[-1], kernel_size=1, stride=2))
        return pyramid

    def _merged(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The maps before their 3 x 3 convolutions, finest first."""
        if not self.neck.top_down:
            return [block(maps[int(level)]) for level, block in self.inner_blocks.items()]
        coarsest = len(maps) - 1
        merged = [self.inner_blocks[str(coarsest)](maps[coarsest])]
        for level in reversed(range(coarsest)):
            # What goes on downward is the merged map, not the smoothed one that is given out.
            above = interpolate(merged[-1], size=maps[level].shape[2:], mode="nearest")
            if self.neck.lateral:
                above = self.inner_blocks[str(level)](maps[level]) + above
            merged.append(above)
        return merged[::-1]

    def initialise(self, generator: torch.Generator) -> None:
        """Give every parameter its first value, in order: weights U(-b, b), b^2 = 3 / fan in.

        That is what Detectron calls Xavier (Caffe2's counts inputs only, other than PyTorch's of
        that name) and what torchvision calls Kaiming with a = 1; both set biases to 0.

        Args:
            generator: on the CPU, where values are drawn so that every device starts the same.
        """
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    values = torch.empty(module.weight.shape)
                    nn.init.kaiming_uniform_(values, a=1, generator=generator)
                    module.weight.copy_(values)
                    if module.bias is not None:
                        module.bias.zero_()
                elif isinstance(module, FrozenBatchNorm2d):
                    reset_norm(module)
