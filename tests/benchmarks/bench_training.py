"""Training against torchvision's reference recipe: ``python -m tests.benchmarks.bench_training``.

``rcnnpipe finetune --system fpn`` and torchvision's Faster R-CNN with a feature pyramid learn from
the same photographs and weights: as many steps of the same images, sizes, proposals and regions,
SGD with warm-up and one step down (``references/detection/train.py``). Both are judged by
``rcnnpipe evaluate``. With --same-start every first value is torchvision's very own, by ``rcnnpipe
import``; then only which regions are sampled differs. Printed are the average precision of both,
and seconds of training and of an image.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from click.testing import CliRunner
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from rcnnpipe.cli import main as command_line
from rcnnpipe.datasets import open_dataset
from rcnnpipe.datasets.records import Dataset
from rcnnpipe.images import read_image
from rcnnpipe.training.image_batches import draw_images
from rcnnpipe.training.schedules import steps, warmed_up
from tests.realdata import DATA

IMAGES, REGIONS, PROPOSALS = 2, 128, 500  # of a step, of an image, of an image in training
FOUND = 300  # proposals of an image that is looked at
DECAY, MOMENTUM = 1e-4, 0.9


def run(*words: object) -> str:
    result = CliRunner().invoke(command_line, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.stdout


def model_of(weights: Path, side: int, classes: int, seed: int) -> FasterRCNN:
    """As ``fasterrcnn_resnet50_fpn``, on ResNet-18 with ImageNet's weights."""
    torch.manual_seed(seed)
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=3)
    with np.load(weights) as values:
        given = {name: torch.from_numpy(values[name]) for name in values.files}
    known = backbone.body.state_dict()
    backbone.body.load_state_dict({name: given[name] for name in known})
    return FasterRCNN(
        backbone,
        num_classes=classes,
        min_size=side,
        max_size=5 * side // 3,
        rpn_pre_nms_top_n_train=PROPOSALS,
        rpn_post_nms_top_n_train=PROPOSALS,
        rpn_pre_nms_top_n_test=FOUND,
        rpn_post_nms_top_n_test=FOUND,
        box_batch_size_per_image=REGIONS,
        box_score_thresh=0.001,
        box_nms_thresh=0.3,
    )


def train_theirs(model: FasterRCNN, dataset: Dataset, options: argparse.Namespace) -> None:
    """The reference's loop, without mirroring."""
    model.train()
    learnt = [values for values in model.parameters() if values.requires_grad]
    optimizer = torch.optim.SGD(learnt, lr=options.lr, momentum=MOMENTUM, weight_decay=DECAY)
    rates = warmed_up(steps(options.lr, options.step, 0.1), options.warm_up)
    for iteration in range(options.iterations):
        drawn = draw_images(len(dataset.records), IMAGES, False, options.seed, iteration)
        optimizer.param_groups[0]["lr"] = rates(iteration)
        records = [dataset.records[number] for number, _ in drawn]
        images = [pixels_of(record.path) for record in records]
        truths = [
            {
                "boxes": torch.from_numpy(record.boxes).float(),
                "labels": torch.from_numpy(record.labels),
            }
            for record in records
        ]
        losses = torch.stack(list(model(images, truths).values())).sum()
        optimizer.zero_grad()
        losses.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def pixels_of(path: Path) -> torch.Tensor:
    return torch.from_numpy(read_image(path)).permute(2, 0, 1) / 255


@torch.inference_mode()
def detect_theirs(model: FasterRCNN, dataset: Dataset, out: Path) -> None:
    """COCO's result file, which ``rcnnpipe evaluate`` judges."""
    model.eval()
    found: list[dict[str, Any]] = []
    for record in dataset.records:
        (one,) = model([pixels_of(record.path)])
        boxes = one["boxes"].clone()
        boxes[:, 2:] -= boxes[:, :2]
        rows = zip(boxes.tolist(), one["scores"].tolist(), one["labels"].tolist(), strict=True)
        found += [
            {"image_id": record.image_id, "category_id": label, "bbox": box, "score": score}
            for box, score, label in rows
        ]
    out.write_text(json.dumps(found))


