"""Average precision of what is trained, on another split, as ``rcnnpipe detect`` would reach it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rcnnpipe.artifacts.store import Header, require_same_classes
from rcnnpipe.datasets import open_dataset
from rcnnpipe.datasets.records import Dataset
from rcnnpipe.detection_sources import model_source
from rcnnpipe.evaluation.columns import Truth, truth_of
from rcnnpipe.models.backbones import Network, build_network
from rcnnpipe.models.detector import Detector, build_detector
from rcnnpipe.proposals.selection import proposals_for
from rcnnpipe.scoring import DEFAULTS, candidates, judged
from rcnnpipe.training.distributed import Ranks, from_first_rank, gather_items
from rcnnpipe.training.validation import Array, Validation

FIGURES = ("ap", "ap50")


@dataclass(frozen=True)
class HeldOut:
    """What a network is judged on.

    Attributes:
        dataset: the split.
        truth: its objects.
        proposals: a file of regions, for what does not find them.
    """

    dataset: Dataset
    truth: Truth
    proposals: Path | None


def held_out(
    options: Mapping[str, Any], trained: Dataset, inputs: dict[str, Any]
) -> HeldOut | None:
    """The split to validate on, looked at before any work is done; None where none is named.

    Args:
        options: of the stage: data, split, validate, validate_proposals.
        trained: what is learnt from.
        inputs: of the model; what it is judged by joins them, since that chooses the weights.

    Raises:
        ArtifactError: the split has other classes, or images without proposals.
        DataError: it has no objects to be found.
    """
    split = options["validate"]
    if split is None:
        return None
    dataset = open_dataset(options["data"], split)
    names = (f"split {options['split']}", trained.classes)
    require_same_classes(*names, f"split {split}", dataset.classes)
    inputs["validation"] = dataset
    opened: dict[str, Any] = {}
    proposals_for(options["validate_proposals"], dataset, 0, opened)
    inputs.update({f"validation-{part}": header for part, header in opened.items()})
    return HeldOut(dataset, truth_of(dataset), options["validate_proposals"])


@dataclass(frozen=True)
class AveragePrecision:
    """Judges a network by COCO's average precision and that at an IoU of .5.

    The network is built anew from its values, as from its file: the one in training is not touched.

    Attributes:
        model: the network, for its settings.
        header: of its file.
        held_out: what it is judged on.
        ranks: each looks at its share of the images.
        origin: the file, for messages.
        precision: of the arithmetic.
        workers: threads that decode images.
    """

    model: Network | Detector
    header: Header
    held_out: HeldOut
    ranks: Ranks
    origin: Path
    precision: str
    workers: int

    def __call__(self, tensors: Mapping[str, Array], /) -> dict[str, float]:
        """Figures "ap" and "ap50" of a network with these values."""
        held, device = self.held_out, self.ranks.device
        build = build_detector if isinstance(self.model, Detector) else build_network
        network = build(self.model.settings(), tensors).to(device)
        # Running statistics are each rank's own; the file holds those of the first.
        from_first_rank(network.buffers(), self.ranks)
        options = DEFAULTS | {"proposals": held.proposals, "precision": self.precision}
        source = model_source(
            *(network, self.origin, self.header, held.dataset, options, device, self.workers, {})
        )
        share = range(self.ranks.rank, len(held.dataset.records), self.ranks.world)
        found = gather_items(candidates(source, held.dataset, share), self.ranks)
        figures = judged(found, held.dataset, held.truth)
        reached = torch.tensor([figures[name] for name in FIGURES], dtype=torch.float64)
        reached = reached.to(device)
        from_first_rank([reached], self.ranks)
        return dict(zip(FIGURES, reached.tolist(), strict=True))


def validation_of(
    options: Mapping[str, Any],
    model: Network | Detector,
    header: Header,
    held: HeldOut | None,
    ranks: Ranks,
) -> Validation | None:
    """When and how the options have the model judged while it is trained; None for never."""
    if held is None:
        return None
    place = (options["out"], options["precision"], options["workers"])
    judge = AveragePrecision(model, header, held, ranks, *place)
    return Validation(model, judge, options["validate_every"], options["patience"])
