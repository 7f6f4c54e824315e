"""The mistakes a user can put right, each told in one sentence.

The command line prints the sentence and exits with 1; anything else that escapes is a bug. A
message says what is wrong, in which file or image, and what to do about it.
"""

from collections.abc import Sequence


class RcnnpipeError(Exception):
    """A mistake the user can put right. ``str(error)`` is one sentence without a traceback."""


class DataError(RcnnpipeError):
    """An image, an annotation or a data set recipe that cannot be used as it is."""


class ArtifactError(RcnnpipeError):
    """An artifact that is missing, damaged, of the wrong kind, or of another lineage."""


class SettingError(RcnnpipeError):
    """A setting whose value cannot work with the given inputs."""


def some_of(names: Sequence[str], most: int = 10) -> str:
    """Names for a message, at most so many of them, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def one_line(error: object) -> str:
    """What an error of a library says, without line breaks."""
    return " ".join(str(error).split())