def judge(results: Path, data: Path, folder: Path) -> str:
    words = ("--data", data, "--split", "val", "--json", "--out", folder / "scores")
    figures = json.loads(run("evaluate", results, *words))
    return ", ".join(f"{name} {100 * figures[name]:.1f}" for name in ("ap", "ap50", "ap75"))


def ours(options: argparse.Namespace, data: Path, folder: Path) -> tuple[float, float, str]:
    """Seconds of training and of detection, and average precision."""
    model, found, cpu = folder / "m.h5", folder / "d.h5", ("--device", "cpu", "--workers", 1)
    words, init = f"--train-from layer2 --scales {options.side}", options.weights
    if options.same_start:
        init = start_of(options, data, folder)
    else:
        words += f" --network resnet18 --pooling align --first-values {options.first_values}"
    words += f" --images {IMAGES} --batch-size {IMAGES * REGIONS}"
    words += f" --foreground {IMAGES * REGIONS // 4} --pre-nms {PROPOSALS} --post-nms {PROPOSALS}"
    words += f" --lr {options.lr} --iterations {options.iterations} --step {options.step}"
    words += f" --warm-up {options.warm_up} --no-mirror --box-beta {options.box_beta}"
    words += f" --seed {options.seed} --longest {5 * options.side // 3}"
    started = time.perf_counter()
    learn = ("finetune", data, "--split", "train", "--system", "fpn", "--init", init)
    run(*learn, *words.split(), *cpu, "--out", model)
    trained = time.perf_counter()
    caps: tuple[object, ...] = ("--max-per-image", 0, "--max-per-set", 0, "--max-detections", 100)
    caps += ("--max-proposals", FOUND)
    look = ("detect", data, "--split", "val", "--model", model, "--score-threshold", 0.001)
    run(*look, *caps, *cpu, "--out", found)
    detected = time.perf_counter()
    return trained - started, detected - trained, judge(found, data, folder)


def start_of(options: argparse.Namespace, data: Path, folder: Path) -> Path:
    """torchvision's first values as a model file."""
    classes = open_dataset(data, "train").classes
    model = model_of(options.weights, options.side, len(classes), options.seed)
    torch.save(model.state_dict(), folder / "start.pth")
    names = ("--classes", ",".join(classes[1:]), "--epsilon", 1e-5)
    words = ("--network", "resnet18", *names, "--out", folder / "start.h5")
    run("import", folder / "start.pth", *words)
    return folder / "start.h5"


def theirs(options: argparse.Namespace, data: Path, folder: Path) -> tuple[float, float, str]:
    """The same of torchvision's."""
    dataset, held = open_dataset(data, "train"), open_dataset(data, "val")
    model = model_of(options.weights, options.side, len(dataset.classes), options.seed)
    started = time.perf_counter()
    train_theirs(model, dataset, options)
    trained = time.perf_counter()
    detect_theirs(model, held, folder / "found.json")
    detected = time.perf_counter()
    return trained - started, detected - trained, judge(folder / "found.json", data, folder)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="playing_cards")
    parser.add_argument("--side", type=int, default=240, help="pixels of the shorter side")
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--step", type=int, default=225)
    parser.add_argument("--warm-up", type=int, default=50)
    parser.add_argument("--lr", type=float, default=0.005)
    parser.add_argument("--box-beta", type=float, default=1 / 9, help="torchvision's, or 1")
    parser.add_argument(
        "--first-values", default="paper", help="of our layers of regions, or torchvision"
    )
    parser.add_argument("--same-start", action="store_true", help="from torchvision's very own")
    parser.add_argument("--seed", type=int, default=0, help="of first values and of the order")
    parser.add_argument("--only", choices=("ours", "theirs"))
    options = parser.parse_args()
    options.weights = DATA / "imagenet_weights" / "resnet18_pqf.npz"
    data = DATA / options.data
    if not data.is_dir():
        raise SystemExit(f"no photographs in {data}; set RCNNPIPE_REALDATA")
    count = len(open_dataset(data, "val").records)
    for name, work in (("ours", ours), ("theirs", theirs)):
        if options.only in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                training, detection, figures = work(options, data, Path(folder))
            line = f"{name}: {figures}; {training:.0f} s of training"
            print(f"{line}, {detection / count:.2f} s an image", flush=True)


if __name__ == "__main__":
    main()
