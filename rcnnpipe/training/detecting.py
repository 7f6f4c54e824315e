"""The loss of a detector on whole images: of its regions, and of its RPN where it has one.

Girshick 2015, section 2.3; Ren et al. 2015, section 3.2 (approximate joint training: proposals are
constants). Vocabulary: N images of a piece, S sampled regions of all of them, K classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rcnnpipe.models.detector import Detector
from rcnnpipe.models.image_view import corner_factors
from rcnnpipe.models.losses import smooth_l1
from rcnnpipe.models.rpn import ProposalRules
from rcnnpipe.models.rpn_targets import AnchorRules, label_anchors, rpn_loss, sample_anchors
from rcnnpipe.randomness import generator
from rcnnpipe.systems.rcnn import Sampling
from rcnnpipe.training.image_batches import Example, Piece
from rcnnpipe.training.loop import Part
from rcnnpipe.training.region_targets import Sample, Truth, sample_regions


@dataclass(frozen=True)
class RpnTraining:
    """How a detector's RPN learns.

    Attributes:
        anchors: which anchors it learns from.
        proposals: which of its boxes are regions of the same batch.
    """

    anchors: AnchorRules
    proposals: ProposalRules


@dataclass(frozen=True)
class DetectionLoss:
    """Multi-task loss of a piece of a batch.

    Classification is averaged over the sampled regions of a piece, regression summed over the
    objects and divided by the same number. Pieces and ranks weigh by their images, so that a batch
    in one piece has the authors' loss.

    Attributes:
        detector: in training.
        sampling: of the regions of a batch.
        images: of a batch.
        beta: where the smooth L1 loss becomes linear: 1 in Fast R-CNN.
        box_weight: of the regression; 0 trains the classification alone.
        rpn: how an RPN learns; None where regions come from elsewhere.
        regions: whether regions are learnt from; not in the steps that train the RPN alone.
        seed: of the draws.
    """

    detector: Detector
    sampling: Sampling
    images: int
    beta: float = 1.0
    box_weight: float = 1.0
    rpn: RpnTraining | None = None
    regions: bool = True
    seed: int = 0

    def __call__(self, piece: Piece, /) -> Part:
        """The piece's part of the loss, and shares of regions told rightly."""
        images, examples = piece
        maps = self.detector.maps(images)
        parts, proposals = [], [example.proposals.to(images.device) for example in examples]
        if self.rpn is not None:
            part, proposals = self._of_rpn(self.rpn, maps, examples)
            parts.append(part)
        if self.regions:
            pairs = zip(examples, proposals, strict=True)
            samples = [self._sample(example, boxes, images.device) for example, boxes in pairs]
            parts.append(self._of_regions(maps, examples, samples))
        shares = {name: share for part in parts for name, share in part.shares.items()}
        return Part(torch.stack([part.loss for part in parts]).sum(), shares)

    def _of_rpn(
        self, rpn: RpnTraining, maps: list[Tensor], examples: list[Example]
    ) -> tuple[Part, list[Tensor]]:
        """The RPN's loss, averaged over images, and its proposals (P, 4) of each image."""
        view, device = self.detector.parts.view, maps[0].device
        sizes = [view.resized_size(example.size, example.scale) for example in examples]
        factors = self._factors(examples)
        rules = rpn.proposals if self.regions else None
        found = self.detector.find_regions(maps, sizes, factors, rules)
        losses = []
        for number, (example, size) in enumerate(zip(examples, sizes, strict=True)):
            corners = corner_factors(factors[number], device)
            boxes, labels = example.truth.boxes.to(device) * corners, example.truth.labels
            truth, crowds = boxes[labels.to(device) > 0], boxes[labels.to(device) < 0]
            random = generator(self.seed, "anchors", *example.key)
            anchors, matched = label_anchors(found.anchors, truth, crowds, size, rpn.anchors)
            drawn = sample_anchors(anchors, rpn.anchors, random)
            outputs = (found.logits[number], found.deltas[number], found.anchors)
            losses.append(torch.stack(rpn_loss(*outputs, truth, matched, *drawn, rpn.anchors)))
        objectness, box = torch.stack(losses).sum(dim=0) / self.images
        one = torch.tensor(len(examples) / self.images, device=device)
        shares = {
            "objectness-loss": torch.stack((objectness.detach(), one)),
            "rpn-box-loss": torch.stack((box.detach(), one)),
        }
        return Part(objectness + box, shares), [b for b, _ in found.proposals]

    def _factors(self, examples: list[Example]) -> list[tuple[float, float]]:
        view = self.detector.parts.view
        return [view.factors(example.size, example.scale) for example in examples]

    def _sample(self, example: Example, proposals: Tensor, device: torch.device) -> Sample:
        truth = Truth(*(part.to(device) for part in example.truth))
        random = generator(self.seed, "regions", *example.key)
        return sample_regions(proposals.to(device), truth, self.sampling, self.images, random)

    def _of_regions(
        self, maps: list[Tensor], examples: list[Example], samples: list[Sample]
    ) -> Part:
        detector = self.detector
        boxes = [sample.boxes for sample in samples]
        pooled = detector.pool(maps, boxes, self._factors(examples))
        found = detector.behind(pooled)
        logits, deltas = found["logits"].float(), found["deltas"].float()
        labels = torch.cat([sample.labels for sample in samples])
        wanted = torch.cat([sample.deltas for sample in samples])
        share = len(examples) / self.images / max(len(labels), 1)
        classes = cross_entropy(logits, labels, reduction="sum") * share
        objects = labels.nonzero().flatten()
        own = deltas.view(len(labels), detector.classes, 4)[objects, labels[objects]]
        mean, deviation = (
            detector.deltas_mean[labels[objects]],
            detector.deltas_std[labels[objects]],
        )
        moved = smooth_l1(own - (wanted[objects] - mean) / deviation, self.beta).sum() * share
        right = logits.detach().argmax(1) == labels
        one = torch.tensor(len(examples) / self.images, device=logits.device)
        return Part(
            classes + self.box_weight * moved,
            {
                "class-loss": torch.stack((classes.detach(), one)),
                "box-loss": torch.stack((moved.detach(), one)),
                "foreground-accuracy": _share(right, labels > 0),
                "background-accuracy": _share(right, labels == 0),
            },
        )


def _share(right: Tensor, of: Tensor) -> Tensor:
    return torch.stack(((right & of).sum(), of.sum())).float()
