"""torchvision's Faster R-CNN by our stages: ``python -m tests.benchmarks.bench_torchvision``.

A ``fasterrcnn_resnet50_fpn`` with random weights goes through ``rcnnpipe import`` and ``rcnnpipe
detect`` on photographs (``--images N`` of them). Printed are how far the detections differ, how far
torchvision's own differ between float32 and float64 (``--double``), and the seconds an image of
both, decoding with them and on the same threads.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from click.testing import CliRunner
from PIL import Image
from torchvision.models.detection import FasterRCNN, fasterrcnn_resnet50_fpn

from rcnnpipe.artifacts.detections import read_detections
from rcnnpipe.cli import main as command_line
from rcnnpipe.export.agreement import Detections, differences
from rcnnpipe.ragged import rows_of
from tests.realdata import DATA
from tests.torchvision_made import make_loud

CLASSES = "ace,king,queen,jack,ten,nine"
OPTIONS = "--score-threshold .05 --nms-overlap .5 --max-per-image 0 --max-per-set 0"


def run(*words: object) -> None:
    result = CliRunner().invoke(command_line, [str(word) for word in words])
    assert result.exit_code == 0, result.output


def model_of(seed: int = 0) -> FasterRCNN:
    torch.manual_seed(seed)
    model = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=7)
    make_loud(model, seed)
    return model.eval()


@torch.inference_mode()
def theirs(
    model: FasterRCNN, paths: Sequence[Path], dtype: torch.dtype
) -> tuple[list[Detections], float]:
    """Detections of each image, and seconds of all."""
    model.to(dtype)
    found: list[Detections] = []
    started = time.perf_counter()
    for path in paths:
        with Image.open(path) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        (one,) = model([pixels.to(dtype) / 255])
        found.append({name: value.numpy() for name, value in one.items()})
    return found, time.perf_counter() - started


def ours(model: FasterRCNN, paths: Sequence[Path], folder: Path) -> tuple[list[Detections], float]:
    """The same by the stages."""
    torch.save(model.state_dict(), folder / "w.pth")
    run("import", folder / "w.pth", "--classes", CLASSES, "--out", folder / "m.h5")
    images = folder / "images"
    images.mkdir()
    for number, path in enumerate(paths):
        shutil.copyfile(path, images / f"{number:04}{path.suffix}")
    started = time.perf_counter()
    words = ("--max-detections", 100, "--device", "cpu", "--workers", 1, *OPTIONS.split())
    run("detect", images, "--model", folder / "m.h5", "--out", folder / "d.h5", *words)
    seconds = time.perf_counter() - started
    stored = read_detections(folder / "d.h5")
    columns = {name: getattr(stored, name) for name in ("boxes", "scores", "labels")}
    numbers = [stored.image_ids.index(f"{number:04}") for number in range(len(paths))]
    rows = [rows_of(stored.offsets, number) for number in numbers]
    return [{name: column[own] for name, column in columns.items()} for own in rows], seconds


def compare(what: str, first: Sequence[Detections], second: Sequence[Detections]) -> None:
    boxes, scores, alone = zip(*map(differences, first, second), strict=True)
    total = sum(len(one["scores"]) for one in (*first, *second))
    print(
        f"{what}: boxes within {max(boxes):.2g} px, scores within {max(scores):.2g}, "
        f"{sum(alone)} of {total} detections without a partner"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--double", action="store_true")
    options = parser.parse_args()
    paths = sorted((DATA / "playing_cards" / "JPEGImages").glob("*.jpg"))[: options.images]
    if not paths:
        raise SystemExit(f"no photographs in {DATA}/playing_cards; set RCNNPIPE_REALDATA")
    model = model_of()
    expected, their_seconds = theirs(model, paths, torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        found, our_seconds = ours(model, paths, Path(folder))
    compare("ours and torchvision's", found, expected)
    if options.double:
        compare("torchvision's in 32 and 64 bits", expected, theirs(model, paths, torch.float64)[0])
    count = len(paths)
    print(
        f"{count} images, {torch.get_num_threads()} threads: {our_seconds / count:.2f} s an image, "
        f"torchvision {their_seconds / count:.2f} s"
    )


if __name__ == "__main__":
    main()
