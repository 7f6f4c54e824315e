"""R-CNN: from images and proposals, by warped windows, to a network. Girshick et al. 2014, 2.3."""

import logging
from collections.abc import Mapping
from typing import Any

from rcnnpipe.artifacts.store import Identified
from rcnnpipe.datasets import Dataset, open_dataset
from rcnnpipe.finetuning.judging import held_out, validation_of
from rcnnpipe.finetuning.run import Run
from rcnnpipe.models.backbones import Network, keep_channels_last
from rcnnpipe.progress import track
from rcnnpipe.proposals.selection import proposals_for
from rcnnpipe.training.finetuning import WindowLoss, WindowSource, new_trainer, prepare_network
from rcnnpipe.training.initial import initial_network
from rcnnpipe.training.windows import Windows, check_sampling, gather_windows, label_windows

_log = logging.getLogger(__name__)


def finetune_on_windows(run: Run) -> int:
    """Train on windows of images; returns how many iterations."""
    options, sampling, ranks = run.options, run.sampling, run.ranks
    check_sampling(sampling, ranks.world * options["accumulate"])
    dataset = open_dataset(options["data"], options["split"])
    inputs: dict[str, Any] = {"data": dataset}
    boxes = proposals_for(options["proposals"], dataset, options["max_proposals"], inputs)
    held = held_out(options, dataset, inputs)
    network, resolved = network_to_train(options, inputs, len(dataset.classes))
    header = run.header(inputs, dataset.classes, resolved)
    warn_of_other_data(options, dataset, inputs)
    policy = {"difficult": options["difficult"], "crowd": options["crowd"]}
    classes = len(dataset.classes) - 1
    labelled = label_windows(dataset.records, boxes, classes, sampling, policy)
    windows = gather_windows(track(labelled, len(dataset.records), "label windows"), sampling)
    tell_windows(windows, len(dataset.records))
    source = WindowSource(
        *(windows, dataset.records, network, sampling, ranks),
        seed=options["seed"],
        accumulate=options["accumulate"],
        workers=options["workers"],
        cache_bytes=options["image_cache"] * 2**20,
    )
    keep_channels_last(network, options["channels_last"])
    trainer = new_trainer(network, run.solver, ranks, options["precision"], options["seed"])
    loss = WindowLoss(network, options["batch_size"])
    validation = validation_of(options, network, header, held, ranks)
    return run.train(header, network, trainer, source, loss, validation)


def network_to_train(
    options: Mapping[str, Any], inputs: dict[str, Any], outputs: int
) -> tuple[Network, dict[str, Any]]:
    """The network to train, its source among the inputs; and settings that took their defaults."""
    network, random, resolved = initial_network(
        options["network"], options["init"], options["seed"], inputs
    )
    prepare_network(
        network,
        outputs,
        random,
        crop=options["crop"],
        padding=options["padding"],
        train_from=options["train_from"],
        keep_statistics=options["init"] != "none",
    )
    return network, resolved | {"network": network.name, "padding": network.crop.padding}


def warn_of_other_data(
    options: Mapping[str, Any], dataset: Dataset, inputs: Mapping[str, Identified]
) -> None:
    """Tell when proposals were made for something else."""
    if dataset.id not in inputs["proposals"].lineage:
        _log.warning(
            "%s was made for another data set or split; its images are told by their ids",
            options["proposals"],
        )


def tell_windows(windows: Windows, images: int) -> None:
    """How many there are to learn from."""
    _log.info(
        "%d foreground and %d background windows of %d images",
        *(len(windows.foreground), len(windows.background), images),
    )
