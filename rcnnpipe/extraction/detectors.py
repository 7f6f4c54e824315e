"""Features and outputs of regions by a detector: maps once for each scale, pooled for all regions.

Girshick 2015, sections 2.1 and 2.4. Vocabulary: R regions of an image, D values of a layer.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rcnnpipe.boxes import cut
from rcnnpipe.devices import is_lack_of_memory
from rcnnpipe.errors import SettingError
from rcnnpipe.extraction.regions import Regions, arithmetic, as_stored
from rcnnpipe.models.detector import Detector
from rcnnpipe.models.image_view import ImageView, resize, to_batch
from rcnnpipe.models.projection import choose_scales
from rcnnpipe.models.rpn import ProposalRules
from rcnnpipe.systems.fast import window_factor

_REFERENCE = 224  # lib/fast_rcnn/test.py: of several scales, the one nearest to this window; or
# to one as many times smaller as the network's windows are, like the scales themselves


@dataclass(frozen=True)
class DetectorExtractor:
    """A detector that turns regions into features, scores and deltas.

    Attributes:
        detector: already on ``device``, in evaluation mode.
        layers: names out of its ``layer_names``.
        device: where it computes.
        view: how images become its input; of several scales each given region takes one, and
            regions are found at every one.
        precision: fp32, or bf16 and fp16 for mixed precision.
        batch_size: regions that run through the head at once.
        stored: give float16, as files have it; else float32.
        proposals: find regions by the RPN first, by these rules, instead of taking those given.
        images: of one size, whose maps are computed at once, at most.
    """

    detector: Detector
    layers: Sequence[str]
    device: torch.device
    view: ImageView
    precision: str = "fp32"
    batch_size: int = 2000
    stored: bool = True
    proposals: ProposalRules | None = None
    images: int = 1

    @torch.inference_mode()
    def __call__(self, image: npt.NDArray[np.uint8], todo: Regions) -> dict[str, Tensor]:
        """Layer -> (R, D) on the device of the regions of an image (H, W, 3).

        Where they are found here, also "boxes" (R, 4) and "scores" (R, 1) of the RPN, best first
        at each scale.
        """
        return self.several([image], [todo])[0]

    @torch.inference_mode()
    def several(
        self, images: Sequence[npt.NDArray[np.uint8]], todo: Sequence[Regions]
    ) -> list[dict[str, Tensor]]:
        """The same of one or more images of one size, whose maps are computed at once."""
        pixels = [
            torch.from_numpy(image).to(self.device, non_blocking=True).permute(2, 0, 1)
            for image in images
        ]
        if self.proposals is not None:
            return self._found(pixels, todo, self.proposals)
        return self._given(pixels, todo)

    def _given(self, pixels: Sequence[Tensor], todo: Sequence[Regions]) -> list[dict[str, Tensor]]:
        """Layers of given regions, each at the scale that suits it."""
        size = (pixels[0].shape[1], pixels[0].shape[2])
        scales = [self.view.scale_of(size, shorter) for shorter in self.view.scales]
        reference = _REFERENCE * window_factor(self.detector.network.architecture.input_size)
        sides = [scale * min(size) for scale in scales]
        boxes = [torch.from_numpy(one.boxes) for one in todo]
        chosen = [choose_scales(own, min(size), sides, reference, "nearest-area") for own in boxes]
        found: list[dict[str, Tensor]] = [{} for _ in todo]
        for number, scale in enumerate(scales):
            rows = [(own == number).nonzero().flatten() for own in chosen]
            some = [place for place, own in enumerate(rows) if len(own)]
            if not some:
                continue
            maps = self._maps([pixels[place] for place in some], scale, [todo[i] for i in some])
            factors = self.view.factors(size, scale)
            for place, own_maps in zip(some, _of_each(maps), strict=True):
                for part in torch.split(rows[place], self.batch_size):
                    layers = self._regions(own_maps, boxes[place][part], factors)
                    for layer, values in layers.items():
                        if layer not in found[place]:
                            shape = (len(boxes[place]), values.shape[1])
                            found[place][layer] = values.new_empty(shape)
                        found[place][layer][part.to(self.device)] = values
        whole = (own or self._nothing() for own in found)
        return [{layer: own[layer] for layer in self.layers} for own in whole]

    def _nothing(self) -> dict[str, Tensor]:
        """Layers (0, D) of an image without regions."""
        dtype = torch.half if self.stored else torch.float
        sizes = self.detector.layer_sizes
        return {
            layer: torch.empty((0, sizes[layer]), dtype=dtype, device=self.device)
            for layer in self.layers
        }

    def _found(
        self, pixels: Sequence[Tensor], todo: Sequence[Regions], rules: ProposalRules
    ) -> list[dict[str, Tensor]]:
        """Regions found at every scale, with their layers; those of all scales together."""
        scales = [self._found_at(shorter, pixels, todo, rules) for shorter in self.view.scales]
        return [
            {name: torch.cat([one[name] for one in own]) for name in own[0]}
            for own in zip(*scales, strict=True)
        ]

    def _found_at(
        self, shorter: int, pixels: Sequence[Tensor], todo: Sequence[Regions], rules: ProposalRules
    ) -> list[dict[str, Tensor]]:
        """Regions found on the maps that they are then pooled from, with their layers."""
        original = (pixels[0].shape[1], pixels[0].shape[2])
        scale = self.view.scale_of(original, shorter)
        maps = self._maps(pixels, scale, todo)
        size, factors = self.view.resized_size(original, scale), self.view.factors(original, scale)
        count = len(pixels)
        with _enough_memory(_named(todo, size)), arithmetic(self.device, self.precision):
            found = self.detector.find_regions(maps, [size] * count, [factors] * count, rules)
        all_values = []
        for own_maps, (boxes, scores) in zip(_of_each(maps), found.proposals, strict=True):
            boxes, left = cut(boxes, original)  # rounding may have taken them over the border
            boxes = boxes[left]
            values = {"boxes": boxes, "scores": scores[left, None]}
            parts = [
                self._regions(own_maps, part, factors)
                for part in torch.split(boxes, self.batch_size or 1)
            ]
            for layer in self.layers:
                values[layer] = torch.cat([part[layer] for part in parts])
            all_values.append(values)
        return all_values

    def _maps(
        self, pixels: Sequence[Tensor], scale: float, todo: Sequence[Regions]
    ) -> list[Tensor]:
        """Maps [(N, C, H, W)] of N images of one size."""
        size = self.view.resized_size((pixels[0].shape[1], pixels[0].shape[2]), scale)
        apply = self.detector.network.preprocessing.apply
        with _enough_memory(_named(todo, size)):
            resized = [resize(apply(one), size) for one in pixels]
            with arithmetic(self.device, self.precision):
                return self.detector.maps(to_batch(resized, self.view.multiple))

    def _regions(
        self, maps: list[Tensor], boxes: Tensor, factors: tuple[float, float]
    ) -> dict[str, Tensor]:
        told = f"{len(boxes)} regions at once do not fit into the memory; lower --batch-size"
        with _enough_memory(told), arithmetic(self.device, self.precision):
            pooled = self.detector.pool(maps, [boxes], [factors])
            found = self.detector.behind(pooled, self.layers)
        if "deltas" in found:
            found["deltas"] = self.detector.scaled_deltas(found["deltas"].float()).flatten(1)
        return {
            layer: as_stored(values) if self.stored else values.flatten(1).float()
            for layer, values in found.items()
        }


def _named(todo: Sequence[Regions], size: tuple[int, int]) -> str:
    """That images, scaled to (height, width), are too large, and what to do."""
    names = ", ".join(f"'{one.record.image_id}'" for one in todo)
    scaled = f"scaled to {size[1]} x {size[0]} pixels"
    if len(todo) == 1:
        return f"image {names}, {scaled}, does not fit into the memory; lower --scales"
    return (
        f"images {names} together, {scaled}, do not fit into the memory; lower --images or --scales"
    )


@contextmanager
def _enough_memory(told: str) -> Iterator[None]:
    """Say so where it is not; :func:`resize` notices it itself."""
    try:
        yield
    except (RuntimeError, MemoryError, SettingError) as error:
        if not isinstance(error, SettingError) and not is_lack_of_memory(error):
            raise
        raise SettingError(told) from error


def _of_each(maps: Sequence[Tensor]) -> list[list[Tensor]]:
    """Maps [(N, C, H, W)] of N images as [(1, C, H, W)] of each."""
    return [[one[n : n + 1] for one in maps] for n in range(len(maps[0]))]
