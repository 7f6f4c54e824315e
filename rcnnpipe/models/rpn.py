"""The Region Proposal Network: scores and deltas for all anchors, and proposals out of them.

Ren et al. 2015, section 3.1 and py-faster-rcnn's ``proposal_layer.py``; Lin et al. 2017, section
4.1.

Vocabulary: N images, C channels, H x W cells of a map, A anchors a cell, M = H * W * A anchors of a
map, P proposals of an image. Boxes are x1 y1 x2 y2 in pixels of the resized image. What belongs to
a map's anchors stands in their order: row by row, cell by cell, anchor by anchor.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms, nms

from rcnnpipe.boxes import LOG_LIMIT, cut_at, decode
from rcnnpipe.errors import SettingError


class RpnHead(nn.Module):
    """A 3 x 3 convolution or several, and two of 1 x 1 on it; the same weights for every map.

    The authors' code has two outputs an anchor and a softmax. Its probability of an object is the
    sigmoid of their difference, which is the one output here.
    """

    def __init__(self, channels: int, hidden: int, anchors_per_cell: int, depth: int = 1) -> None:
        """Make the layers for maps of ``channels``; :meth:`initialise` gives the first values."""
        super().__init__()
        self.conv: nn.Conv2d | nn.Sequential = nn.Conv2d(channels, hidden, 3, padding=1)
        if depth > 1:
            more = (nn.Conv2d(hidden, hidden, 3, padding=1) for _ in range(depth - 1))
            pairs = [(nn.ReLU(), convolution) for convolution in more]
            self.conv = nn.Sequential(self.conv, *(part for pair in pairs for part in pair))
        self.objectness = nn.Conv2d(hidden, anchors_per_cell, 1)
        self.deltas = nn.Conv2d(hidden, 4 * anchors_per_cell, 1)

    def initialise(self, generator: torch.Generator) -> None:
        """Weights from N(0, 0.01), biases 0 (section 3.1.3); on the device of the generator."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=0.01, generator=generator)

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Maps (N, C, H, W) to, for each, logits (N, M) and deltas (N, M, 4) tx ty tw th."""
        logits, deltas = [], []
        for one in maps:
            hidden = self.conv(one).relu()
            # Channels are anchor by anchor, each with four deltas: they must follow the cells.
            logits.append(self.objectness(hidden).permute(0, 2, 3, 1).flatten(1))
            cells = self.deltas(hidden).permute(0, 2, 3, 1)  # (N, H, W, 4 A)
            deltas.append(cells.reshape(len(one), -1, 4))
        return logits, deltas


class SeparateRpnHeads(nn.Module):
    """A head for each map: Lin et al. 2017, section 4.1, found them no better than a shared one."""

    def __init__(self, maps: int, *head: int) -> None:
        """Make one :class:`RpnHead` of ``head`` for each of ``maps``."""
        super().__init__()
        self.heads = nn.ModuleList(RpnHead(*head) for _ in range(maps))

    def initialise(self, generator: torch.Generator) -> None:
        """As :class:`RpnHead`, one after another."""
        for head in self.heads:
            assert isinstance(head, RpnHead)
            head.initialise(generator)

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """As :class:`RpnHead`, for as many maps as heads."""
        found = [head([one]) for head, one in zip(self.heads, maps, strict=True)]
        return [logits for (logits,), _ in found], [deltas for _, (deltas,) in found]


@dataclass(frozen=True, kw_only=True)
class ProposalRules:
    """Which boxes become proposals.

    | | before | keep | min_size | per_level | drop_first |
    |---|---|---|---|---|---|
    | py-faster-rcnn, joint training | 12000 | 2000 | 16 | | yes |
    | its alternating training | 0 | 2000 | 16 | | |
    | its test | 6000 | 300 | 16 | | yes |
    | Detectron's pyramid, training | 2000 | 2000 (of all images of a GPU) | 0 | yes | no |
    | its test | 1000 | 1000 | 0 | yes | no |
    | torchvision's pyramid, test | 1000 | 1000 | .001, resized | yes | no |
    | its MobileNet's, which has ``least_score`` .05 | 1000 | 1000 | .001, resized | yes | no |

    Attributes:
        before: the best so many of each map go into suppression; 0 for all.
        overlap: of two boxes with a larger IoU the worse one goes.
        keep: the best so many that are left of an image, over all its maps.
        min_size: boxes with a shorter side, after they are cut at the image, fall away; in pixels
            of the original image, those without area always.
        per_level: boxes of different maps do not suppress each other.
        drop_first: the small ones fall away before the best are taken, so that others take their
            places (py-faster-rcnn), not after (Detectron, torchvision). Without effect where
            ``before`` is 0.
        resized: ``min_size`` is in pixels of the resized image (torchvision).
        least_score: boxes whose scores are lower fall away before suppression.
    """

    before: int
    overlap: float = 0.7
    keep: int
    min_size: float
    per_level: bool
    drop_first: bool = True
    resized: bool = False
    least_score: float = 0.0

    def __post_init__(self) -> None:
        """Numbers are in their ranges."""
        if self.before < 0 or self.keep < 1 or not 0 <= self.min_size < math.inf:
            raise SettingError(
                f"proposals: the best {self.before} (0 for all), of which {self.keep} (at least 1) "
                f"stay, with sides of {self.min_size:g} (at least 0)"
            )
        if not 0 <= self.overlap <= 1:
            raise SettingError(f"proposals: an overlap of {self.overlap:g} is not in 0 to 1")
        if not 0 <= self.least_score <= 1:
            raise SettingError(f"proposals: a score of {self.least_score:g} is not in 0 to 1")

    def settings(self) -> dict[str, Any]:
        """JSON for the model file; a least score only where there is one."""
        return {k: v for k, v in asdict(self).items() if k != "least_score" or v}


class Found(NamedTuple):
    """What an RPN says of N images.

    Attributes:
        logits: (N, M) of the M anchors of all maps.
        deltas: (N, M, 4).
        anchors: (M, 4) in pixels of the resized images.
        proposals: for each image boxes (P, 4) in its own pixels and scores (P,), best first.
    """

    logits: Tensor
    deltas: Tensor
    anchors: Tensor
    proposals: list[tuple[Tensor, Tensor]]


def propose(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors: Sequence[Tensor],
    image_sizes: Sequence[tuple[int, int]],
    factors: Sequence[float] | Sequence[tuple[float, float]] | Tensor,
    rules: ProposalRules,
) -> list[tuple[Tensor, Tensor]]:
    """The proposals of each image: its anchors moved, cut at the image, thinned out.

    Anchors that reach over the border take part, in training too. No gradient flows back.

    Args:
        logits: (N, M) of each map.
        deltas: (N, M, 4) of each map.
        anchors: (M, 4) of each map.
        image_sizes: (height, width) of each resized image, without its padding.
        factors: the resized image's sides over the original's, for each image one number or two,
            across and down.
        rules: which stay.

    Returns:
        for each image, boxes (P, 4) with an area, within the image, and scores (P,) in [0, 1],
        float32, the best first; P may be 0.
    """
    device = anchors[0].device
    corner = [(width, height, width, height) for height, width in image_sizes]
    corners = torch.tensor(corner, dtype=torch.float32, device=device)[:, None]  # (N, 1, 4)
    scales = torch.as_tensor(factors, dtype=torch.float32, device=device)
    scales = scales.view(len(image_sizes), -1)  # (N, 1) or (N, 2)
    smallest = rules.min_size * (torch.ones_like(scales) if rules.resized else scales)
    maps = [
        _of_map(one.detach().float(), moves.detach().float(), start, corners, smallest, rules)
        for one, moves, start in zip(logits, deltas, anchors, strict=True)
    ]
    boxes, best = (torch.cat(parts, dim=1) for parts in zip(*maps, strict=True))
    levels = torch.cat(
        [torch.full((one.shape[1],), number, device=device) for number, (_, one) in enumerate(maps)]
    )
    return [_of_image(*image, levels, rules) for image in zip(boxes, best, strict=True)]


def _of_map(
    logits: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    corners: Tensor,
    smallest: Tensor,
    rules: ProposalRules,
) -> tuple[Tensor, Tensor]:
    """Boxes (N, m, 4) and logits (N, m), -inf for those that are too small, of the best anchors."""
    anchors = anchors.expand(len(logits), -1, -1)  # (N, M, 4)
    if not rules.drop_first:
        logits, deltas, anchors = _best(rules.before, logits, deltas, anchors)
    boxes = decode(anchors.flatten(0, 1), deltas.flatten(0, 1), limit=LOG_LIMIT)
    boxes, stays = cut_at(boxes.view_as(deltas), corners, smallest[:, None])
    logits = logits.where(stays, -math.inf)
    if rules.drop_first:
        logits, boxes = _best(rules.before, logits, boxes)
    return boxes, logits


def _best(number: int, logits: Tensor, *rows: Tensor) -> tuple[Tensor, ...]:
    """The largest logits (N, m), sorted, and the rows (N, m, 4) that belong to them."""
    total = logits.shape[1]
    logits, places = logits.topk(min(number, total) if number else total, dim=1)
    places = places[:, :, None].expand(-1, -1, 4)
    return logits, *(values.gather(1, places) for values in rows)


def _of_image(
    boxes: Tensor, logits: Tensor, levels: Tensor, rules: ProposalRules
) -> tuple[Tensor, Tensor]:
    """Suppressed and cut: (m, 4) and (m,) to (P, 4) and (P,)."""
    scores = logits.sigmoid()
    there = ((logits > -math.inf) & (scores >= rules.least_score)).nonzero().flatten()
    boxes, scores = boxes[there], scores[there]
    if rules.per_level:
        kept = batched_nms(boxes, scores, levels[there], rules.overlap)
    else:
        kept = nms(boxes, scores, rules.overlap)
    kept = kept[: rules.keep]
    return boxes[kept], scores[kept]
