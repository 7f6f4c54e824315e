"""Rows for all images of an artifact, by one process or by several that torchrun started.

With several ranks each writes its share of the images as a file of its own beside the output; the
first rank puts them together in the order of the images. What comes out has the same bytes.
Images that are worked on together are one group, which one rank has: every ``world``-th group.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from rcnnpipe.artifacts.journal import clear_if_empty
from rcnnpipe.artifacts.rows import RowWriter
from rcnnpipe.artifacts.store import Header, open_artifact, partial_of
from rcnnpipe.devices import Rank, this_rank, wait_for_all
from rcnnpipe.progress import track
from rcnnpipe.ragged import rows_of

Rows = Mapping[str, np.ndarray[Any, Any]]
Columns = Mapping[str, tuple[npt.DTypeLike, Sequence[int]]]


class Finish(Protocol):
    """Called when all images are there, to finish the artifact."""

    def __call__(self, writer: RowWriter) -> None:
        """Call ``writer.finish`` with whatever belongs into the file besides."""


def write_rows(
    path: Path,
    header: Header,
    columns: Columns,
    image_ids: Sequence[str],
    sizes: np.ndarray[Any, Any],
    produce: Callable[[Sequence[int]], Iterable[Rows]],
    finish: Finish,
    label: str,
    compression: str = "gzip",
    compress_workers: int = 1,
    together: int = 1,
) -> None:
    """Write an artifact with rows per image; goes on where an earlier run was stopped.

    Args:
        path, header, columns, image_ids, sizes, compression, compress_workers: see
            :class:`RowWriter`.
        produce: given numbers of images, makes the rows of each of them, in that order.
        finish: finishes the whole.
        label: what is being done, for the progress bar.
        together: images that ``produce`` works on at once. Where an earlier run was stopped within
            such a group, the whole group is made again, so that its rows are the same.
    """
    rank = this_rank()
    options: dict[str, Any] = {"compression": compression, "compress_workers": compress_workers}

    def fill(writer: RowWriter, numbers: Sequence[int]) -> None:
        again = writer.done % together
        left = islice(produce(numbers[writer.done - again :]), again, None)
        for rows in track(left, len(numbers), label, done=writer.done):
            writer.append(rows)

    if rank.world > 1:
        groups = _Groups(len(image_ids), together, rank.world)
        _write_share(path, header, columns, image_ids, sizes, fill, rank, groups, options)
        wait_for_all()
    if rank.number == 0:
        with RowWriter(path, header, columns, image_ids, sizes, **options) as writer:
            if rank.world > 1:
                for rows in _gathered(path, header, columns, writer.done, groups):
                    writer.append(rows)
            else:
                fill(writer, range(len(image_ids)))
            finish(writer)
        if rank.world > 1:
            shutil.rmtree(_shares(path, rank.world, header))
            clear_if_empty(partial_of(path))
    wait_for_all()


class _Groups(NamedTuple):
    """How images are shared by ranks."""

    images: int
    together: int
    world: int

    def of(self, rank: int) -> list[int]:
        """The numbers of a rank's images."""
        return [n for n in range(self.images) if n // self.together % self.world == rank]


def _shares(path: Path, world: int, header: Header) -> Path:
    return partial_of(path) / f"{header.id}-of-{world}"


def _write_share(
    path: Path,
    header: Header,
    columns: Columns,
    image_ids: Sequence[str],
    sizes: np.ndarray[Any, Any],
    fill: Callable[[RowWriter, Sequence[int]], None],
    rank: Rank,
    groups: _Groups,
    options: Mapping[str, Any],
) -> None:
    share = _shares(path, rank.world, header) / f"{rank.number}.h5"
    if share.exists():
        return
    numbers = groups.of(rank.number)
    ids = [image_ids[number] for number in numbers]
    with RowWriter(share, header, columns, ids, np.asarray(sizes)[numbers], **options) as writer:
        fill(writer, numbers)
        writer.finish()


def _gathered(
    path: Path, header: Header, columns: Columns, first: int, groups: _Groups
) -> Iterator[Rows]:
    """Rows of the images from ``first`` on, from the shares of all ranks."""

    with ExitStack() as stack:
        places: dict[int, tuple[Any, slice]] = {}
        for number in range(groups.world):
            share = _shares(path, groups.world, header) / f"{number}.h5"
            _, file = stack.enter_context(open_artifact(share, header.kind))
            offsets = file["offsets"][()]
            places |= {n: (file, rows_of(offsets, i)) for i, n in enumerate(groups.of(number))}
        for image in range(first, groups.images):
            file, rows = places[image]
            yield {name: file[name][rows] for name in columns}
