"""Fast R-CNN, Faster R-CNN and FPN: from whole images to a detector.

Girshick 2015, section 2.3; Ren et al. 2015, section 3; Lin et al. 2017, sections 4 and 5.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from rcnnpipe.datasets import open_dataset
from rcnnpipe.datasets.policy import Policy
from rcnnpipe.errors import DataError, SettingError
from rcnnpipe.finetuning.anchors import require_anchors, warn_of_unfit_anchors
from rcnnpipe.finetuning.arrangement import ARRANGEMENTS, detector_to_train
from rcnnpipe.finetuning.judging import held_out, validation_of
from rcnnpipe.finetuning.run import Run
from rcnnpipe.finetuning.windows import warn_of_other_data
from rcnnpipe.models.backbones import keep_channels_last
from rcnnpipe.models.detector import Detector
from rcnnpipe.models.rpn import ProposalRules
from rcnnpipe.models.rpn_targets import PAPERS_LOSS, AnchorRules
from rcnnpipe.progress import track
from rcnnpipe.proposals.selection import proposals_for
from rcnnpipe.training.augmentation import Augmentation
from rcnnpipe.training.detecting import DetectionLoss, RpnTraining
from rcnnpipe.training.finetuning import new_trainer
from rcnnpipe.training.image_batches import ImageSource
from rcnnpipe.training.region_targets import Candidates, candidates_of, delta_statistics
from rcnnpipe.training.windows import check_sampling, no_background

_SMALLER = "lower {}, or raise --accumulate, which computes it in that many parts"


def finetune_on_images(run: Run) -> int:
    """Train a detector; returns how many iterations."""
    options, ranks = run.options, run.ranks
    _check(run)
    dataset = open_dataset(options["data"], options["split"])
    inputs: dict[str, Any] = {"data": dataset}
    boxes = proposals_for(options["proposals"], dataset, options["max_proposals"], inputs)
    held = held_out(options, dataset, inputs)
    detector, resolved, learnt = detector_to_train(options, inputs, dataset.classes)
    header = run.header(inputs, dataset.classes, resolved)
    source = ImageSource(
        records=dataset.records,
        proposals=boxes,
        view=detector.parts.view,
        preprocessing=detector.network.preprocessing,
        policy=Policy(difficult=options["difficult"], crowd=options["crowd"]),
        images=options["images"],
        ranks=ranks,
        mirror=options["mirror"],
        augmentation=_augmentation(options, detector),
        seed=options["seed"],
        accumulate=options["accumulate"],
        workers=options["workers"],
        cache_bytes=options["image_cache"] * 2**20,
    )
    rpn = None
    if options["system"] == "fast":
        warn_of_other_data(options, dataset, inputs)
        source, mean, deviation = _learnable(run, source, detector.classes)
        detector.normalise(mean, deviation, keep=learnt)
    else:
        _require_objects(source)
        deviation = torch.tensor(ARRANGEMENTS[options["system"]].DELTA_STD)
        deviation = deviation.expand_as(detector.deltas_std)
        if not learnt:
            detector.normalise(torch.zeros_like(deviation), deviation, keep=False)
        rpn = _rpn_training(options, detector)
        require_anchors(source, detector.parts, rpn.anchors)
        warn_of_unfit_anchors(source, detector.parts, dataset.classes)
    loss = DetectionLoss(
        *(detector, run.sampling, options["images"], options["box_beta"]),
        box_weight=options["box_weight"],
        rpn=rpn,
        regions=options["system"] != "rpn",
        seed=options["seed"],
    )
    keep_channels_last(detector, options["channels_last"])
    trainer = new_trainer(detector, run.solver, ranks, options["precision"], options["seed"])
    validation = validation_of(options, detector, header, held, ranks)
    jittered = options["scale_jitter"] is not None
    large = "--images, --scales or --scale-jitter" if jittered else "--images or --scales"
    return run.train(header, detector, trainer, source, loss, validation, _SMALLER.format(large))


def _augmentation(options: Mapping[str, Any], detector: Detector) -> Augmentation:
    names = ("scale_jitter", "photometric", "random_crop")
    made = Augmentation(**{name: options[name] for name in names})
    if made.scale_jitter is not None:
        shorter = min(detector.parts.view.scales)
        least, cell = shorter * made.scale_jitter[0], max(detector.parts.pooling.strides)
        if least < cell:
            raise SettingError(
                f"--scale-jitter makes images of {least:.3g} pixels, less than a cell of the map "
                f"({cell}), of those of {shorter}; raise its first factor or --scales"
            )
    return made


def _rpn_training(options: Mapping[str, Any], detector: Detector) -> RpnTraining:
    system = ARRANGEMENTS[options["system"]]
    assert detector.parts.proposals is not None
    rules = system.TRAINING | {"min_size": detector.parts.proposals.min_size}
    for name, field in (("pre_nms", "before"), ("post_nms", "keep")):
        if options[name] is not None:
            rules[field] = options[name]
    loss = PAPERS_LOSS if options["rpn_loss"] == "paper" else {}
    return RpnTraining(
        AnchorRules(straddle=options["straddle"] or system.STRADDLE, **loss),
        ProposalRules(**rules, **system.PER_LEVEL),
    )


def _check(run: Run) -> None:
    options, images = run.options, run.options["images"]
    if images % (run.ranks.world * options["accumulate"]):
        raise SettingError(
            f"--images {images} cannot be shared by {run.ranks.world} ranks and "
            f"{options['accumulate']} parts; raise --images, or lower --accumulate"
        )
    if options["system"] == "rpn":
        return
    check_sampling(run.sampling, images)
    if run.sampling.batch_size % images or run.sampling.foreground % images:
        raise SettingError(
            f"--batch-size {run.sampling.batch_size} and --foreground {run.sampling.foreground} "
            f"are regions of {images} images together; take multiples of --images"
        )


def _require_objects(source: ImageSource) -> None:
    counts = [(source.truth_of(n).labels > 0).sum() for n in range(len(source.records))]
    if not sum(map(int, counts)):
        raise _nothing_to_learn(source)


def _nothing_to_learn(source: ImageSource) -> DataError:
    return DataError(
        f"none of the {len(source.records)} images has an object to learn from; take a split with "
        "annotations"
    )


def _learnable(
    run: Run, source: ImageSource, classes: int
) -> tuple[ImageSource, torch.Tensor, torch.Tensor]:
    """The source without images of which nothing can be learnt, and the statistics of its deltas.

    The first is the authors' ``filter_roidb``; mean and deviation are of each class.
    """
    kept, objects, background = [], 0, 0

    def looked_at() -> Iterator[Candidates]:
        nonlocal objects, background
        for number in track(range(len(source.records)), len(source.records), "targets"):
            boxes = torch.from_numpy(source.proposals[number])
            regions = candidates_of(boxes, source.truth_of(number), run.sampling)
            if bool((regions.labels >= 0).any()):
                kept.append(number)
            objects += len(regions.deltas)
            background += int((regions.labels == 0).sum())
            yield regions

    mean, deviation = delta_statistics(looked_at(), classes)
    if not objects:
        raise _nothing_to_learn(source)
    if not background and run.sampling.foreground < run.sampling.batch_size:
        raise no_background(run.sampling, len(source.records))
    return source.only(kept), mean, deviation
