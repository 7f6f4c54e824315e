"""Writing an HDF5 file so that a full disk is an error like any other.

HDF5 itself, when a write fails, keeps the file open, tries again as its handles are freed, and may
end the process with a segmentation fault. So it writes to an object that never fails it, and what
went wrong is raised once HDF5 is done.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py


class _Steadfast(io.FileIO):
    """A file that remembers the first failure to write and takes everything after it for done.

    Attributes:
        failure: what the system said; None while all is well.
    """

    failure: OSError | None = None

    def write(self, data: "memoryview | bytes", /) -> int:  # type: ignore[override]
        """Write all of it, or nothing once a write has failed."""
        left = memoryview(data).cast("B")
        length = len(left)
        try:
            while self.failure is None and len(left):
                left = left[super().write(left) :]
        except OSError as error:
            self.failure = error
        return length

    def truncate(self, size: int | None = None, /) -> int:
        """Set the length, unless a write has failed."""
        try:
            if self.failure is None:
                return super().truncate(size)
        except OSError as error:
            self.failure = error
        return size or 0


@contextmanager
def new_file(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file to write; it is complete when the block has ended.

    Raises:
        OSError: it cannot be written, for example because the disk is full; names the file.
    """
    with _Steadfast(path, "w+") as file:
        try:
            with h5py.File(file, "w") as held:
                yield held
        except Exception:
            if file.failure is None:
                raise
        if file.failure is not None:
            raise OSError(file.failure.errno, file.failure.strerror, str(path)) from None
