"""Files that are whole or not there: written beside their place, synced, renamed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rcnnpipe.artifacts.store import partial_of, settle


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Where to write; it becomes ``path`` when the block ends well, and vanishes otherwise."""
    partial = partial_of(path)
    try:
        yield partial
        settle(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def whole_text(path: Path) -> Iterator[TextIO]:
    """An open UTF-8 text file that becomes ``path`` when the block ends well."""
    with whole_file(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        yield file
        file.flush()
