"""extract-features beside the bare network: regions per second of the whole stage over its limit.

Run with ``python -m tests.benchmarks.bench_extract [--network NAME] [--images N] [--regions N]``.
Three figures of one run: the network alone on one ready batch of the same size (the limit), a loop
that crops and resizes each region with PIL and runs the network (what one would write by hand), and
the stage itself, from image files to a compressed HDF5 file.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rcnnpipe.artifacts import proposals as proposals_file
from rcnnpipe.artifacts.model import write_model
from rcnnpipe.artifacts.rows import RowWriter
from rcnnpipe.artifacts.store import make_header
from rcnnpipe.cli import main as rcnnpipe
from rcnnpipe.datasets import Dataset, open_dataset
from rcnnpipe.images import read_image
from rcnnpipe.models.backbones import Network, create_network
from tests.realdata import DATA


def random_proposals(path: Path, dataset: Dataset, each: int) -> None:
    """A proposals file of random boxes, the same number for each image."""
    header = make_header(
        "proposals", stage="bench", version=1, settings={}, inputs={"data": dataset}, classes=()
    )
    sizes = np.array([record.size for record in dataset.records])
    random = np.random.default_rng(0)
    with RowWriter(path, header, proposals_file.COLUMNS, dataset.image_ids, sizes) as writer:
        for height, width in sizes:
            low = random.random((each, 2)) * 0.6
            high = low + 0.1 + random.random((each, 2)) * 0.3
            boxes = np.concatenate((low, high), axis=1) * [width, height, width, height]
            writer.append({"boxes": boxes.astype(np.float32), "scores": np.zeros(each)})
        writer.finish()


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of some work, the device's included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


@torch.inference_mode()
def bare(network: Network, device: torch.device, batch: int, repeats: int) -> float:
    """Regions per second of the network alone, on a batch that lies ready."""
    size = network.crop.size
    windows = torch.rand(batch, 3, size, size, device=device)
    network(windows, ["pool5"])
    work = lambda: [network(windows, [network.layer_names[-2]]) for _ in range(repeats)]  # noqa: E731
    return batch * repeats / seconds_of(work, device)


@torch.inference_mode()
def by_hand(network: Network, device: torch.device, dataset: Dataset, each: int) -> float:
    """Regions per second of a loop over regions: crop, resize, stack, forward."""
    size = network.crop.size
    random = np.random.default_rng(0)

    def work() -> None:
        for record in dataset.records:
            image = Image.fromarray(read_image(record.path))
            crops = []
            for _ in range(each):
                x, y = random.random(2) * 0.6 * np.array(image.size)
                w, h = np.maximum(random.random(2) * 0.3 * np.array(image.size), 8)
                crop = image.crop((int(x), int(y), int(x + w), int(y + h))).resize((size, size))
                crops.append(torch.from_numpy(np.array(crop)).permute(2, 0, 1).float() / 255)
            network(torch.stack(crops).to(device), [network.layer_names[-2]])

    return each * len(dataset.records) / seconds_of(work, device)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", default="demo")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--regions", type=int, default=256)
    options = parser.parse_args()
    if not DATA.is_dir():
        print(f"skipped: no real data at {DATA}")
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = create_network(options.network, 21, torch.Generator().manual_seed(0)).to(device)
    layer = network.layer_names[-2]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = open_dataset(DATA / "raccoon", "val")
        dataset = Dataset("raccoon", dataset.classes, dataset.records[: options.images], "val")
        (folder / "list").mkdir()
        for record in dataset.records:
            shutil.copy(record.path, folder / "list")
        plain = open_dataset(folder / "list")
        random_proposals(folder / "p.h5", plain, options.regions)
        header = make_header(
            "model", stage="bench", version=1, settings={}, inputs={}, classes=dataset.classes
        )
        write_model(folder / "m.h5", header, network.settings(), network.tensors())
        arguments = ["extract-features", folder / "list", "--proposals", folder / "p.h5", "-q"]
        arguments += ["--model", folder / "m.h5", "--layers", layer, "--no-truth"]

        def stage(out: str) -> None:
            rcnnpipe([*map(str, arguments), "--out", str(folder / out)], standalone_mode=False)

        stage("warm.h5")
        regions = options.regions * len(dataset.records)
        rate = regions / seconds_of(lambda: stage("f.h5"), device)
        loop = by_hand(network, device, dataset, options.regions)
        limit = bare(network, device, options.regions, len(dataset.records))
        size = (folder / "f.h5").stat().st_size / 2**20
    print(
        f"{options.network}, layer {layer}, {device}, torch {torch.__version__}, {regions} regions"
    )
    print("| | regions/s | of the bare network |")
    print("|---|---|---|")
    print(f"| bare network | {limit:.1f} | 1 |")
    print(f"| extract-features ({size:.1f} MiB written) | {rate:.1f} | {rate / limit:.2f} |")
    print(f"| crop, resize, forward | {loop:.1f} | {loop / limit:.2f} |")


if __name__ == "__main__":
    main()
