"""A detector as one computation from pixels to detections, of operations that ONNX has.

What ``rcnnpipe detect`` does to an image in several places, once more in one piece: sizes are
tensors here, so that a traced graph takes images of any size. One image at a time.

Vocabulary: H x W pixels, M anchors of a map, R regions, K classes, c candidates of a class, D
detections. Boxes are x1 y1 x2 y2.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from rcnnpipe import boxes as box_ops
from rcnnpipe.detection import SoftmaxScorer
from rcnnpipe.errors import SettingError
from rcnnpipe.export.operators import nms_of_classes
from rcnnpipe.models.detector import OUTPUTS, Detector
from rcnnpipe.models.image_view import ImageView
from rcnnpipe.models.region_pooling import assign_levels
from rcnnpipe.models.rpn import ProposalRules


@dataclass(frozen=True)
class DetectionRules:
    """Which candidates become detections: options of ``rcnnpipe detect`` by the same names.

    Attributes:
        score_threshold: candidates score more.
        nms_overlap: IoU with a better one of its class above which a candidate goes.
        max_per_image: the best so many of a class go into suppression; 0 for all.
        max_detections: the best so many of an image are given; 0 for all.
    """

    score_threshold: float
    nms_overlap: float
    max_per_image: int
    max_detections: int


class DetectionGraph(nn.Module):
    """Pixels to detections, for tracing; the same detections as ``rcnnpipe detect`` finds."""

    def __init__(self, detector: Detector, view: ImageView, rules: DetectionRules) -> None:
        """Take over a detector in evaluation mode, on the CPU.

        Raises:
            SettingError: its regions are pooled from images at several scales.
        """
        super().__init__()
        if len(view.scales) > 1:
            raise SettingError(
                f"one graph sees images at one scale, this model at {len(view.scales)} "
                f"({', '.join(map(str, view.scales))}); choose one with --scales"
            )
        self.detector, self.view, self.rules = detector, view, rules

    def forward(
        self, image: Tensor, proposals: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Detections of an image.

        Args:
            image: (1, 3, H, W) float32 RGB, 0..255.
            proposals: (R, 4) float32 in pixels of the image; None where the detector has an RPN.

        Returns:
            boxes (D, 4) float32 in pixels of the image, scores (D,) float32 in 0..1 and labels (D,)
            int64 in 1..K, the best first.
        """
        size = torch._shape_as_tensor(image)[2:]  # (2,) int64, height and width
        resized, factors = self._resized(size)
        pixels = self.detector.network.preprocessing.apply(image)
        for axis, side in zip((2, 3), _numbers(resized), strict=True):
            pixels = _interpolated(pixels, side, axis)
        multiple = self.view.multiple
        more = (resized + multiple - 1) // multiple * multiple - resized
        down, right = _numbers(more)
        maps = self.detector.maps(pad(pixels, [0, right, 0, down]))
        corners = size.flip(0).repeat(2).float()  # (4,) W H W H
        if proposals is None:
            proposals = self._found(maps, resized, factors) / factors
            proposals, left = box_ops.cut_at(proposals, corners, torch.zeros(2))
            proposals = proposals[left]
        outputs = self.detector.behind(self._pooled(maps, proposals, factors), OUTPUTS)
        return self._detections(proposals, outputs["logits"], outputs["deltas"], corners, factors)

    def _resized(self, size: Tensor) -> tuple[Tensor, Tensor]:
        """(2,) int64 and (4,) float32: ``ImageView.resized_size``, and ``factors`` of corners."""
        view, sides = self.view, size.double()
        # Sizes turn on the last bit. A number over a tensor would be rounded twice, and minimum()
        # becomes float32 in ONNX.
        wanted = torch.tensor((view.scales[0], view.longest), dtype=torch.float64)
        scales = wanted / torch.stack((sides.amin(), sides.amax()))
        if view.rounding == "floor":
            scale = scales.amin()
            resized = (sides * scale).floor().clamp(min=1)
            factors = (resized / sides).flip(0).repeat(2)
        else:
            scale, limit = scales.unbind()
            too_long = (scale * sides.amax()).round() > view.longest
            scale = torch.where(too_long, limit, scale)
            resized = (sides * scale).round().clamp(min=1)
            factors = scale.repeat(4)
        return resized.long(), factors.float()

    def _found(self, maps: Sequence[Tensor], resized: Tensor, factors: Tensor) -> Tensor:
        """Proposals (R, 4) in pixels of the resized image, best first: ``rpn.propose``."""
        rpn, rules = self.detector.rpn, self.detector.parts.proposals
        assert rpn is not None
        assert rules is not None
        maps = maps[: len(self.detector.parts.strides)]
        logits, deltas = rpn(maps)
        corners = resized.flip(0).repeat(2).float()
        smallest = rules.min_size * (torch.ones(2) if rules.resized else factors[:2])
        found = [
            _of_map(one[0], moves[0], anchors, corners, smallest, rules)
            for one, moves, anchors in zip(logits, deltas, self._anchors(maps), strict=True)
        ]
        if not rules.per_level:
            boxes, scores = (torch.cat(parts) for parts in zip(*found, strict=True))
            found = [(boxes, scores)]
        kept = [_suppressed(boxes, scores, rules.overlap) for boxes, scores in found]
        boxes, scores = (torch.cat(parts) for parts in zip(*kept, strict=True))
        return boxes[_top(rules.keep, scores)[1]]

    def _anchors(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """(M, 4) of each map: ``Anchors.boxes`` at ``Parts.anchor_strides``."""
        parts = self.detector.parts
        assert parts.anchors is not None
        cells = [torch._shape_as_tensor(one)[2:] for one in maps]
        anchors = []
        for level, ((stride, _), own) in enumerate(zip(parts.strides, cells, strict=True)):
            steps = torch.full_like(own, stride)
            if parts.anchors.spread:
                steps = cells[0] * parts.strides[0][0] // own
            base = parts.anchors.base(level, stride)
            y, x = (
                torch.arange(count, dtype=torch.float32) * step
                for count, step in zip(_numbers(own), steps.float().unbind(), strict=True)
            )
            y, x = torch.meshgrid(y, x, indexing="ij")
            shifts = torch.stack((x, y, x, y), dim=2).view(-1, 1, 4)
            anchors.append((shifts + base).view(-1, 4))
        return anchors

    def _pooled(self, maps: Sequence[Tensor], boxes: Tensor, factors: Tensor) -> Tensor:
        """(R, C, P, P): ``Detector.pool``."""
        pooling = self.detector.parts.pooling
        rois = (boxes - torch.tensor((0.0, 0.0, pooling.pixel, pooling.pixel))) * factors
        if len(pooling.strides) == 1:
            return pooling(maps[:1], [rois])
        levels = assign_levels(
            rois,
            len(pooling.strides),
            finest=pooling.strides[0].bit_length() - 1,
            reference=pooling.reference,
            level_of_reference=pooling.level_of_reference,
            pixel=pooling.pixel,
        )
        rows = [(levels == level).nonzero().flatten() for level in range(len(pooling.strides))]
        parts = [
            replace(pooling, strides=(stride,))([one], [rois[own]])
            for one, own, stride in zip(maps, rows, pooling.strides, strict=False)
        ]
        return torch.cat(parts)[torch.cat(rows).argsort()]

    def _detections(
        self, regions: Tensor, logits: Tensor, deltas: Tensor, corners: Tensor, factors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``detection.detect_regions`` and ``select`` on regions (R, 4)."""
        detector, rules = self.detector, self.rules
        moves = detector.scaled_deltas(deltas)
        scores = SoftmaxScorer()(logits).T  # (K, R)
        scores, rows = _top(rules.max_per_image, scores)  # (K, c), c x K regions
        moves = moves[:, 1:].transpose(0, 1)  # (K, R, 4)
        moves = moves.gather(1, rows[:, :, None].expand(-1, -1, 4))
        boxes = box_ops.decode(
            regions[rows.flatten()], moves.reshape(-1, 4), limit=box_ops.LOG_LIMIT
        )
        smallest = detector.parts.smallest
        if smallest is None:
            boxes = box_ops.clip_at(boxes, corners)
        else:
            boxes, left = box_ops.cut_at(boxes, corners, smallest / factors[:2])
            # No threshold is below 0.
            scores = scores.where(left.view_as(scores), -1.0)
        boxes = boxes.view(detector.classes - 1, -1, 4)  # (K, c, 4)
        own = nms_of_classes(boxes, scores, rules.nms_overlap, rules.score_threshold)
        labels, rows = own.unbind(1)
        boxes, scores, labels = boxes[labels, rows], scores[labels, rows], labels + 1
        _, best = _top(rules.max_detections, scores)
        return boxes[best], scores[best], labels[best]


def _interpolated(pixels: Tensor, side: Tensor, axis: int) -> Tensor:
    """``image_view.resize`` of one axis to a side (); onnxruntime's own rounds places a thousand
    times more coarsely than PyTorch."""
    there = torch._shape_as_tensor(pixels)[axis]
    (count,) = _numbers(side.view(1))
    places = torch.arange(count, dtype=torch.float32) + 0.5
    places = (places * (there.float() / side.float()) - 0.5).clamp(min=0)
    first = places.long()
    second = (first + 1).minimum(there - 1)
    share = places - first.float()
    if axis == 2:
        share = share[:, None]
    low, high = pixels.index_select(axis, first), pixels.index_select(axis, second)
    return low * (1 - share) + high * share


def _of_map(
    logits: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    corners: Tensor,
    smallest: Tensor,
    rules: ProposalRules,
) -> tuple[Tensor, Tensor]:
    """Boxes (m, 4) and scores (m,) of a map's best anchors, falling."""
    if not rules.drop_first:
        logits, rows = _top(rules.before, logits)
        deltas, anchors = deltas[rows], anchors[rows]
    boxes = box_ops.decode(anchors, deltas, limit=box_ops.LOG_LIMIT)
    boxes, stays = box_ops.cut_at(boxes, corners, smallest)
    if rules.drop_first:
        logits, rows = _top(rules.before, logits.where(stays, -math.inf))
        boxes, stays = boxes[rows], logits > -math.inf
    scores = logits.sigmoid()
    stays = stays & (scores >= rules.least_score)
    return boxes[stays], scores[stays]


def _suppressed(boxes: Tensor, scores: Tensor, overlap: float) -> tuple[Tensor, Tensor]:
    rows = nms_of_classes(boxes[None], scores[None], overlap, -1.0)[:, 1]
    return boxes[rows], scores[rows]


def _top(most: int, values: Tensor) -> tuple[Tensor, Tensor]:
    """The largest ``most`` values (all for 0) of the last axis, and their places; falling."""
    there = torch._shape_as_tensor(values)[-1]
    count = torch.minimum(there, torch.tensor(most)) if most else there
    (number,) = _numbers(count.view(1))
    largest, places = values.topk(number, dim=-1)
    return largest, places


def _numbers(values: Tensor) -> list[Any]:
    """Whole numbers of a tensor (n,) as tensors of one, which functions take for numbers and a
    trace does not forget."""
    return list(values.unbind())
