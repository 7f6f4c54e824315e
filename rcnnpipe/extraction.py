"""Features of regions: decode, warp, run the network once for all layers, one image after another.

Vocabulary: R regions of an image, K classes, D length of one region's features in a layer.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rcnnpipe.ahead import ahead
from rcnnpipe.datasets.pixels import read_pixels
from rcnnpipe.datasets.records import Record
from rcnnpipe.errors import RcnnpipeError, SettingError
from rcnnpipe.matching import match
from rcnnpipe.models.backbones import Network
from rcnnpipe.models.warp import warp
from rcnnpipe.randomness import generator

_log = logging.getLogger(__name__)
Array = np.ndarray[Any, Any]
Boxes = npt.NDArray[np.float32]
_PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_LARGEST_HALF = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Regions:
    """What to extract from one image: its record and R boxes (R, 4), continuous, original image."""

    record: Record
    boxes: Boxes


@dataclass(frozen=True)
class Extractor:
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
    def __call__(self, image: npt.NDArray[np.uint8], boxes: Boxes) -> dict[str, Tensor]:
        """Features of the regions of one image.

        Args:
            image: (H, W, 3) uint8 RGB.
            boxes: (R, 4).

        Returns:
            layer -> (R, D) float16 on the device, where CUDA may still be computing them.
        """
        pixels = torch.from_numpy(image).to(self.device, non_blocking=True).permute(2, 0, 1)
        outputs: dict[str, list[Tensor]] = {layer: [] for layer in self.layers}
        for first in range(0, len(boxes), self.batch_size):
            batch = torch.from_numpy(boxes[first : first + self.batch_size])
            try:
                with self._arithmetic():
                    network = self.network
                    windows = warp(pixels, batch, network.crop, network.preprocessing)
                    found = network(windows, self.layers)
            except torch.cuda.OutOfMemoryError:
                raise SettingError(
                    f"the GPU has no room for {len(batch)} windows; lower --batch-size"
                ) from None
            for layer, values in found.items():
                flat = values.flatten(1).float()
                outputs[layer].append(flat.clamp(-_LARGEST_HALF, _LARGEST_HALF).half())
        sizes = self.network.layer_sizes
        empty = {layer: pixels.new_empty((0, sizes[layer]), dtype=torch.half) for layer in outputs}
        return {
            layer: torch.cat(parts) if parts else empty[layer] for layer, parts in outputs.items()
        }

    def _arithmetic(self) -> AbstractContextManager[Any]:
        dtype = _PRECISIONS[self.precision]
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)


def extract(
    extractor: Extractor, regions: Iterable[Regions], workers: int
) -> Iterator[tuple[Regions, dict[str, Array]]]:
    """Features of all regions of all images, in order.

    Images are decoded ahead by ``workers`` threads; on CUDA, an image is computed while the one
    before is fetched.

    Yields:
        the regions, and layer -> (R, D) float16.
    """
    computing: tuple[Regions, dict[str, Tensor]] | None = None
    for todo, image in ahead(_decode, regions, workers):
        started = (todo, extractor(image, todo.boxes))
        if extractor.device.type != "cuda":
            yield _fetched(*started)
            continue
        if computing is not None:
            yield _fetched(*computing)
        computing = started
    if computing is not None:
        yield _fetched(*computing)


def _decode(todo: Regions) -> tuple[Regions, npt.NDArray[np.uint8]]:
    return todo, read_pixels(todo.record)


def _fetched(todo: Regions, values: Mapping[str, Tensor]) -> tuple[Regions, dict[str, Array]]:
    found = {layer: tensor.cpu().numpy() for layer, tensor in values.items()}
    for layer, features in found.items():
        if not np.isfinite(features).all():
            raise RcnnpipeError(
                f"layer {layer} of image {todo.record.image_id} holds values that are no numbers; "
                "check the weights, or use --precision fp32"
            )
    return todo, found


def region_columns_of(
    record: Record, labels: Array, proposals: Boxes, classes: int, with_truth: bool = True
) -> dict[str, Array]:
    """The columns of a features file for one image: its objects first, then the proposals.

    Args:
        record: of the image.
        labels: (G,) of its objects as training sees them: -1 marks one to ignore.
        proposals: (P, 4).
        classes: K.
        with_truth: whether the objects themselves are regions too (they are the SVM's positives).
    """
    rows = np.flatnonzero(labels > 0) if with_truth else np.empty(0, np.int64)
    boxes = np.concatenate((record.boxes[rows], proposals)).astype(np.float32)
    found = match(boxes, record.boxes, labels, classes)
    is_truth = np.arange(len(boxes)) < len(rows)
    row_of = np.full(len(labels) + 1, -1)  # object -> row; the last entry serves "no object"
    row_of[rows] = np.arange(len(rows))
    truth = row_of[found.truth]
    # Of two objects in the same place each is itself, whichever the matching prefers.
    truth[: len(rows)] = np.arange(len(rows))
    found.labels[: len(rows)] = labels[rows]
    return {
        "boxes": boxes,
        "is_truth": is_truth,
        "difficult": np.concatenate((record.difficult[rows], np.zeros(len(proposals), bool))),
        "labels": found.labels,
        "overlap": found.overlap,
        "overlaps": found.overlaps,
        "truth": truth,
    }


def mean_norm(norms: Array, offsets: Array, images: int = 200, regions: int = 200) -> float:
    """Mean L2 norm of features over random regions of random images.

    Girshick's ``rcnn_feature_stats.m``: 200 images, 200 regions of each, seed 3. (The generator is
    numpy's, so the draw is not MATLAB's.)

    Args:
        norms: (R,) of all regions.
        offsets: (N + 1,).
        images: how many images at most.
        regions: how many regions of each at most.
    """
    random = generator(3, "feature statistics")
    chosen = random.permutation(len(offsets) - 1)[:images]
    picked = []
    for image in chosen:
        rows = norms[offsets[image] : offsets[image + 1]]
        picked.append(random.permutation(rows)[:regions])
    values = np.concatenate(picked) if picked else np.empty(0)
    return float(values.mean(dtype=np.float64)) if len(values) else 0.0


def bytes_needed(rows: int, layers: Mapping[str, int]) -> int:
    """Bytes of the layers of a features file before compression (float16)."""
    return sum(2 * rows * length for length in layers.values())
