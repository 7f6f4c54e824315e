"""The one operation that ONNX has and PyTorch has not: suppression within each of many classes."""

from typing import Any

import torch
from torch import Tensor
from torchvision.ops import nms


def nms_of_classes(boxes: Tensor, scores: Tensor, overlap: float, threshold: float) -> Tensor:
    """Greedy suppression within each class.

    Args:
        boxes: (K, c, 4).
        scores: (K, c).
        overlap: IoU above which the worse box goes.
        threshold: scores are above it.

    Returns:
        (D, 2) int64, class and row of what remains, by class, then falling score.
    """
    found: Tensor = _NmsOfClasses.apply(boxes, scores, overlap, threshold)
    return found


class _NmsOfClasses(torch.autograd.Function):
    """ONNX's NonMaxSuppression, whose images of a batch are the classes here.

    torchvision's own conversion moves the classes apart in one plane, whose large coordinates
    round overlaps.
    """

    @staticmethod
    def forward(
        context: Any, boxes: Tensor, scores: Tensor, overlap: float, threshold: float
    ) -> Tensor:
        kept = []
        for number, (own, values) in enumerate(zip(boxes, scores, strict=True)):
            good = (values > threshold).nonzero().flatten()
            rows = good[nms(own[good], values[good], overlap)]
            kept.append(torch.stack((torch.full_like(rows, number), rows), dim=1))
        return torch.cat(kept)

    @staticmethod
    def symbolic(graph: Any, boxes: Any, scores: Any, overlap: float, threshold: float) -> Any:
        def constant(value: Any, dtype: torch.dtype) -> Any:
            return graph.op("Constant", value_t=torch.tensor(value, dtype=dtype))

        found = graph.op(  # (D, 3): image, class, row
            "NonMaxSuppression",
            boxes,
            graph.op("Unsqueeze", scores, constant([1], torch.long)),
            constant([torch.iinfo(torch.long).max], torch.long),
            constant([overlap], torch.float32),
            constant([threshold], torch.float32),
        )
        return graph.op("Gather", found, constant([0, 2], torch.long), axis_i=1)
