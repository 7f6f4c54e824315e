"""A step and an image against torchvision's: ``python -m tests.benchmarks.bench_detectors``.

torchvision's Faster R-CNN with a feature pyramid (``--network``, random weights, fixed batch norms)
and the same imported here: the same photographs in the same order, sizes, layers that learn,
numbers of proposals and sampled regions. Both alternate, so that whatever else the machine does
falls on both. Decoded images are at hand for both; preparing them is timed with the rest.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN

from rcnnpipe.datasets import open_dataset
from rcnnpipe.datasets.policy import Policy
from rcnnpipe.datasets.records import Dataset
from rcnnpipe.detection import Array, DeltaRefiner, SoftmaxScorer, detect_regions
from rcnnpipe.export.agreement import differences
from rcnnpipe.extraction.detectors import DetectorExtractor
from rcnnpipe.extraction.regions import Regions
from rcnnpipe.images import read_image
from rcnnpipe.models.backbones import keep_channels_last
from rcnnpipe.models.detector import Detector
from rcnnpipe.models.folding import fold_batch_norm
from rcnnpipe.models.image_view import ImageView
from rcnnpipe.models.rpn import ProposalRules
from rcnnpipe.models.rpn_targets import AnchorRules
from rcnnpipe.models.torchvision_detectors import import_detector
from rcnnpipe.suppression import Suppression, select
from rcnnpipe.systems import fpn
from rcnnpipe.training.detecting import DetectionLoss, RpnTraining
from rcnnpipe.training.distributed import Ranks
from rcnnpipe.training.finetuning import new_trainer
from rcnnpipe.training.image_batches import ImageSource, draw_images
from tests.realdata import DATA
from tests.torchvision_made import random_detector

IMAGES, REGIONS, PROPOSALS = 2, 512, 1000  # of a step, of an image, of an image
LEARNT = ("layer2", "layer3", "layer4", "fpn", "neck", "rpn", "roi_heads", "fc", "class_", "box_")


def models_of(
    name: str, side: int, classes: int, device: torch.device
) -> tuple[FasterRCNN, Detector]:
    """The same detector twice."""
    sizes: dict[str, Any] = {"min_size": side, "max_size": 5 * side // 3}
    rules: dict[str, Any] = {
        "rpn_pre_nms_top_n_train": PROPOSALS,
        "rpn_post_nms_top_n_train": PROPOSALS,
        "box_batch_size_per_image": REGIONS,
    }
    model = random_detector(name, classes, **sizes, **rules)
    tensors = model.state_dict()
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    detector = import_detector(name, classes, "weights", shapes, tensors.__getitem__)
    view = ImageView((side,), 5 * side // 3, 32, "floor")
    detector.parts = replace(detector.parts, view=view)
    for network in (model, detector):
        for key, values in network.named_parameters():
            learnt = any(part in key for part in LEARNT) and ".bn" not in key
            values.requires_grad = learnt and "downsample.1" not in key
    return model.to(device), detector.to(device)


def their_step(
    model: FasterRCNN, dataset: Dataset, pixels: list[Tensor], device: Any
) -> Callable[[int], None]:
    """One of the reference's training steps (``references/detection/engine.py``)."""
    learnt = [values for values in model.parameters() if values.requires_grad]
    optimizer = torch.optim.SGD(learnt, lr=1e-4, momentum=0.9, weight_decay=1e-4)

    def step(iteration: int) -> None:
        numbers = [n for n, _ in draw_images(len(pixels), IMAGES, False, 0, iteration)]
        model.train()
        for module in model.backbone.body.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        truths = [
            {
                "boxes": torch.from_numpy(dataset.records[n].boxes).float().to(device),
                "labels": torch.from_numpy(dataset.records[n].labels).to(device),
            }
            for n in numbers
        ]
        losses = model([pixels[n].to(device) / 255 for n in numbers], truths)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def our_step(detector: Detector, dataset: Dataset, device: torch.device) -> Callable[[int], None]:
    """One of ``rcnnpipe finetune --system fpn``."""
    sampling = replace(fpn.SAMPLING, batch_size=REGIONS * IMAGES, foreground=REGIONS * IMAGES // 4)
    rules = ProposalRules(
        before=PROPOSALS, keep=PROPOSALS, min_size=0, per_level=True, drop_first=False
    )
    rpn = RpnTraining(AnchorRules(straddle="keep"), rules)
    loss = DetectionLoss(detector, sampling, IMAGES, rpn=rpn)
    trainer = new_trainer(detector, replace(fpn.SOLVER, learning_rate=1e-4), Ranks(0, 1, device))
    source = ImageSource(
        records=dataset.records,
        proposals=[np.empty((0, 4), np.float32)] * len(dataset.records),
        view=detector.parts.view,
        preprocessing=detector.network.preprocessing,
        policy=Policy(),
        images=IMAGES,
        ranks=Ranks(0, 1, device),
        mirror=False,
    )
    batches = source.batches(0, 10**6)

    def step(iteration: int) -> None:
        detector.train()
        trainer.step(next(batches).pieces, loss)

    return step


@torch.inference_mode()
def their_detection(model: FasterRCNN, image: Tensor, device: Any) -> dict[str, Array]:
    (found,) = model.eval()([image.to(device) / 255])
    return {name: values.cpu().numpy() for name, values in found.items()}


@torch.inference_mode()
def our_detection(
    extractor: DetectorExtractor, image: Tensor, regions: Regions
) -> dict[str, Array]:
    size, detector = (image.shape[1], image.shape[2]), extractor.detector
    features = extractor(image.permute(1, 2, 0).numpy(), regions)
    smallest = detector.parts.smallest_sides(extractor.view, size)
    parts = (features, features["boxes"], size, SoftmaxScorer(), DeltaRefiner(), 0.05, 0)
    candidates = detect_regions(*parts, smallest=smallest)
    offsets = np.array([0, len(candidates["scores"])])
    found, _ = select(candidates, offsets, detector.classes - 1, 0, Suppression(0.5), 100)
    return found


def alternated(
    device: torch.device, count: int, *works: Callable[[int], Any]
) -> Iterator[list[float]]:
    """Seconds of each, round by round; the first rounds warm up."""
    for number in range(count + 2):
        seconds = []
        for work in works:
            started = time.perf_counter()
            work(number)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - started)
        if number >= 2:
            yield seconds


