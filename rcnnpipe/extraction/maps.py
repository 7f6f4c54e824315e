"""Features of regions from maps of the whole image: one convolutional pass for each scale.

He et al. 2014, section 4.1: each region is taken from the one map on which its size is nearest to
the network's, projected onto cells, pooled by the pyramid, and only then runs through the fully
connected layers.

Vocabulary: R regions of an image, U of them with different cells, C channels, D features.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from rcnnpipe.devices import is_lack_of_memory
from rcnnpipe.errors import SettingError
from rcnnpipe.extraction.regions import Regions, arithmetic, as_stored
from rcnnpipe.models.backbones import Network
from rcnnpipe.models.map_view import MapView
from rcnnpipe.models.projection import (
    MapGeometry,
    choose_scales,
    project,
    resized_size,
    scaled,
)
from rcnnpipe.models.pyramid import pool_windows
from rcnnpipe.randomness import generator

POOLED = "pool5"


@torch.inference_mode()
def layers_behind(
    network: Network, layers: Sequence[str], pooled: Tensor, precision: str, batch_size: int
) -> dict[str, Tensor]:
    """Layer -> (R, D) float16 of regions whose pool5 (R, D) is there, on its device.

    Args:
        network: with a pyramid, in evaluation mode.
        layers: pool5 and what follows it.
        pooled: float; an R of 0 gives empty layers.
        precision: fp32, bf16 or fp16.
        batch_size: regions at once.
    """
    parts: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    with arithmetic(pooled.device, precision):
        for batch in torch.split(pooled, batch_size):
            for layer, values in network(batch, layers, source=POOLED).items():
                parts[layer].append(as_stored(values))
    return {layer: torch.cat(values) for layer, values in parts.items()}


@dataclass(frozen=True)
class MapExtractor:
    """A network with a pyramid that turns regions into features.

    Attributes:
        network: already on ``device``, in evaluation mode.
        layers: names of the layers to return: pool5 and what follows it.
        device: where it computes.
        view: which maps and which cells.
        geometry: of the map that is pooled.
        precision: fp32, or bf16 and fp16 for mixed precision.
        batch_size: regions that run through the fully connected layers at once.
        random_scales: take each region from a random map instead of the nearest: so the authors'
            code draws the regions that fine-tuning learns from.
        seed: of the random scales.
    """

    network: Network
    layers: Sequence[str]
    device: torch.device
    view: MapView
    geometry: MapGeometry
    precision: str = "fp32"
    batch_size: int = 256
    random_scales: bool = False
    seed: int = 0

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Layer -> D."""
        sizes = self.network.layer_sizes
        return {layer: sizes[layer] for layer in self.layers}

    @torch.inference_mode()
    def __call__(self, image: npt.NDArray[np.uint8], todo: Regions) -> dict[str, Tensor]:
        """Features of the regions of one image.

        Args:
            image: (H, W, 3) uint8 RGB.
            todo: its R regions.

        Returns:
            layer -> (R, D) float16; "scale" (R,) int64, which of the view's scales each is taken
            from; "cells" (R, 4) int64 x1 y1 x2 y2 on that scale's map, 0-based, inclusive.
        """
        boxes, shorter = torch.from_numpy(todo.boxes), min(image.shape[:2])
        scales = self._scales(todo, shorter)
        cells = torch.zeros((len(boxes), 4), dtype=torch.int64)
        pixels = torch.from_numpy(image).to(self.device, non_blocking=True).permute(2, 0, 1)
        found = {
            layer: torch.empty((len(boxes), size), dtype=torch.half, device=self.device)
            for layer, size in self.sizes.items()
        }
        for number, scale in enumerate(self.view.scales):
            rows = (scales == number).nonzero().flatten()
            if len(rows) == 0:
                continue
            maps = self._map(pixels, scale, todo)
            windows = scaled(boxes[rows], shorter, scale)
            size = (maps.shape[1], maps.shape[2])
            cells[rows] = project(windows, self.geometry, size, self.view.projection)
            # Neighbouring regions often have the same cells, and then the same features.
            different, of_row = torch.unique(cells[rows], dim=0, return_inverse=True)
            rows, of_row = rows.to(self.device), of_row.to(self.device)
            for layer, values in self._features(maps, different):
                found[layer][rows] = values[of_row]
        return found | {"scale": scales, "cells": cells}

    def _scales(self, todo: Regions, shorter: int) -> Tensor:
        """Which scale each region (R,) is taken from."""
        if self.random_scales:
            random = generator(self.seed, "scale of a region", todo.record.image_id)
            return torch.from_numpy(random.integers(len(self.view.scales), size=len(todo.boxes)))
        boxes, view = torch.from_numpy(todo.boxes), self.view
        return choose_scales(boxes, shorter, view.scales, view.reference, view.choice)

    def _map(self, pixels: Tensor, scale: int, todo: Regions) -> Tensor:
        """The map (C, H', W') of an image (3, H, W) whose shorter side is scaled."""
        size = resized_size((pixels.shape[1], pixels.shape[2]), scale)
        preprocessing, head = self.network.preprocessing, self.network.head
        assert head is not None
        try:
            resized = interpolate(pixels[None].float(), size, mode="bilinear")
            prepared = preprocessing.apply(resized)
            if preprocessing.mean_image is not None:  # appendix A: warped to the input's size
                mean = (preprocessing.mean_image / preprocessing.std.view(3, 1, 1))[None]
                prepared -= interpolate(mean.to(prepared), size, mode="bilinear")
            with arithmetic(self.device, self.precision):
                maps: Tensor = self.network(prepared, (head.map,))[head.map]
        except (RuntimeError, MemoryError, TypeError) as error:
            raise self._explained(error, size, todo) from error
        return maps[0]

    def _explained(
        self, error: BaseException, size: tuple[int, int], todo: Regions
    ) -> BaseException:
        """Why an image could not be passed through the convolutions, as one sentence."""
        where = f"image '{todo.record.image_id}', scaled to {size[1]} x {size[0]} pixels,"
        if is_lack_of_memory(error):
            return SettingError(f"{where} does not fit into the memory; lower --scales")
        if "size" in str(error).lower():
            return SettingError(
                f"{where} is too small for {self.network.name}, whose map would have no cells; "
                "raise --scales"
            )
        return error

    def _features(self, maps: Tensor, cells: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Layer and its values (U, D) of windows (U, 4) of one map."""
        assert self.network.head is not None
        pyramid = self.network.head.pyramid
        pooled = pool_windows(maps, cells.to(self.device), pyramid.levels) * pyramid.scale
        found = layers_behind(*(self.network, self.layers, pooled, self.precision, self.batch_size))
        yield from found.items()
