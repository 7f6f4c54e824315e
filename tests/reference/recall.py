"""The greedy one-to-one rule of py-faster-rcnn's evaluate_recall, with -1 for what is taken."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def overlaps_of(objects: Floats, proposals: Floats) -> Floats:
    """IoU (proposals, objects), pair by pair."""
    out = np.zeros((len(proposals), len(objects)))
    for r, a in enumerate(proposals):
        for g, b in enumerate(objects):
            width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
            if width > 0 and height > 0:
                areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
                out[r, g] = width * height / (areas - width * height)
    return out


def greedy(overlaps: Floats) -> Floats:
    """Overlap of each object with the proposal it is given."""
    overlaps = overlaps.copy()
    proposals, objects = overlaps.shape
    own = np.zeros(objects)
    for _ in range(min(proposals, objects)):
        best_proposal = overlaps.argmax(axis=0)
        best_overlap = overlaps.max(axis=0)
        g = int(best_overlap.argmax())
        own[g] = best_overlap[g]
        overlaps[best_proposal[g], :] = -1
        overlaps[:, g] = -1
    return own
