"""Proposals by a detector's RPN. Ren et al. 2015, section 3.1. Vocabulary: P proposals."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rcnnpipe.datasets.records import Record
from rcnnpipe.devices import choose_device
from rcnnpipe.errors import ArtifactError
from rcnnpipe.extraction.detectors import DetectorExtractor
from rcnnpipe.extraction.regions import Regions, extract
from rcnnpipe.models.detector import Detector
from rcnnpipe.models.folding import fold_batch_norm
from rcnnpipe.models.weights import read_model_of_regions
from rcnnpipe.suppression import suppress


def open_rpn(options: Mapping[str, Any], inputs: dict[str, Any]) -> DetectorExtractor:
    """What finds the boxes of an image.

    Args:
        options: of the stage: model, device, precision, scales, images, max_boxes, min_size (None:
            the model's own).
        inputs: the model's header is added to it.

    Raises:
        ArtifactError: the model has no RPN.
    """
    inputs["model"], detector = read_model_of_regions(options["model"])
    if not isinstance(detector, Detector) or detector.parts.proposals is None:
        raise ArtifactError(
            f"{options['model']} has no RPN; rcnnpipe finetune --system rpn makes one"
        )
    usual = detector.parts.proposals
    device = choose_device(options["device"], options["precision"])
    detector = detector.to(device).eval()
    fold_batch_norm(detector)
    view = detector.parts.view
    view = view.at(options["scales"]) if options["scales"] else view.single()
    # As in alternating training: everything into suppression, so many boxes out of it.
    rules = replace(
        usual,
        before=usual.before if detector.parts.neck else 0,
        keep=options["max_boxes"],
        min_size=usual.min_size if options["min_size"] is None else options["min_size"],
        resized=False,
    )
    return DetectorExtractor(
        *(detector, (), device, view, options["precision"]),
        proposals=rules,
        images=options["images"],
    )


def propose_by(
    rpn: DetectorExtractor, records: Sequence[Record], workers: int
) -> Iterator[dict[str, Any]]:
    """Columns of a proposals file for one image after another: boxes (P, 4) and scores (P,).

    Those of several scales are suppressed and capped once more, all together.
    """
    assert rpn.proposals is not None
    none = np.empty((0, 4), np.float32)
    todo = (Regions(record, none) for record in records)
    for _, found in extract(rpn, todo, workers):
        boxes, scores = found["boxes"], found["scores"][:, 0]
        if len(rpn.view.scales) > 1:
            together = np.zeros(len(boxes), np.int64)
            best = suppress(boxes, scores, together, rpn.proposals.overlap)[: rpn.proposals.keep]
            boxes, scores = boxes[best], scores[best]
        yield {"boxes": boxes, "scores": scores}
