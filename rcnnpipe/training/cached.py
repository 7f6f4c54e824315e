"""Fine-tuning from a features file: batches of its rows, no image touched.

He et al. 2014, section 4.2: the convolutions stay as they are, so what the pyramid makes of each
region is computed once and the fully connected layers learn from that.

Vocabulary: R rows of the file, D features, B rows of a batch, K classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from rcnnpipe.ahead import ahead
from rcnnpipe.artifacts.features import Features
from rcnnpipe.errors import ArtifactError
from rcnnpipe.ragged import image_of_rows
from rcnnpipe.systems.rcnn import Sampling
from rcnnpipe.training.distributed import Ranks
from rcnnpipe.training.finetuning import Piece
from rcnnpipe.training.loop import Batch
from rcnnpipe.training.windows import (
    Draw,
    Integers,
    Windows,
    check_lists,
    draw_batch,
    image_ids_of,
    sampled_labels,
)

Array = np.ndarray[Any, Any]
_BLOCK_BYTES = 2**25  # of rows that are read at once
_NOT_FINITE = np.uint16(0x7C00)  # the exponent of infinity and of NaN in float16


def windows_of(features: Features, sampling: Sampling) -> Windows:
    """The rows of a features file as windows to learn from.

    Raises:
        DataError: a list that batches draw from would be empty.
    """
    labels = sampled_labels(features.overlap, features.labels, sampling).astype(np.int32)
    images = image_of_rows(features.offsets).astype(np.int32)
    windows = Windows(
        *(features.boxes, images, labels),
        *(np.flatnonzero(labels > 0), np.flatnonzero(labels == 0)),
    )
    check_lists(windows, sampling, len(features.image_ids))
    return windows


def gather_rows(features: Features, layer: str, rows: Integers) -> Array:
    """Some rows of a layer (n, D) float16, read in rising order.

    Args:
        features: an open file.
        layer: its layer.
        rows: (n,) rising, none twice.

    Raises:
        ArtifactError: some are no finite numbers.
    """
    width = features.layers[layer]
    found = np.empty((len(rows), width), np.float16)
    step = max(1, _BLOCK_BYTES // (2 * width))
    start = 0
    while start < len(rows):
        stop = int(np.searchsorted(rows, rows[start] + step))
        values = features.rows(layer, slice(int(rows[start]), int(rows[stop - 1]) + 1))
        found[start:stop] = values[rows[start:stop] - rows[start]]
        if ((found[start:stop].view(np.uint16) & _NOT_FINITE) == _NOT_FINITE).any():
            raise ArtifactError(
                f"{features.path} has features that are no finite numbers in layer '{layer}'; "
                "extract them again"
            )
        start = stop
    return found


class _Pool(NamedTuple):
    """What some iterations draw: their rows (n,) rising, and the values (n, D) of them."""

    rows: Integers
    values: Array


@dataclass(frozen=True)
class RowSource:
    """Batches of rows, any iteration by its number.

    Attributes:
        windows: of the whole file, see :func:`windows_of`.
        features: the open file.
        layer: whose values are learnt from.
        sampling: what a batch is.
        ranks: this process takes every ``world``-th row of a batch.
        seed: of the draws.
        accumulate: pieces in which a batch is computed.
        memory: bytes that rows read ahead may take. The draws do not depend on it: the file is read
            once for as many iterations as fit, or once for all where everything does.
    """

    windows: Windows
    features: Features
    layer: str
    sampling: Sampling
    ranks: Ranks
    seed: int = 0
    accumulate: int = 1
    memory: int = 2**30

    @property
    def iterations_at_once(self) -> int:
        """How many iterations' rows fit into half of the memory, at least one."""
        row = 2 * self.features.layers[self.layer]
        return max(1, self.memory // 2 // (row * self.sampling.batch_size))

    def batches(self, start: int, stop: int) -> Iterator[Batch[Piece]]:
        """The batches of iterations ``start`` up to, not including, ``stop``."""
        if start >= stop:
            return
        step = self.iterations_at_once
        drawn_from = len(self.windows.foreground) + len(self.windows.background)
        if drawn_from <= step * self.sampling.batch_size:
            # All that can be drawn fits: the file is read once.
            rows = np.sort(np.concatenate((self.windows.foreground, self.windows.background)))
            pools: Iterator[_Pool] = iter([_Pool(rows, self._values(rows))])
            spans = [range(start, stop)]
        else:
            spans = [range(i, min(i + step, stop)) for i in range(start, stop, step)]
            # The next pool is read while this one is learnt from.
            pools = ahead(self._pool, spans, workers=1, depth=1)
        for span, pool in zip(spans, pools, strict=True):
            for iteration in span:
                yield self._batch(self._draw(iteration), pool)

    def _draw(self, iteration: int) -> Draw:
        return draw_batch(self.windows, self.sampling, self.seed, iteration)

    def _share(self, draw: Draw) -> Draw:
        return draw.part(self.ranks.rank, self.ranks.world)

    def _pool(self, iterations: Sequence[int]) -> _Pool:
        rows = np.unique(np.concatenate([self._share(self._draw(i)).rows for i in iterations]))
        return _Pool(rows, self._values(rows))

    def _values(self, rows: Integers) -> Array:
        return gather_rows(self.features, self.layer, rows)

    def _batch(self, draw: Draw, pool: _Pool) -> Batch[Piece]:
        share, device = self._share(draw), self.ranks.device
        pieces = []
        for number in range(self.accumulate):
            rows = share.part(number, self.accumulate).rows
            values = torch.from_numpy(pool.values[np.searchsorted(pool.rows, rows)])
            labels = torch.from_numpy(self.windows.labels[rows]).long()
            pieces.append((values.to(device).float(), labels.to(device)))
        return Batch(image_ids_of(self.windows, draw, self.features.image_ids), pieces)
