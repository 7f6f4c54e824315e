"""Features of regions from windows: each is warped to the network's input size and runs through it.

Girshick et al. 2014, section 2.1. Vocabulary: R regions of an image, D features of a layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rcnnpipe.errors import SettingError
from rcnnpipe.extraction.regions import Regions, arithmetic, as_stored
from rcnnpipe.models.backbones import Network
from rcnnpipe.models.warp import warp


@dataclass(frozen=True)
class WindowExtractor:
    """A network that turns windows into features.

    Attributes:
        network: already on ``device``, in evaluation mode.
        layers: names of the layers to return.
        device: where it computes.
        precision: fp32, or bf16 and fp16 for mixed precision.
        batch_size: windows at once (Girshick's code takes 256); batches do not span images, so that
            the result of an image depends on nothing else.
    """

    network: Network
    layers: Sequence[str]
    device: torch.device
    precision: str = "fp32"
    batch_size: int = 256

    @torch.inference_mode()
    def __call__(self, image: npt.NDArray[np.uint8], todo: Regions) -> dict[str, Tensor]:
        """Layer -> (R, D) float16 on the device of the regions of an image (H, W, 3)."""
        pixels = torch.from_numpy(image).to(self.device, non_blocking=True).permute(2, 0, 1)
        outputs: dict[str, list[Tensor]] = {layer: [] for layer in self.layers}
        network = self.network
        for first in range(0, len(todo.boxes), self.batch_size):
            batch = torch.from_numpy(todo.boxes[first : first + self.batch_size])
            try:
                with arithmetic(self.device, self.precision):
                    windows = warp(pixels, batch, network.crop, network.preprocessing)
                    found = network(windows, self.layers)
            except torch.cuda.OutOfMemoryError:
                raise SettingError(
                    f"the GPU has no room for {len(batch)} windows; lower --batch-size"
                ) from None
            for layer, values in found.items():
                outputs[layer].append(as_stored(values))
        if len(todo.boxes) == 0:
            sizes = network.layer_sizes
            return {x: pixels.new_empty((0, sizes[x]), dtype=torch.half) for x in self.layers}
        return {layer: torch.cat(parts) for layer, parts in outputs.items()}
