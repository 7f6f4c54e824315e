"""What every file with rows per image shares: ids, sizes and offsets, and their checks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
import numpy.typing as npt

from rcnnpipe.artifacts.store import Header, read_strings
from rcnnpipe.errors import ArtifactError

Images = tuple[tuple[str, ...], npt.NDArray[np.int64], npt.NDArray[np.int64]]


def read_images(file: Mapping[str, Any]) -> Images:
    """Image ids (N), sizes (N, 2) as height and width, and offsets (N + 1,) of an open file."""
    return read_strings(file["image_ids"]), file["sizes"][()], file["offsets"][()]


def read_rows(
    path: Path,
    file: Mapping[str, Any],
    header: Header,
    layout: Mapping[str, tuple[Any, Sequence[int]]],
) -> tuple[Images, dict[str, Any]]:
    """Ids, sizes and offsets, and all columns of a layout, checked.

    Args:
        path, file, header: the open file.
        layout: name of a column -> (dtype, shape of one row), as a RowWriter writes them.

    Raises:
        ArtifactError: columns of other types, shapes or lengths; boxes or scores that are no
            numbers, inverted boxes, labels that stand for no class.
    """
    layout = {"image_ids": (np.bytes_, ()), "sizes": (np.int64, (2,)), **layout}
    layout["offsets"] = (np.int64, ())
    for name, (dtype, row_shape) in layout.items():
        node = file[name]
        found = (node.dtype.kind, node.shape[1:]) if isinstance(node, h5py.Dataset) else None
        if found != (np.dtype(dtype).kind, tuple(row_shape)) or node.ndim == 0:
            raise _damaged(path, f"'{name}' has another type or shape than it should")
    images = read_images(file)
    names = [name for name in layout if name not in ("image_ids", "sizes", "offsets")]
    columns = {name: file[name][()] for name in names}
    check_ragged(path, images[2], len(images[0]), columns)
    if len(images[1]) != len(images[0]):
        raise _damaged(path, f"{len(images[0])} images, but {len(images[1])} sizes")
    corners = columns["boxes"]
    if (corners[:, 2:] < corners[:, :2]).any():
        raise _damaged(path, "boxes whose second corner lies before the first")
    if np.isnan(columns.get("scores", np.empty(0))).any():
        raise _damaged(path, "scores that are no numbers")
    labels = columns.get("labels", np.empty(0))
    if ((labels < -1) | (labels >= max(1, len(header.classes)))).any():
        raise _damaged(path, "labels that stand for no class")
    return images, columns


def _damaged(path: Path, cause: str) -> ArtifactError:
    return ArtifactError(f"{path} is damaged ({cause}); delete it and make it again")


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
        end = offsets[-1] if len(offsets) else "nowhere"
        raise _damaged(path, f"columns of {lengths} rows, {images} images, offsets to {end}")
    boxes = columns.get("boxes")
    if isinstance(boxes, np.ndarray) and not np.isfinite(boxes).all():
        raise _damaged(path, "boxes that are no numbers")


class Imaged(Protocol):
    """Something with images: a data set, or a file with rows for each."""

    @property
    def image_ids(self) -> tuple[str, ...]:
        """Ids (N) of the images."""

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Sizes (N, 2) as height, width."""


@dataclass(frozen=True)
class ImageList:
    """Images alone, without their rows.

    Attributes:
        image_ids: (N).
        sizes: (N, 2) height, width.
    """

    image_ids: tuple[str, ...]
    sizes: npt.NDArray[np.int64]


def rows_for_images(path: Path, stored: Imaged, wanted: Imaged, what: str) -> list[int]:
    """For each wanted image, its number in a file; the file may hold more, or another order.

    Args:
        path: of the file, for messages.
        stored: the file's images.
        wanted: those whose numbers are needed.
        what: the file has of them, "proposals".

    Raises:
        ArtifactError: the file lacks some of them, or has others of the same ids, which is told by
            their size; names the first.
    """
    numbers = {image_id: number for number, image_id in enumerate(stored.image_ids)}
    missing = [image_id for image_id in wanted.image_ids if image_id not in numbers]
    if missing:
        raise ArtifactError(
            f"{path} has no {what} for {len(missing)} of {len(wanted.image_ids)} images, the first "
            f"is '{missing[0]}'; make it for the same data and split"
        )
    rows = [numbers[image_id] for image_id in wanted.image_ids]
    others = np.flatnonzero((stored.sizes[rows] != wanted.sizes).any(axis=1))
    if len(others):
        number = int(others[0])
        height, width = stored.sizes[rows[number]].tolist()
        raise ArtifactError(
            f"{path} has {what} for a {width} x {height} image '{wanted.image_ids[number]}', but it"
            f" is {wanted.sizes[number, 1]} x {wanted.sizes[number, 0]}; make it for the same data"
        )
    return rows
