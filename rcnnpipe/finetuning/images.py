"""Fast R-CNN: from whole images and proposals to a detector. Girshick 2015, section 2.3."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from rcnnpipe.datasets import open_dataset
from rcnnpipe.datasets.policy import Policy
from rcnnpipe.errors import DataError, SettingError
from rcnnpipe.finetuning.run import Run
from rcnnpipe.finetuning.windows import warn_of_other_data
from rcnnpipe.models.backbones import Network
from rcnnpipe.models.detector import Detector, Parts
from rcnnpipe.progress import track
from rcnnpipe.proposals.selection import proposals_for
from rcnnpipe.systems import fast
from rcnnpipe.training.detecting import DetectionLoss
from rcnnpipe.training.finetuning import freeze_below, new_trainer
from rcnnpipe.training.image_batches import ImageSource
from rcnnpipe.training.initial import initial_network
from rcnnpipe.training.region_targets import delta_statistics, label_regions
from rcnnpipe.training.windows import check_sampling


def finetune_on_images(run: Run) -> int:
    """Train a detector; returns how many iterations."""
    options, ranks = run.options, run.ranks
    _check(run)
    dataset = open_dataset(options["data"], options["split"])
    inputs: dict[str, Any] = {"data": dataset}
    boxes = proposals_for(options["proposals"], dataset, 0, inputs)
    detector, resolved = _detector(options, inputs, len(dataset.classes))
    header = run.header(inputs, dataset.classes, resolved)
    warn_of_other_data(options, dataset, inputs)
    source = ImageSource(
        records=dataset.records,
        proposals=boxes,
        view=detector.parts.view,
        preprocessing=detector.network.preprocessing,
        policy=Policy(difficult=options["difficult"], crowd=options["crowd"]),
        images=options["images"],
        ranks=ranks,
        mirror=options["mirror"],
        seed=options["seed"],
        accumulate=options["accumulate"],
        workers=options["workers"],
        cache_bytes=options["image_cache"] * 2**20,
    )
    source = _with_regions(run, source)
    _normalise(run, detector, source)
    loss = DetectionLoss(
        *(detector, run.sampling, options["images"], fast.BETA, options["box_weight"]),
        seed=options["seed"],
    )
    trainer = new_trainer(detector, run.solver, ranks, options["precision"], options["seed"])
    return run.train(header, detector, trainer, source, loss)


def _check(run: Run) -> None:
    options, images = run.options, run.options["images"]
    check_sampling(run.sampling, images)
    if images % (run.ranks.world * options["accumulate"]):
        raise SettingError(
            f"--images {images} cannot be shared by {run.ranks.world} ranks and "
            f"{options['accumulate']} parts; raise --images, or lower --accumulate"
        )
    if run.sampling.batch_size % images or run.sampling.foreground % images:
        raise SettingError(
            f"--batch-size {run.sampling.batch_size} and --foreground {run.sampling.foreground} "
            f"are regions of {images} images together; take multiples of --images"
        )


def _detector(
    options: Mapping[str, Any], inputs: dict[str, Any], classes: int
) -> tuple[Detector, dict[str, Any]]:
    """The detector to train, its source among the inputs; and settings with late defaults."""
    network, random, resolved = initial_network(
        options["network"], options["init"], options["seed"], inputs
    )
    parts = _parts(network, options)
    train_from = options["train_from"] or fast.TRAIN_FROM[network.name]
    if options["init"] != "none":
        network.freeze_batch_norm()
        freeze_below(network, train_from)
    name = network.name
    detector = Detector(network, parts, classes)
    detector.initialise(random)
    resolved |= {"network": name, "train-from": train_from, "parts": parts.settings()}
    return detector, resolved


def _parts(network: Network, options: Mapping[str, Any]) -> Parts:
    view = fast.usual_view(network.architecture.input_size)
    if options["scales"]:
        view = view.at(options["scales"])
    if options["longest"]:
        view = replace(view, longest=options["longest"])
    return fast.parts_of(network, view, options["pooling"])


def _with_regions(run: Run, source: ImageSource) -> ImageSource:
    """The source without images of which nothing can be learnt (the authors' ``filter_roidb``)."""
    kept, objects = [], 0
    for number in range(len(source.records)):
        truth = source.truth_of(number)
        counted = truth.boxes[truth.labels > 0]
        boxes = torch.cat((counted, torch.from_numpy(source.proposals[number])))
        labels = label_regions(boxes, truth, run.sampling).labels
        objects += int((labels > 0).sum())
        if bool((labels >= 0).any()):
            kept.append(number)
    if not objects:
        raise DataError(
            f"none of the {len(source.records)} images has an object to learn from; take a split "
            "with annotations"
        )
    return source.only(kept)


def _normalise(run: Run, detector: Detector, source: ImageSource) -> None:
    """Give the detector the mean and deviation of its targets, over the whole data set."""
    numbers = track(range(len(source.records)), len(source.records), "targets")
    pairs = ((torch.from_numpy(source.proposals[n]), source.truth_of(n)) for n in numbers)
    mean, deviation = delta_statistics(pairs, run.sampling, detector.classes)
    detector.deltas_mean.copy_(mean)
    detector.deltas_std.copy_(deviation)
