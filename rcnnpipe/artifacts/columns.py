"""What every file with rows per image shares: ids, sizes and offsets, and their checks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from rcnnpipe.artifacts.store import read_strings
from rcnnpipe.errors import ArtifactError

Images = tuple[tuple[str, ...], npt.NDArray[np.int64], npt.NDArray[np.int64]]


def read_images(file: h5py.File) -> Images:
    """Image ids (N), sizes (N, 2) as height and width, and offsets (N + 1,) of an open file."""
    return read_strings(file["image_ids"]), file["sizes"][()], file["offsets"][()]


def check_ragged(
    path: Path,
    offsets: npt.NDArray[np.int64],
    images: int,
    columns: Mapping[str, np.ndarray[Any, Any] | h5py.Dataset],
) -> None:
    """Make sure that offsets and columns belong together before rows are taken by them.

    Raises:
        ArtifactError: they do not, or boxes are not finite.
    """
    lengths = {name: len(column) for name, column in columns.items()}
    fits = (
        len(offsets) == images + 1
        and offsets[0] == 0
        and bool((np.diff(offsets) >= 0).all())
        and set(lengths.values()) <= {int(offsets[-1])}
    )
    if not fits:
        raise ArtifactError(
            f"{path} is damaged (columns of {lengths} rows, {images} images, offsets to "
            f"{offsets[-1] if len(offsets) else 'nowhere'}); delete it and make it again"
        )
    boxes = columns.get("boxes")
    if isinstance(boxes, np.ndarray) and not np.isfinite(boxes).all():
        raise ArtifactError(f"{path} is damaged (boxes that are no numbers); make it again")


def rows_for_images(
    path: Path, ids: tuple[str, ...], needed: tuple[str, ...], what: str
) -> list[int]:
    """For each needed image, its number in a file; the file may hold more, or another order.

    Raises:
        ArtifactError: the file lacks some of them; names the first.
    """
    numbers = {image_id: number for number, image_id in enumerate(ids)}
    missing = [image_id for image_id in needed if image_id not in numbers]
    if missing:
        raise ArtifactError(
            f"{path} has no {what} for {len(missing)} of {len(needed)} images, the first is "
            f"'{missing[0]}'; make it for the same data and split"
        )
    return [numbers[image_id] for image_id in needed]
