"""The mistakes a user can put right, each told in one sentence.

The command line prints the sentence and exits with 1; anything else that escapes is a bug. A
message says what is wrong, in which file or image, and what to do about it.
"""


class RcnnpipeError(Exception):
    """A mistake the user can put right. ``str(error)`` is one sentence without a traceback."""


class DataError(RcnnpipeError):
    """An image, an annotation or a data set recipe that cannot be used as it is."""


class ArtifactError(RcnnpipeError):
    """An artifact that is missing, damaged, of the wrong kind, or of another lineage."""


class SettingError(RcnnpipeError):
    """A setting whose value cannot work with the given inputs."""
