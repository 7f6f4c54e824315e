"""What detection works on: regions with features, a scorer, a refiner, checked to fit together.

Features come from pixels (a network, and proposals of a file or found on the spot) or from a cache.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rcnnpipe.artifacts.bbox_reg import read_bbox_reg
from rcnnpipe.artifacts.columns import rows_for_images
from rcnnpipe.artifacts.features import open_features
from rcnnpipe.artifacts.store import KINDS, Header, require_same_classes
from rcnnpipe.artifacts.svm import read_svm
from rcnnpipe.boxes import mirror
from rcnnpipe.datasets.records import Dataset, Record
from rcnnpipe.detection import (
    MIRRORED,
    DeltaRefiner,
    Refiner,
    Scorer,
    SoftmaxScorer,
    SvmScorer,
)
from rcnnpipe.errors import ArtifactError
from rcnnpipe.extraction.choice import extractor_for
from rcnnpipe.extraction.detectors import DetectorExtractor
from rcnnpipe.extraction.regions import Regions, extract, mirrored
from rcnnpipe.linear.ridge import BoxRefiner
from rcnnpipe.models.backbones import Network
from rcnnpipe.models.detector import Detector
from rcnnpipe.models.folding import fold_batch_norm
from rcnnpipe.models.weights import read_model_of_regions
from rcnnpipe.proposals.selection import proposals_for, proposals_on_the_spot
from rcnnpipe.ragged import rows_of

_log = logging.getLogger(__name__)
Pair = tuple[Tensor, dict[str, Tensor]]


@dataclass(frozen=True)
class Source:
    """Everything detection needs.

    Attributes:
        classes: names of the labels, background first.
        inputs: by the part they play, for the header.
        scorer, refiner: checked against the features' origin.
        regions: given numbers of images, yields boxes (R, 4) and layer -> features (R, D) of each.
        smallest: given an image's (height, width), the sides that its boxes have at least, across
            and down, or None.
    """

    classes: tuple[str, ...]
    inputs: dict[str, Any]
    scorer: Scorer
    refiner: Refiner | None
    regions: Callable[[Sequence[int]], Iterable[Pair]]
    smallest: Callable[[tuple[int, int]], tuple[float, float] | None] = lambda size: None


@contextmanager
def open_source(
    dataset: Dataset, options: Mapping[str, Any], device: torch.device, workers: int
) -> Iterator[Source]:
    """Open all inputs of a detection and check that they belong together.

    Args:
        dataset: whose images are looked at.
        options: of the stage: model or features, proposals, svm, bbox_reg, refine, max_proposals,
            batch_size, precision, seed, scales, flip.
        device: where to compute.
        workers: threads that decode images.

    Raises:
        ArtifactError: files do not belong together; names both and the command to run.
    """
    inputs: dict[str, Any] = {"data": dataset}
    origin: Path = options["model"] or options["features"]
    if options["features"] is not None:
        with open_features(origin, workers) as cache:
            inputs["features"] = cache.header
            numbers = rows_for_images(origin, cache, dataset, "features")
            parts = _Parts(options, origin, cache.header, device, inputs)
            parts.check_layers(origin, cache.layers)

            def cached(images: Sequence[int]) -> Iterator[Pair]:
                for image in images:
                    rows = rows_of(cache.offsets, numbers[image])
                    # The ground truth leads the rows of an image; it is no proposal.
                    first = rows.start + int(cache.is_truth[rows].sum())
                    rows = slice(first, rows.stop)
                    found = {x: torch.from_numpy(cache.rows(x, rows)) for x in parts.layers}
                    _require_finite(origin, dataset.image_ids[image], found)
                    boxes = torch.from_numpy(cache.boxes[rows])
                    yield boxes, {x: values.to(device) for x, values in found.items()}

            yield parts.source(cached)
        return
    model, network = read_model_of_regions(origin)
    yield model_source(network, origin, model, dataset, options, device, workers, inputs)


def model_source(
    network: Network | Detector,
    origin: Path,
    header: Header,
    dataset: Dataset,
    options: Mapping[str, Any],
    device: torch.device,
    workers: int,
    inputs: dict[str, Any],
) -> Source:
    """Everything for a detection from pixels by a network that is at hand.

    Args:
        network: changed in place for evaluation: a copy where it is still needed for training.
        origin: the file that it is in, or will be, for messages.
        header: of that file.
        dataset, options, device, workers: as in :func:`open_source`.
        inputs: the model and the files that are opened join them.
    """
    network = network.to(device).eval()
    fold_batch_norm(network)
    inputs["model"] = header
    parts = _Parts(options, origin, header, device, inputs)
    if options["svm"] is None:
        _require_whole(origin, network)
    parts.check_layers(origin, network.layer_sizes)
    own = isinstance(network, Detector) and network.rpn is not None
    find = own and options["proposals"] is None
    extractor = extractor_for(network, parts.layers, device, options, stored=False, find=find)
    boxes_of: Callable[[int], Any]
    if find:
        boxes_of = lambda number: np.empty((0, 4), np.float32)  # noqa: E731
    elif options["proposals"] is None:
        boxes_of = proposals_on_the_spot(dataset, options["seed"], options["max_proposals"])
    else:
        stored = proposals_for(options["proposals"], dataset, options["max_proposals"], inputs)
        boxes_of = stored.__getitem__

    def computed(images: Sequence[int]) -> Iterator[Pair]:
        todo = (Regions(dataset.records[i], boxes_of(i)) for i in images)
        if options["flip"]:
            todo = (view for plain in todo for view in (plain, mirrored(plain)))
        views = _pairs(extract(extractor, todo, workers), parts.layers, device)
        for i in images:
            pair = next(views)
            yield _united(pair, next(views), dataset.records[i]) if options["flip"] else pair

    source = parts.source(computed)
    if isinstance(extractor, DetectorExtractor):
        sides = partial(extractor.detector.parts.smallest_sides, extractor.view)
        source = replace(source, smallest=sides)
    return source


def _pairs(
    extracted: Iterable[tuple[Regions, dict[str, Any]]], layers: Sequence[str], device: torch.device
) -> Iterator[Pair]:
    """What was extracted, without what is of no use here."""
    for regions, found in extracted:
        features = {x: torch.from_numpy(found[x]).to(device) for x in layers}
        yield torch.from_numpy(found.get("boxes", regions.boxes)), features


def _united(plain: Pair, other: Pair, record: Record) -> Pair:
    """Regions of an image and of its mirrored view, whose boxes come back (Detectron's UNION)."""
    boxes = torch.cat((plain[0], torch.from_numpy(mirror(other[0].numpy(), record.size[1]))))
    features = {x: torch.cat((values, other[1][x])) for x, values in plain[1].items()}
    turned = torch.arange(len(boxes)) >= len(plain[0])
    return boxes, features | {MIRRORED: turned.to(next(iter(features.values())).device)}


class _Parts:
    """The scorer and the refiner of a detection, read and checked."""

    def __init__(
        self,
        options: Mapping[str, Any],
        origin: Path,
        header: Header,
        device: torch.device,
        inputs: dict[str, Any],
    ) -> None:
        self.inputs = inputs
        self._lengths: dict[Path, tuple[str, int]] = {}
        self.classes = self._own_classes = header.classes
        self.scorer: Scorer = SoftmaxScorer()
        self.refiner: Refiner | None = None
        self._refines, self._cached = bool(options["refine"]), header.kind == "features"
        if options["svm"] is not None:
            svm = read_svm(options["svm"])
            _require_origin(options["svm"], svm.header, origin, header)
            inputs["svm"], self.classes = svm.header, svm.header.classes
            weights = torch.from_numpy(svm.weights).float().to(device)
            bias = torch.from_numpy(svm.bias).float().to(device)
            self._lengths[options["svm"]] = (svm.layer, weights.shape[1])
            self.scorer = SvmScorer(svm.layer, weights, bias, svm.scale)
        if options["bbox_reg"] is not None and options["refine"]:
            regression = read_bbox_reg(options["bbox_reg"])
            _require_origin(options["bbox_reg"], regression.header, origin, header)
            files = (str(options["bbox_reg"]), str(options["svm"] or origin))
            require_same_classes(files[0], regression.header.classes, files[1], self.classes)
            inputs["bbox-reg"] = regression.header
            self._lengths[options["bbox_reg"]] = (regression.layer, regression.weights.shape[1])
            self.refiner = BoxRefiner(regression, device)

    @property
    def layers(self) -> list[str]:
        """Layers needed, without repetition."""
        refined = [self.refiner.layer] if self.refiner else []
        return list(dict.fromkeys([self.scorer.layer, *refined]))

    def check_layers(self, origin: Path, sizes: Mapping[str, int]) -> None:
        """The layers must be there, and a classifier have learnt the classes it is to find.

        A detector's own deltas move boxes where no regression is given.
        """
        for path, (layer, length) in self._lengths.items():
            if sizes.get(layer) != length:
                has = ", ".join(f"{name} of {size}" for name, size in sizes.items())
                raise ArtifactError(
                    f"{path} takes features of layer '{layer}' of length {length}, but {origin} "
                    f"has {has}"
                )
        if self.scorer.layer not in sizes:
            raise ArtifactError(
                f"{origin} has no layer '{self.scorer.layer}', only {', '.join(sizes)}; give --svm,"
                f" or run rcnnpipe extract-features with --layers {self.scorer.layer}"
            )
        outputs = sizes[self.scorer.layer]
        if isinstance(self.scorer, SoftmaxScorer) and outputs != len(self.classes):
            raise ArtifactError(
                f"the classifier of {origin} has {outputs} outputs, not one for the background and "
                f"each of {len(self.classes) - 1} classes; give --svm, or a model from finetune"
            )
        deltas = sizes.get(DeltaRefiner().layer)
        if self._refines and self.refiner is None and deltas is not None:
            if deltas != 4 * len(self.classes) or self.classes != self._own_classes:
                raise ArtifactError(
                    f"{origin} has learnt to move boxes of other classes than those that are "
                    "scored; give --bbox-reg, or --no-refine"
                )
            self.refiner = DeltaRefiner()
        if self._cached and self._refines and self.refiner is None:
            _log.info(
                "boxes are not moved: no --bbox-reg is given, and %s has no layer 'deltas' of a "
                "detector",
                origin,
            )

    def source(self, regions: Callable[[Sequence[int]], Iterable[Pair]]) -> Source:
        """All of it."""
        return Source(self.classes, self.inputs, self.scorer, self.refiner, regions)


def _require_whole(path: Path, network: Network | Detector) -> None:
    """Refuse to detect with a network that has only learnt to propose."""
    if isinstance(network, Detector) and not network.outputs_learnt:
        raise ArtifactError(
            f"{path} has learnt to propose regions alone; give it to rcnnpipe propose --method rpn,"
            " and train a detector on its proposals by finetune --system fast"
        )


def _require_finite(path: Path, image_id: str, features: Mapping[str, Tensor]) -> None:
    for layer, values in features.items():
        if not bool(torch.isfinite(values).all()):
            raise ArtifactError(
                f"{path} has features of image '{image_id}' that are no finite numbers in layer "
                f"'{layer}'; look at it with rcnnpipe inspect and extract them again"
            )


def _require_origin(path: Path, header: Header, origin: Path, source: Header) -> None:
    """A linear model must come from features of the same network, not of one before or after it.

    Raises:
        ArtifactError: it does not; names both files.
    """
    needed = source.id if source.kind == "model" else source.inputs.get("model")
    if needed is None or header.inputs.get("model") != needed:
        raise ArtifactError(
            f"{path} was not made from {origin} but from another one; run "
            f"{KINDS[header.kind][1]} again on features of that network"
        )
