"""Writing many rows per image, one image after another, so that a kill loses nothing.

Finished images are kept in a journal folder, ``NAME.partial/ID``: a file of compressed chunks for
each column, and a small state file that is replaced at once and says how much of them counts. A
later run with the same header goes on behind the last image. The artifact is put together from the
journal in one go, so its bytes do not depend on how often the work was interrupted. (An HDF5 file
whose writer is killed may be unreadable, and one that is appended to differs from one that is not.)
"""

import json
import logging
import os
import shutil
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any
from zipfile import BadZipFile

import h5py
import numpy as np
import numpy.typing as npt

from rcnnpipe.artifacts.codec import Codec, codec_named
from rcnnpipe.artifacts.journal import JournalColumn, clear_if_empty, locked, tell_of_others
from rcnnpipe.artifacts.newfile import new_file
from rcnnpipe.artifacts.store import (
    Header,
    encode_strings,
    partial_of,
    settle,
    write_array,
    write_attributes,
    write_header,
)
from rcnnpipe.ragged import offsets_of

_log = logging.getLogger(__name__)
Array = np.ndarray[Any, Any]
_SECONDS_BETWEEN_SAVES = 0.2


class RowWriter:
    """Appends the rows of one image after another to an artifact; use as a context manager.

    Leaving the block without :meth:`finish` keeps what is done for the next run.

    Attributes:
        done: images that are finished, by this run or by an earlier one that was stopped.
    """

    def __init__(
        self,
        path: Path,
        header: Header,
        columns: Mapping[str, tuple[npt.DTypeLike, Sequence[int]]],
        image_ids: Sequence[str],
        sizes: Array,
        *,
        compression: str = "gzip",
        compress_workers: int = 1,
    ) -> None:
        """Begin, or go on where an earlier run with the same header was stopped.

        Args:
            path: the artifact to write.
            header: its header; its id decides whether earlier work counts.
            columns: name -> (dtype, shape of one row).
            image_ids: ids (N) of all images, in the order they will be appended.
            sizes: (N, 2) their (height, width).
            compression: "gzip", "zstd" or "none", of the columns.
            compress_workers: threads that compress.
        """
        self._path, self._header = path, header
        self._image_ids, self._sizes = tuple(image_ids), np.asarray(sizes, np.int64).reshape(-1, 2)
        self._codec: Codec = codec_named(compression)
        self._folder = partial_of(path) / f"{header.id}-{compression}"
        self._folder.mkdir(parents=True, exist_ok=True)
        tell_of_others(self._folder)
        self._lock = locked(self._folder / "lock", path)
        self._columns = [JournalColumn(self._folder, name, *spec) for name, spec in columns.items()]
        self._counts: list[int] = []
        self._pool = ThreadPoolExecutor(max(1, compress_workers))
        self._limit = 4 * max(1, compress_workers) + 4
        self._waiting: deque[tuple[JournalColumn, Future[bytes]]] = deque()
        self._unsaved: deque[tuple[int, list[int], list[Array]]] = deque()
        self._saved_at = 0.0
        self._submitted = [0] * len(self._columns)
        self.done = 0
        self._resume()

    def __enter__(self) -> "RowWriter":
        """Nothing more to do: the journal is open."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Keep what is done, also when something went wrong."""
        try:
            # After a failed write (a full disk) the journal stays at the state last saved.
            if not isinstance(error, OSError):
                self._drain(0)
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._lock.close()
            for column in self._columns:
                column.file.close()

    def append(self, rows: Mapping[str, Array]) -> None:
        """Add the rows of image number ``done``: column name -> (n, ...), n the same for all."""
        counts = {name: len(values) for name, values in rows.items()}
        assert set(counts) == {column.name for column in self._columns}, sorted(counts)
        assert len(set(counts.values())) == 1, counts
        assert self.done < len(self._image_ids), "more images than announced"
        for number, column in enumerate(self._columns):
            values = np.ascontiguousarray(rows[column.name], column.dtype)
            for chunk in column.cut(values.reshape(len(values), *column.row_shape)):
                job = self._pool.submit(self._codec.pack, chunk)
                self._waiting.append((column, job))
                self._submitted[number] += 1
        self._counts.append(next(iter(counts.values())))
        self.done += 1
        tails = [column.tail for column in self._columns]
        self._unsaved.append((self.done, list(self._submitted), tails))
        self._drain(self._limit)

    def column(self, name: str) -> Array:
        """All rows appended so far of one (small) column, also those of an earlier run."""
        self._drain(0)
        column = next(column for column in self._columns if column.name == name)
        shape = (column.chunk_rows, *column.row_shape)
        parts = [self._codec.unpack(one, column.dtype, shape) for one in column.packed()]
        return np.concatenate((*parts, column.tail))

    def finish(
        self,
        arrays: Mapping[str, Array] | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """Put the artifact together, rename it to its place and clear the journal.

        Args:
            arrays: further datasets, name -> values.
            attributes: further root attributes.
        """
        assert self.done == len(self._image_ids), f"{self.done} of {len(self._image_ids)} images"
        self._drain(0)
        whole = self._folder / "whole.h5"
        with new_file(whole) as file:
            write_header(file, self._header)
            write_attributes(file, attributes or {})
            for name, values in (self.images() | {"offsets": self.offsets}).items():
                write_array(file, name, values)
            for column in self._columns:
                self._assemble(file, column)
            for name, values in (arrays or {}).items():
                write_array(file, name, values)
        settle(whole, self._path)
        self.clear()

    def clear(self) -> None:
        """Remove the journal: its rows are in a file now, or of no more use."""
        for column in self._columns:
            column.file.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        clear_if_empty(self._folder.parent)

    def images(self) -> dict[str, Array]:
        """The columns with one entry per image: ids and sizes."""
        return {"image_ids": encode_strings(self._image_ids), "sizes": self._sizes}

    @property
    def offsets(self) -> npt.NDArray[np.int64]:
        """Offsets (done + 1,) of the images appended so far."""
        return offsets_of(self._counts)

    def _assemble(self, file: h5py.File, column: JournalColumn) -> None:
        rows = column.chunks * column.chunk_rows + len(column.tail)
        shape = (rows, *column.row_shape)
        if rows == 0:
            file.create_dataset(column.name, shape, column.dtype, track_times=False)
            return
        chunk_shape = (min(rows, column.chunk_rows), *column.row_shape)
        dataset = file.create_dataset(
            *(column.name, shape, column.dtype),
            chunks=chunk_shape,
            track_times=False,
            **self._codec.hdf5_options,
        )
        rest = (0,) * len(column.row_shape)
        for number, packed in enumerate(column.packed()):
            dataset.id.write_direct_chunk((number * column.chunk_rows, *rest), packed)
        if len(column.tail):
            # HDF5 stores the last chunk in full size; what lies beyond the last row is zero.
            last = np.zeros(chunk_shape, column.dtype)
            last[: len(column.tail)] = column.tail
            first = (column.chunks * column.chunk_rows, *rest)
            dataset.id.write_direct_chunk(first, self._codec.pack(last))

    def _drain(self, limit: int) -> None:
        """Write compressed chunks in order until at most ``limit`` wait; then save the state."""
        while self._waiting and (len(self._waiting) > limit or self._waiting[0][1].done()):
            column, job = self._waiting.popleft()
            column.append(job.result())
        now = time.monotonic()
        if limit and now - self._saved_at < _SECONDS_BETWEEN_SAVES:
            return
        newest = None
        while self._unsaved and self._is_written(self._unsaved[0][1]):
            newest = self._unsaved.popleft()
        if newest is not None:
            self._save(*newest)
            self._saved_at = now

    def _is_written(self, chunks: list[int]) -> bool:
        pairs = zip(self._columns, chunks, strict=True)
        return all(column.chunks >= needed for column, needed in pairs)

    def _save(self, done: int, chunks_done: list[int], tails: list[Array]) -> None:
        lengths = []
        for column, chunks in zip(self._columns, chunks_done, strict=True):
            column.file.flush()
            # Chunks behind the saved image may already be in the file; resuming cuts them off.
            lengths.append(column.length_of(chunks))
        tail = self._folder / f"tail-{done}.npz"
        with tail.open("wb") as file:
            np.savez(file, counts=np.asarray(self._counts[:done]), **_numbered(tails))
        text = json.dumps({"done": done, "lengths": lengths})
        fresh = self._folder / "state.new"
        fresh.write_text(text)
        os.replace(fresh, self._folder / "state.json")
        for old in self._folder.glob("tail-*.npz"):
            if old != tail:
                old.unlink()

    def _resume(self) -> None:
        try:
            state = json.loads((self._folder / "state.json").read_text())
            with np.load(self._folder / f"tail-{state['done']}.npz", allow_pickle=False) as tails:
                counts = tails["counts"].tolist()
                rows = [tails[f"column{i}"] for i in range(len(self._columns))]
            if not len(counts) == state["done"] <= len(self._image_ids):
                raise ValueError(f"{state['done']} images in a set of {len(self._image_ids)}")
            for column, length, tail in zip(self._columns, state["lengths"], rows, strict=True):
                column.restore(length, tail)
        except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
            if not isinstance(error, FileNotFoundError):
                _log.info("earlier work on %s is damaged (%s): starting anew", self._path, error)
            for column in self._columns:
                column.restore(0, np.empty((0, *column.row_shape), column.dtype))
            return
        self._submitted = [column.chunks for column in self._columns]
        self._counts = counts
        self.done = state["done"]
        total = len(self._image_ids)
        _log.info("going on with %s: %d of %d images were done", self._path, self.done, total)


def _numbered(arrays: Sequence[Array]) -> dict[str, Any]:
    return {f"column{number}": array for number, array in enumerate(arrays)}
