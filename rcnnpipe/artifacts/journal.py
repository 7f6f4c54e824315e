"""The journal of unfinished work: a file of compressed chunks for each column, and a lock."""

import fcntl
import logging
import struct
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np
import numpy.typing as npt

from rcnnpipe.errors import ArtifactError

_log = logging.getLogger(__name__)
Array = np.ndarray[Any, Any]
_CHUNK_BYTES = 2**19  # large enough to compress well, small enough to read a few rows quickly
_FRAME = struct.Struct("<Q")  # the length that stands before each chunk in a journal file


class JournalColumn:
    """One column's journal: complete chunks in a file, the rows of the unfinished one in memory.

    Attributes:
        name, dtype, row_shape: of the column.
        chunk_rows: rows of a complete chunk.
        tail: rows that do not fill a chunk yet.
    """

    def __init__(
        self, folder: Path, name: str, dtype: npt.DTypeLike, row_shape: Sequence[int]
    ) -> None:
        """Open the column's file, with nothing of it counting yet."""
        self.name = name
        self.dtype = np.dtype(dtype)
        self.row_shape = tuple(row_shape)
        row_bytes = max(1, self.dtype.itemsize * int(np.prod(self.row_shape, dtype=np.int64)))
        self.chunk_rows = max(1, min(4096, _CHUNK_BYTES // row_bytes))
        self.path = folder / f"{name.replace('/', '@')}.chunks"
        self.tail = np.empty((0, *self.row_shape), self.dtype)
        self._ends = [0]  # where each chunk ends in the file, after the beginning
        self.file: BinaryIO = self.path.open("ab")

    def cut(self, rows: Array) -> list[Array]:
        """Take rows in; return the chunks that are now complete."""
        self.tail = np.concatenate((self.tail, rows))
        complete = len(self.tail) // self.chunk_rows
        chunks = [self.tail[i * self.chunk_rows :][: self.chunk_rows] for i in range(complete)]
        self.tail = self.tail[complete * self.chunk_rows :].copy()
        return chunks

    @property
    def chunks(self) -> int:
        """How many complete chunks the file holds."""
        return len(self._ends) - 1

    def append(self, packed: bytes) -> None:
        """Write the next complete chunk, compressed."""
        self.file.write(_FRAME.pack(len(packed)))
        self.file.write(packed)
        self._ends.append(self._ends[-1] + _FRAME.size + len(packed))

    def packed(self) -> Iterator[bytes]:
        """The complete chunks in order, compressed."""
        self.file.flush()
        with self.path.open("rb") as file:
            for start, end in pairwise(self._ends):
                file.seek(start + _FRAME.size)
                yield file.read(end - start - _FRAME.size)

    def length_of(self, chunks: int) -> int:
        """Bytes of the file that hold the first so many chunks."""
        return self._ends[chunks]

    def restore(self, length: int, tail: Array) -> None:
        """Take up what an earlier run has left: so many bytes of the file, and the tail.

        Raises:
            ValueError: the file does not hold that.
        """
        ends = [0]
        with self.path.open("rb") as file:
            while ends[-1] < length:
                file.seek(ends[-1])
                frame = file.read(_FRAME.size)
                if len(frame) < _FRAME.size:
                    raise ValueError(f"{self.path.name} is too short")
                ends.append(ends[-1] + _FRAME.size + _FRAME.unpack(frame)[0])
        if ends[-1] != length or self.path.stat().st_size < length:
            raise ValueError(f"{self.path.name} is too short")
        if tail.dtype != self.dtype or tail.shape[1:] != self.row_shape:
            raise ValueError(f"{self.path.name} does not fit its column")
        self.file.truncate(length)
        self._ends, self.tail = ends, tail


def locked(file: Path, path: Path) -> TextIO:
    """Hold a lock until the file is closed or this process ends, however it ends.

    Args:
        file: what is locked; made when it is missing, and not changed.
        path: what is being written, for the message.
    """
    held = file.open("a")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held.close()
        raise ArtifactError(f"another process is writing {path}; wait for it or stop it") from None
    return held


def clear_if_empty(partial: Path) -> None:
    """Remove a folder of unfinished work, unless that of other settings stands there as well."""
    if not any(partial.iterdir()):
        partial.rmdir()


def tell_of_others(folder: Path) -> None:
    """Name unfinished work on the same file with other settings or inputs: it stays until asked.

    Folders begin with an artifact's id; those of the same id are shares of this very work, by other
    ranks or otherwise compressed. What another process has locked is being worked at.
    """
    own = folder.name.partition("-")[0]
    others = sorted(one for one in folder.parent.glob("*/") if not one.name.startswith(own))
    left = [f"{one}/" for one in others if not _is_locked(one / "lock")]
    if left:
        _log.info(
            "unfinished work of other settings or inputs stays in %s; run with those to go on with "
            "it, or remove it",
            ", ".join(left),
        )


def _is_locked(file: Path) -> bool:
    try:
        locked(file, file).close()
    except ArtifactError:
        return True
    return False
