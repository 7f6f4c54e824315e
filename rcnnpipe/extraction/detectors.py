"""Features and outputs of regions by a detector: maps once for each scale, pooled for all regions.

Girshick 2015, sections 2.1 and 2.4. Vocabulary: R regions of an image, D values of a layer.
"""

from collections.abc import Sequence
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
    """

    detector: Detector
    layers: Sequence[str]
    device: torch.device
    view: ImageView
    precision: str = "fp32"
    batch_size: int = 2000
    stored: bool = True
    proposals: ProposalRules | None = None

    @torch.inference_mode()
    def __call__(self, image: npt.NDArray[np.uint8], todo: Regions) -> dict[str, Tensor]:
        """Layer -> (R, D) on the device of the regions of an image (H, W, 3).

        Where they are found here, also "boxes" (R, 4) and "scores" (R, 1) of the RPN, best first
        at each scale.
        """
        pixels = torch.from_numpy(image).to(self.device, non_blocking=True).permute(2, 0, 1)
        if self.proposals is not None:
            return self._found(pixels, todo, self.proposals)
        boxes = torch.from_numpy(todo.boxes)
        size = (image.shape[0], image.shape[1])
        scales = [self.view.scale_of(size, shorter) for shorter in self.view.scales]
        reference = _REFERENCE * window_factor(self.detector.network.architecture.input_size)
        sides = [scale * min(size) for scale in scales]
        chosen = choose_scales(boxes, min(size), sides, reference, "nearest-area")
        found: dict[str, Tensor] = {}
        for number, scale in enumerate(scales):
            rows = (chosen == number).nonzero().flatten()
            if len(rows) == 0:
                continue
            maps = self._maps(pixels, scale, todo)
            for part in torch.split(rows, self.batch_size):
                factors = self.view.factors(size, scale)
                for layer, values in self._regions(maps, boxes[part], factors).items():
                    if layer not in found:
                        found[layer] = values.new_empty((len(boxes), values.shape[1]))
                    found[layer][part.to(self.device)] = values
        if not found:  # no regions
            dtype = torch.half if self.stored else torch.float
            sizes = self.detector.layer_sizes
            found = {x: pixels.new_empty((0, sizes[x]), dtype=dtype) for x in self.layers}
        return {layer: found[layer] for layer in self.layers}

    def _found(self, pixels: Tensor, todo: Regions, rules: ProposalRules) -> dict[str, Tensor]:
        """Regions found at every scale, with their layers; those of all scales together."""
        scales = [self._found_at(shorter, pixels, todo, rules) for shorter in self.view.scales]
        return {name: torch.cat([one[name] for one in scales]) for name in scales[0]}

    def _found_at(
        self, shorter: int, pixels: Tensor, todo: Regions, rules: ProposalRules
    ) -> dict[str, Tensor]:
        """Regions found on the maps that they are then pooled from, with their layers."""
        original = (pixels.shape[1], pixels.shape[2])
        scale = self.view.scale_of(original, shorter)
        maps = self._maps(pixels, scale, todo)
        size, factors = self.view.resized_size(original, scale), self.view.factors(original, scale)
        with arithmetic(self.device, self.precision):
            found = self.detector.find_regions(maps, [size], [factors], rules)
        ((boxes, scores),) = found.proposals
        boxes, left = cut(boxes, original)  # rounding may have taken them over the border
        boxes = boxes[left]
        values = {"boxes": boxes, "scores": scores[left, None]}
        parts = [
            self._regions(maps, part, factors) for part in torch.split(boxes, self.batch_size or 1)
        ]
        for layer in self.layers:
            values[layer] = torch.cat([part[layer] for part in parts])
        return values

    def _maps(self, pixels: Tensor, scale: float, todo: Regions) -> list[Tensor]:
        size = self.view.resized_size((pixels.shape[1], pixels.shape[2]), scale)
        try:
            resized = resize(self.detector.network.preprocessing.apply(pixels), size)
            with arithmetic(self.device, self.precision):
                return self.detector.maps(to_batch([resized], self.view.multiple))
        except (RuntimeError, MemoryError) as error:
            if not is_lack_of_memory(error):
                raise
            raise SettingError(
                f"image '{todo.record.image_id}', scaled to {size[1]} x {size[0]} pixels, does not "
                "fit into the memory; lower --scales"
            ) from error
        except SettingError as error:
            raise SettingError(f"image '{todo.record.image_id}': {error}") from error

    def _regions(
        self, maps: list[Tensor], boxes: Tensor, factors: tuple[float, float]
    ) -> dict[str, Tensor]:
        with arithmetic(self.device, self.precision):
            pooled = self.detector.pool(maps, [boxes], [factors])
            found = self.detector.behind(pooled, self.layers)
        if "deltas" in found:
            found["deltas"] = self.detector.scaled_deltas(found["deltas"].float()).flatten(1)
        return {
            layer: as_stored(values) if self.stored else values.flatten(1).float()
            for layer, values in found.items()
        }
