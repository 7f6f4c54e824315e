"""Proposing on a copy of the image of another width, the boxes mapped back."""

import numpy as np
import numpy.typing as npt
from PIL import Image

from rcnnpipe.proposals.ranking import Proposed
from rcnnpipe.proposals.spread import Proposer


def propose_at_width(
    image: npt.NDArray[np.uint8],
    generator: np.random.Generator,
    *,
    proposer: Proposer,
    width: int,
) -> Proposed:
    """What a method proposes for an image (H, W, 3) resized to a width, in the image's own frame.

    Girshick et al. searched ILSVRC's images at 500 px, VOC's as they are
    (`op_selective_search_boxes.m`). A least size of boxes counts in the resized image.
    """
    full = np.array([image.shape[1], image.shape[0]] * 2, np.float64)
    height = max(1, round(full[1] * width / full[0]))
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    boxes, scores = proposer(np.array(resized), generator)
    mapped = np.minimum(boxes * (full / ([width, height] * 2)), full)
    return Proposed(mapped.astype(np.float32), scores)