def report(what: str, rounds: list[list[float]]) -> None:
    ours, theirs = (median(column) for column in zip(*rounds, strict=True))
    print(
        f"{what}: ours {ours:.3f} s, torchvision {theirs:.3f} s, ratio {ours / theirs:.2f}",
        flush=True,
    )


@torch.inference_mode()
def report_together(
    extractor: DetectorExtractor, images: Sequence[Array], regions: Regions
) -> None:
    """Regions and outputs of images of one size, one after another and several at once."""
    counts = [count for count in (1, 2, 4) if count <= len(images)]

    def work(count: int) -> Callable[[int], Any]:
        return lambda _: extractor.several(images[:count], [regions] * count)

    rounds = alternated(extractor.device, 4, *map(work, counts))
    for count, column in zip(counts, zip(*rounds, strict=True), strict=True):
        print(f"{count} at once: {median(column) / count:.3f} s an image without suppression")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--side", type=int, default=320, help="pixels of the shorter side")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--channels-first", action="store_true", help="in our training step")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    folder, device = DATA / "playing_cards", torch.device(options.device)
    if not folder.is_dir():
        raise SystemExit(f"no photographs in {folder}; set RCNNPIPE_REALDATA")
    dataset = open_dataset(folder, "val")
    dataset = replace(dataset, records=dataset.records[: IMAGES * (options.rounds + 2)])
    images = [read_image(record.path) for record in dataset.records]
    pixels = [torch.from_numpy(image).permute(2, 0, 1) for image in images]
    classes = len(dataset.classes)
    print(f"{options.network}, side {options.side}, {device}, {torch.get_num_threads()} threads")

    model, detector = models_of(options.network, options.side, classes, device)
    keep_channels_last(detector, not options.channels_first)
    steps = our_step(detector, dataset, device), their_step(model, dataset, pixels, device)
    report(f"step of {IMAGES} images", list(alternated(device, options.rounds, *steps)))

    model, detector = models_of(options.network, options.side, classes, device)
    detector.eval()
    fold_batch_norm(detector)
    layers, rules = ("logits", "deltas"), detector.parts.proposals
    extractor = DetectorExtractor(
        *(detector, layers, device, detector.parts.view), stored=False, proposals=rules
    )
    none = np.empty((0, 4), np.float32)

    def ours(number: int) -> dict[str, Array]:
        return our_detection(extractor, pixels[number], Regions(dataset.records[number], none))

    def theirs(number: int) -> dict[str, Array]:
        return their_detection(model, pixels[number], device)

    report("detection of an image", list(alternated(device, options.rounds, ours, theirs)))
    alike = [image for image in images if image.shape == images[0].shape]
    report_together(extractor, alike, Regions(dataset.records[0], none))
    boxes, scores, alone = zip(*(differences(ours(n), theirs(n)) for n in range(4)), strict=True)
    print(
        f"boxes within {max(boxes):.2g} px, scores within {max(scores):.2g}, {sum(alone)} unpaired"
    )


if __name__ == "__main__":
    main()
