"""What becomes of difficult, truncated and crowd objects, in training and in evaluation.

``keep``: like any other object. ``ignore``: neither object nor background; in training no region
that covers it is sampled as background, in evaluation no detection on it counts either way.
``drop``: as if it were not annotated.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from rcnnpipe.datasets.records import Record

Treatment = Literal["keep", "ignore", "drop"]


@dataclass(frozen=True)
class Policy:
    """How flagged objects are treated; of several flags the strictest treatment wins."""

    difficult: Treatment = "keep"
    truncated: Treatment = "keep"
    crowd: Treatment = "ignore"


# The R-CNN code's roidb has no filter for difficult objects, so they train as ground truth; a
# crowd's box is no object's box (COCO; Faster R-CNN's loader takes it out of the targets).
TRAINING = Policy(difficult="keep", truncated="keep", crowd="ignore")

# The VOC and COCO evaluation codes: difficult objects and crowds are neither found nor missed.
EVALUATION = Policy(difficult="ignore", truncated="keep", crowd="ignore")


def roles(record: Record, policy: Policy) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which of a record's G objects are ground truth and which are ignored, two (G,) masks.

    An object in neither is dropped.
    """
    ignored = np.zeros(len(record.boxes), np.bool_)
    dropped = np.zeros(len(record.boxes), np.bool_)
    for flag, treatment in (
        (record.difficult, policy.difficult),
        (record.truncated, policy.truncated),
        (record.crowd, policy.crowd),
    ):
        if treatment == "ignore":
            ignored |= flag
        elif treatment == "drop":
            dropped |= flag
    return ~ignored & ~dropped, ignored & ~dropped


def labels_under(record: Record, policy: Policy = TRAINING) -> npt.NDArray[np.int64]:
    """Labels (G,) under a policy: 1..K ground truth, -1 ignored, 0 dropped."""
    truth, ignored = roles(record, policy)
    labels = np.where(truth, record.labels, 0)
    labels[ignored] = -1
    return labels


def training_labels(
    record: Record,
    difficult: Treatment = TRAINING.difficult,
    truncated: Treatment = TRAINING.truncated,
    crowd: Treatment = TRAINING.crowd,
) -> npt.NDArray[np.int64]:
    """Labels (G,) as training sees them: 1..K, -1 to ignore, 0 for what is as if not annotated."""
    return labels_under(record, Policy(difficult, truncated, crowd))
