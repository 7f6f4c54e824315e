"""One detector made of parts: convolutions, neck, region source, region pooling, head, two outputs.

Fast R-CNN takes its regions from a file; Faster R-CNN finds them by an RPN on the same maps; FPN
puts a neck between. Girshick 2015, section 2.1; Ren et al. 2015, section 3; Lin et al. 2017, 3.

Vocabulary: N images, R regions of all of them, K classes, C channels, P cells of a pooled region a
side, D features of a region.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rcnnpipe.errors import SettingError
from rcnnpipe.models import compression
from rcnnpipe.models.backbones import Network, empty_network
from rcnnpipe.models.fpn import FeaturePyramid
from rcnnpipe.models.image_view import corner_factors
from rcnnpipe.models.model_values import from_arrays, refusing_unfit, to_arrays
from rcnnpipe.models.parts import Parts, build_parts
from rcnnpipe.models.region_cut import (
    channels_of,
    dropout_of,
    keep_layers,
    layers_of_regions,
    length_behind,
    pad_by_half_kernels,
)
from rcnnpipe.models.region_head import (
    empty_linear,
    head_modules,
    hidden_layers,
    initialise_head,
    initialise_outputs,
)
from rcnnpipe.models.rpn import Found, ProposalRules, RpnHead, SeparateRpnHeads, propose
from rcnnpipe.models.without_values import without_values

POOLED = "pool5"
OUTPUTS = ("logits", "deltas")


class Detector(nn.Module):
    """Finds objects in whole images.

    Attributes:
        network: the convolutions, and with a cut the layers behind it; nothing else is left of it.
        parts: what it is put together from.
        classes: K + 1, the background with them.
        neck, rpn: None where it has none.
        class_scores, box_deltas: the two outputs of a region's features.
        outputs_learnt: False where only the RPN has learnt: the two outputs are no layers then.
        deltas_mean, deltas_std: (K + 1, 4), what deltas were normalised by: a region moves by
            ``box_deltas * std + mean``. (The authors fold both into the weights when they save.)
    """

    deltas_mean: Tensor
    deltas_std: Tensor
    fc6: nn.Linear
    fc7: nn.Linear

    def __init__(self, network: Network, parts: Parts, classes: int) -> None:
        """Take a network over; new layers have no values yet (see :meth:`initialise`)."""
        super().__init__()
        if network.preprocessing.mean_image is not None:
            raise SettingError(
                "weights that subtract a mean image are for windows; detectors look at images of "
                "any size, so give weights with a mean for each channel"
            )
        if network.head is not None:
            raise SettingError(
                "a network with a pyramid pools its windows itself; detectors need weights without "
                "one, from rcnnpipe pretrain without --pyramid"
            )
        if classes < 1:
            raise SettingError(f"a detector of {classes} classes: give the background at least")
        self.parts, self.classes, self.outputs_learnt = parts, classes, True
        self.dropout = dropout_of(network) if parts.cut else nn.Identity()
        maps = (parts.cut.map, parts.cut.layer) if parts.cut else self._neck_layers()
        keep_layers(network, maps)
        pad_by_half_kernels(network)
        self.network = network
        channels = [channels_of(network, layer) for layer in self.map_layers]
        self.neck = FeaturePyramid(parts.neck, channels) if parts.neck else None
        if parts.neck:
            channels = [parts.neck.channels] * len(channels)
        if parts.neck:
            head = (channels[0], parts.pooling.size, parts.hidden, parts.convolutions)
            for name, module in head_modules(*head).items():
                self.add_module(name, module)
        self._pooled_channels = channels[0]
        length = parts.hidden
        if parts.cut:
            length = length_behind(network, parts.cut, channels[0], parts.pooling.size)
        self.class_scores = empty_linear(length, classes)
        self.box_deltas = empty_linear(length, 4 * classes)
        self.rpn: RpnHead | SeparateRpnHeads | None = None
        if parts.anchors:
            head = (channels[0], parts.rpn_channels, parts.anchors.per_cell, parts.rpn_depth)
            count, shared = len(parts.strides), not parts.separate_heads
            self.rpn = RpnHead(*head) if shared else SeparateRpnHeads(count, *head)
        self.register_buffer("deltas_mean", torch.zeros(classes, 4))
        self.register_buffer("deltas_std", torch.ones(classes, 4))

    def _neck_layers(self) -> tuple[str, ...]:
        assert self.parts.neck is not None
        return self.parts.neck.layers

    @property
    def _hidden_layers(self) -> tuple[str, ...]:
        return hidden_layers(self.parts.convolutions)

    @property
    def map_layers(self) -> tuple[str, ...]:
        """The network's layers whose values are taken for the whole image, finest first."""
        return (self.parts.cut.map,) if self.parts.cut else self._neck_layers()

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Layers of a region, first to last."""
        behind = self._hidden_layers
        if self.parts.cut:
            own = layers_of_regions(self.network, self.parts.cut)
            behind = tuple(name for name in own if name != POOLED)
        return (POOLED, *behind, *(OUTPUTS if self.outputs_learnt else ()))

    @property
    def layer_sizes(self) -> dict[str, int]:
        """D of every layer of a region; nothing is computed."""
        side = self.parts.pooling.size
        pooled = torch.empty(1, self._pooled_channels, side, side, device="meta")
        found = without_values(self, self.behind, pooled, self.layer_names)
        return {name: value[0].numel() for name, value in found.items()}

    def maps(self, images: Tensor) -> list[Tensor]:
        """Maps [(N, C, H, W)], finest first, of images (N, 3, H, W) as network input."""
        found = self.network(images, self.map_layers)
        maps = [found[layer] for layer in self.map_layers]
        return self.neck(maps) if self.neck is not None else maps

    def find_regions(
        self,
        maps: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
        factors: Sequence[tuple[float, float]],
        rules: ProposalRules | None = None,
    ) -> Found:
        """What the RPN makes of the maps.

        Args:
            maps: of :meth:`maps`.
            image_sizes: (height, width) of each resized image, without its padding.
            factors: for each image (x, y), resized over original.
            rules: which boxes become proposals; None makes none.

        Returns:
            logits, deltas and anchors of all maps together, and for each image proposals (P, 4) in
            pixels of the original image with their scores (P,), best first.
        """
        assert self.rpn is not None
        assert self.parts.anchors is not None
        maps = maps[: len(self.parts.strides)]
        logits, deltas = self.rpn(maps)
        sizes = [(one.shape[2], one.shape[3]) for one in maps]
        device = maps[0].device
        anchors = self.parts.anchors.boxes(sizes, self.parts.anchor_strides(sizes), device)
        proposals = propose(logits, deltas, anchors, image_sizes, factors, rules) if rules else []
        return Found(
            torch.cat(logits, dim=1).float(),
            torch.cat(deltas, dim=1).float(),
            torch.cat(anchors),
            [
                (boxes / corner_factors(own, device), scores)
                for (boxes, scores), own in zip(proposals, factors, strict=False)
            ],
        )

    def pool(
        self,
        maps: Sequence[Tensor],
        boxes: Sequence[Tensor],
        factors: Sequence[tuple[float, float]],
    ) -> Tensor:
        """Pooled regions (R, C, P, P).

        Args:
            maps: of :meth:`maps`.
            boxes: for each image (R_n, 4) in pixels of the original image.
            factors: for each image (x, y), resized over original.
        """
        pooling, device = self.parts.pooling, maps[0].device
        shift = torch.tensor((0.0, 0.0, pooling.pixel, pooling.pixel), device=device)
        rois = [
            (own.to(device).float() - shift) * corner_factors(one, device)
            for own, one in zip(boxes, factors, strict=True)
        ]
        return pooling(maps, rois)

    def behind(self, pooled: Tensor, layers: Sequence[str] = OUTPUTS) -> dict[str, Tensor]:
        """Layers of regions from what was pooled for them (R, C, P, P).

        Returns:
            layer -> (R, ...); "logits" (R, K + 1), "deltas" (R, 4 (K + 1)), normalised.
        """
        held: dict[str, Tensor] = {POOLED: pooled}
        classified = self.parts.cut.layer if self.parts.cut else self._hidden_layers[-1]
        outputs = any(name in OUTPUTS for name in layers)
        inner = [name for name in layers if name not in (POOLED, *OUTPUTS)]
        inner = list(dict.fromkeys([*inner, *([classified] if outputs else [])]))
        if self.parts.cut:
            held |= self.network(pooled, inner, source=self.parts.cut.source)
        elif inner:
            head = self.get_submodule("convolutions") if self.parts.convolutions else nn.Identity()
            values = head(pooled)
            for name in self._hidden_layers:
                values = held[name] = self.get_submodule(name)(values.flatten(1)).relu()
        if outputs:
            features = self.dropout(held[classified].flatten(1))
            held["logits"], held["deltas"] = self.class_scores(features), self.box_deltas(features)
        return {name: held[name] for name in layers}

    def scaled_deltas(self, deltas: Tensor) -> Tensor:
        """Deltas (R, K + 1, 4) by which regions move, of the output (R, 4 (K + 1))."""
        own = deltas.view(-1, self.classes, 4)
        return own * self.deltas_std + self.deltas_mean

    def normalise(self, mean: Tensor, deviation: Tensor, keep: bool) -> None:
        """Set what deltas are normalised by.

        Args:
            mean, deviation: (K + 1, 4).
            keep: change the output so that regions move as before, for one that has learnt.
        """
        mean, deviation = mean.to(self.deltas_mean), deviation.to(self.deltas_mean)
        if keep:
            layer, shape = self.box_deltas, (self.classes, 4)
            factor = self.deltas_std / deviation
            shift = (self.deltas_mean - mean) / deviation
            with torch.no_grad():
                layer.weight.mul_(factor.view(-1, 1))
                layer.bias.copy_((layer.bias.view(shape) * factor + shift).flatten())
        self.deltas_mean.copy_(mean)
        self.deltas_std.copy_(deviation)

    def initialise(self, generator: torch.Generator, values: str = "paper") -> None:
        """First values of the layers that the network does not bring, drawn on the CPU.

        ``values``: of layers of regions, "paper" or "torchvision", see :mod:`region_head`. Maps
        and RPNs start alike in both.
        """
        initialise_outputs(self.class_scores, self.box_deltas, values, generator)
        if self.neck is not None:
            self.neck.initialise(generator)
            names = (*self._hidden_layers, "convolutions")
            head = {name: own for name, own in self.named_children() if name in names}
            initialise_head(head, values, generator)
        if self.rpn is not None:
            self.rpn.initialise(generator)

    @property
    def linear_layers(self) -> dict[str, str]:
        """Fully connected layers behind a neck -> paths of their modules."""
        return {name: name for name in self._hidden_layers if self.neck}

    def compress(self, path: str, rank: int, factors: compression.Factors | None = None) -> None:
        """Put a truncated SVD in the place of a layer behind the neck."""
        compression.put_truncated_svd(self, path, rank, factors)

    @property
    def compressed(self) -> dict[str, int]:
        """Layer behind the neck -> rank of the two that :meth:`compress` put there.

        Those behind a cut are the network's.
        """
        return compression.ranks_of(self, self.linear_layers.values())

    def settings(self) -> dict[str, Any]:
        """JSON from which :func:`build_detector` makes the same detector, values apart."""
        settings = {
            "detector": self.parts.settings(),
            "network": self.network.settings(),
            "classes": self.classes,
        }
        if compressed := self.compressed:
            settings["compressed"] = compressed
        if not self.outputs_learnt:
            settings["outputs_learnt"] = False
        return settings

    def tensors(self) -> dict[str, np.ndarray[Any, Any]]:
        """Values for the model file."""
        return to_arrays(self.state_dict())


def build_detector(settings: Mapping[str, Any], tensors: Mapping[str, Any]) -> Detector:
    """A detector from a model file's architecture settings and tensors.

    Raises:
        SettingError: they are not those of a detector of ours.
    """
    with refusing_unfit(Detector):
        network = empty_network(settings["network"])
        detector = Detector(network, build_parts(settings["detector"]), settings["classes"])
        detector.outputs_learnt = settings.get("outputs_learnt", True)
        compressed = settings.get("compressed", {})
        compression.put_empty_pairs(detector, compressed, detector.linear_layers.values())
        detector.load_state_dict(from_arrays(tensors))
    return detector.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload, no-any-return]
