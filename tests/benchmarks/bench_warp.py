"""Warping against the networks it feeds: ``python -m tests.benchmarks.bench_warp``.

Regions have the sizes of proposals: log-uniform sides between 20 pixels and the whole image. "peer"
is the loop a user would write, one crop, ``interpolate`` and paste for each box. The last column is
the share of the network's time that warping adds.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from rcnnpipe.models.backbones import create_network
from rcnnpipe.models.warp import Crop, crop_geometry, paste_by_grid, warp
from tests.reference.warp import warp_one

NETWORKS = {"alexnet": 64, "caffenet": 64, "squeezenet": 32, "resnet18": 32, "demo": 512}
IMAGE = (375, 500)


def seconds(work: Callable[[], object], repeat: int = 3) -> float:
    work()
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def proposals(count: int) -> Tensor:
    random = np.random.default_rng(0)
    limit = np.array([IMAGE[1], IMAGE[0]])
    sides = 20 * (limit / 20) ** random.random((count, 2))
    low = random.random((count, 2)) * (limit - sides)
    return torch.from_numpy(np.concatenate((low, low + sides), 1))


def peer(image: Tensor, boxes: Tensor, crop: Crop) -> Tensor:
    mean = torch.zeros(3, crop.size, crop.size)
    return torch.stack(
        [
            warp_one(image, (x1 + 1, y1 + 1, x2, y2), mean, size=crop.size, padding=crop.padding)
            for x1, y1, x2, y2 in boxes.tolist()
        ]
    )


def main() -> None:
    random = np.random.default_rng(1)
    image = torch.from_numpy(random.integers(0, 256, (3, *IMAGE), dtype=np.uint8))
    print(f"{torch.get_num_threads()} threads for networks and grid_sample, 1 for warp and peer")
    print("network      warp/s  grid_sample/s  peer/s  forward/s  warp adds")
    for name, batch in NETWORKS.items():
        ours, grid, loop, forward = (batch / one for one in measure(name, batch, image))
        share = f"{100 * forward / ours:.1f} %"
        print(f"{name:<11} {ours:7.0f} {grid:14.0f} {loop:7.0f} {forward:10.0f} {share:>10}")


def measure(name: str, batch: int, image: Tensor) -> tuple[float, float, float, float]:
    """Seconds of warp, grid_sample, peer and network for one batch."""
    network = create_network(name, generator=torch.Generator().manual_seed(0))
    boxes, crop = proposals(batch), network.crop
    pixels = network.preprocessing.apply(image)
    geometry = crop_geometry(boxes, IMAGE, crop)
    windows = warp(image, boxes, crop, network.preprocessing)
    with torch.inference_mode():
        return (
            seconds(lambda: warp(image, boxes, crop, network.preprocessing)),
            seconds(lambda: paste_by_grid(pixels, geometry, None, crop.size)),
            seconds(lambda: peer(image, boxes, crop), 1),
            seconds(lambda: network.logits(windows)),
        )


if __name__ == "__main__":
    main()
