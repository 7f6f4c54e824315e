"""Seconds per image of R-CNN, SPP-net at one scale and at five: the same network and proposals.

Run: ``python -m tests.benchmarks.bench_sppnet [--network zf5] [--images 3] [--regions 2000]``

Weights are drawn: times do not depend on them. Windows for R-CNN take minutes an image on a CPU, so
``--windows`` of an image's regions are timed and the time is scaled up to all of them.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rcnnpipe.datasets import open_dataset
from rcnnpipe.datasets.records import Record
from rcnnpipe.detection import Scorer, SvmScorer, detect_regions
from rcnnpipe.extraction import maps as maps_module
from rcnnpipe.extraction.choice import extractor_for
from rcnnpipe.extraction.maps import POOLED, MapExtractor
from rcnnpipe.extraction.regions import Regions
from rcnnpipe.images import read_image
from rcnnpipe.models.backbones import Network, create_network
from rcnnpipe.models.pyramid import Pyramid
from rcnnpipe.models.pyramid_head import head_for
from rcnnpipe.models.weights import put_on_pyramid
from rcnnpipe.proposals.selective_search import propose
from rcnnpipe.randomness import generator
from tests.realdata import DATA

CLASSES = 20
OPTIONS: dict[str, Any] = {"precision": "fp32", "batch_size": 256}


class Clock:
    """Seconds spent in named functions, the device's included."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._device = device

    def around(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = self._now()
            result = work(*args, **kwargs)
            self.seconds[name] += self._now() - started
            return result

        return timed

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def parts_of(
    extractor: MapExtractor, images: Sequence[Regions], pixels: Sequence[Any], scorer: Scorer
) -> dict[str, float]:
    """Seconds per image of each part of SPP-net, and of the whole."""
    clock = Clock(extractor.device)
    maps: Any = maps_module
    network: Any = extractor.network
    pool, forward = maps.pool_windows, network.forward

    def split(images: Tensor, layers: Sequence[str], **options: Any) -> Any:
        name = "fully connected" if options.get("source") == POOLED else "convolution"
        return clock.around(name, forward)(images, layers, **options)

    network.forward = split
    maps.pool_windows = clock.around("pooling", pool)
    started = time.perf_counter()
    try:
        for image, todo in zip(pixels, images, strict=True):
            found = extractor(image, todo)
            boxes, size = torch.from_numpy(todo.boxes), todo.record.size
            clock.around("SVM and suppression", detect_regions)(
                found, boxes, size, scorer, None, -1.5, 100, 0.3
            )
    finally:
        network.forward, maps.pool_windows = forward, pool
    total = time.perf_counter() - started
    seconds = {name: value / len(images) for name, value in clock.seconds.items()}
    seconds["the rest"] = total / len(images) - sum(seconds.values())
    return seconds | {"total": total / len(images)}


def rcnn(network: Network, images: Sequence[Regions], pixels: Sequence[Any], most: int) -> float:
    """Seconds per image of R-CNN's features, scaled up from ``most`` windows of each image."""
    device = next(network.parameters()).device
    layer = "fc7" if "fc7" in network.layer_names else "avgpool"
    extractor = extractor_for(network, [layer], device, OPTIONS)
    clock = Clock(device)
    total = 0.0
    for image, todo in zip(pixels, images, strict=True):
        some = replace(todo, boxes=todo.boxes[:most])
        clock.seconds.clear()
        clock.around("windows", extractor)(image, some)
        total += clock.seconds["windows"] * len(todo.boxes) / len(some.boxes)
    return total / len(images)


def regions_of(record: Record, count: int) -> Regions:
    boxes = propose(read_image(record.path), generator(0, "bench", record.image_id)).boxes
    return Regions(record, boxes[:count])


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", default="zf5")
    parser.add_argument("--images", type=int, default=3)
    parser.add_argument("--regions", type=int, default=2000)
    parser.add_argument("--windows", type=int, default=256)
    options = parser.parse_args()
    if not DATA.is_dir():
        print(f"skipped: no real data at {DATA}")
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    records = open_dataset(DATA / "coco_person", "val").records[: options.images]
    images = [regions_of(record, options.regions) for record in records]
    pixels = [read_image(record.path) for record in records]
    random = torch.Generator().manual_seed(0)
    plain = create_network(options.network, 21, random)
    network = put_on_pyramid(plain, head_for(options.network, Pyramid()), random).to(device).eval()
    plain = plain.to(device).eval()
    weights = torch.randn(CLASSES, network.architecture.hidden, generator=random) / 50
    scorer = SvmScorer("fc7", weights.to(device), torch.zeros(CLASSES, device=device) - 1, 0.1)
    rows = {}
    for name, scales in {"1 scale": (688,), "5 scales": (480, 576, 688, 864, 1200)}.items():
        extractor = extractor_for(network, ["fc7"], device, OPTIONS | {"scales": scales})
        assert isinstance(extractor, MapExtractor)
        parts_of(extractor, images[:1], pixels[:1], scorer)  # warm
        rows[name] = parts_of(extractor, images, pixels, scorer)
    slow = rcnn(plain, images, pixels, options.windows)
    regions = np.mean([len(todo.boxes) for todo in images])
    print(
        f"{options.network}, {len(images)} photographs, {regions:.0f} regions each, {device}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}\n"
    )
    names = list(rows["1 scale"])
    print("| | " + " | ".join(names) + " | R-CNN over it |")
    print("|---|" + "---:|" * (len(names) + 1))
    for name, row in rows.items():
        cells = " | ".join(f"{row.get(part, 0):.3f}" for part in names)
        print(f"| SPP-net, {name}, s/image | {cells} | {slow / row['total']:.1f} |")
    print(f"\nR-CNN, features alone: {slow:.1f} s/image ({options.windows} windows timed)")


if __name__ == "__main__":
    main()
