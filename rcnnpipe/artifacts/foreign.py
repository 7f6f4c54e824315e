"""Files that are no artifacts but go into one: weights made elsewhere. Known by their bytes."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from rcnnpipe.errors import ArtifactError


@dataclass(frozen=True)
class ForeignFile:
    """An input without a history.

    Attributes:
        id: hash of its bytes.
        lineage: nothing is known of it.
    """

    id: str
    lineage: tuple[str, ...] = ()


def foreign_file(path: Path) -> ForeignFile:
    """What a file of another program is, for the header of what is made from it.

    Raises:
        ArtifactError: there is no such file.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist or is no file")
    with path.open("rb") as file:
        return ForeignFile(hashlib.file_digest(file, "sha256").hexdigest()[:16])
