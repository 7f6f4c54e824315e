"""What happens to objects that are marked difficult, truncated or crowd: one policy, stated here.

==========  =========================================  ==========================================
flag        training                                   evaluation
==========  =========================================  ==========================================
difficult   kept (R-CNN's roidb has no filter)          ignored: neither found nor missed (VOC)
truncated   kept                                       counted
crowd       ignored: regions in it are no background   ignored, may absorb any number (COCO)
==========  =========================================  ==========================================
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from rcnnpipe.datasets.records import Record

# What can be done with flagged objects in training.
CHOICES = ("keep", "ignore", "drop")


def training_labels(
    record: Record, difficult: str = "keep", truncated: str = "keep", crowd: str = "ignore"
) -> npt.NDArray[np.int64]:
    """Labels (G,) as training sees them: 1..K, -1 to ignore, 0 for what is as if it were not there.

    Args:
        record: of the image.
        difficult, truncated, crowd: "keep", "ignore" or "drop" objects with this flag. Of several
            flags the strictest rule holds.
    """
    labels = record.labels.copy()
    flags: tuple[tuple[npt.NDArray[Any], str], ...] = (
        (record.difficult, difficult),
        (record.truncated, truncated),
        (record.crowd, crowd),
    )
    for value, rule in ((-1, "ignore"), (0, "drop")):
        for flag, chosen in flags:
            assert chosen in CHOICES, chosen
            if chosen == rule:
                labels[flag] = value
    return labels
