"""Reading box files of other programs into arrays; nothing here knows what the numbers mean."""

import json
import math
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rcnnpipe.errors import DataError, one_line

Values = npt.NDArray[np.float64]
SUFFIXES = (".mat", ".json", ".npz")


@dataclass(frozen=True)
class BoxFile:
    """What a file holds: boxes by image name, or those of one image that it does not name.

    Attributes:
        by_name: image id or file name -> (R, 4 or 5).
        only: (R, 4 or 5), where the file names no image.
        continuous: the kind of file says x y w h, 0-based, continuous (COCO results).
    """

    by_name: Mapping[str, Values] = field(default_factory=dict)
    only: Values | None = None
    continuous: bool = False


def read_box_file(path: Path) -> BoxFile:
    """Read a .mat, .json or .npz file.

    - .mat (any version): cells ``boxes`` and ``images``, or a matrix ``boxes`` of one image.
    - .json: {image: [[4 or 5 numbers], ...]}, or COCO results [{image_id, bbox, score}, ...].
    - .npz: an array for each image under its name, or ``boxes``, ``offsets``, ``image_ids`` and
      perhaps ``scores``, or ``boxes`` (and ``scores``) of one image.

    Raises:
        DataError: of an unknown kind, damaged, or without boxes.
    """
    readers = {".mat": _read_mat, ".json": _read_json, ".npz": _read_npz}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path} is no box file; one of {', '.join(SUFFIXES)} is needed")
    try:
        return reader(path)
    except DataError:
        raise
    except MemoryError:
        raise DataError(f"{path} claims more than fits into memory; it is damaged") from None
    except Exception as error:  # the readers raise whatever they trip over
        reason = one_line(error) or type(error).__name__
        raise DataError(f"{path} cannot be read as {path.suffix} boxes ({reason})") from error


def _numbers(values: Any, path: Path, name: str) -> Values:
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise DataError(
            f"image '{name}' in {path}: boxes are not rows of 4 or 5 numbers each"
        ) from None


def _named(names: Iterable[str], boxes: Iterable[Any], path: Path) -> BoxFile:
    found: dict[str, Values] = {}
    for name, values in zip(names, boxes, strict=True):
        if name in found:
            raise DataError(f"{path} holds image '{name}' twice")
        found[name] = _numbers(values, path, name)
    return BoxFile(found)


def _read_json(path: Path) -> BoxFile:
    content = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(content, dict):
        return _named(map(str, content), (v or np.empty((0, 4)) for v in content.values()), path)
    if not isinstance(content, list):
        raise DataError(f"{path} is neither a mapping of images nor a list of COCO results")
    rows: dict[str, list[list[float]]] = {}
    for number, entry in enumerate(content):
        try:
            row = [*entry["bbox"], entry.get("score", 0.0)]
            rows.setdefault(str(entry["image_id"]), []).append(row)
        except (AttributeError, KeyError, TypeError):
            raise DataError(
                f"{path}: entry {number} has no image_id and bbox, as COCO results have"
            ) from None
    return BoxFile({name: _numbers(row, path, name) for name, row in rows.items()}, None, True)


def _read_npz(path: Path) -> BoxFile:
    _check_claims(path)
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    if "boxes" not in arrays:
        return _named(arrays, arrays.values(), path)
    boxes = _numbers(arrays["boxes"], path, "boxes")
    if "scores" in arrays:
        boxes = np.column_stack((boxes, _numbers(arrays["scores"], path, "scores")))
    if "offsets" not in arrays or "image_ids" not in arrays:
        return BoxFile(only=boxes)
    offsets = arrays["offsets"].astype(np.int64)
    if offsets[0] != 0 or (np.diff(offsets) < 0).any() or offsets[-1] != len(boxes):
        raise DataError(f"{path}: offsets do not rise from 0 to the {len(boxes)} boxes")
    return _named(map(str, arrays["image_ids"]), np.split(boxes, offsets[1:-1]), path)


def _check_claims(path: Path) -> None:
    """Refuse arrays larger than their compressed bytes can hold, before memory is taken."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            with archive.open(entry) as stream:
                version = np.lib.format.read_magic(stream)
                reader = (
                    np.lib.format.read_array_header_1_0
                    if version == (1, 0)
                    else np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = reader(stream)
            # Deflate shrinks 1032-fold at most.
            if math.prod(shape) * dtype.itemsize > 1040 * entry.compress_size + 4096:
                raise DataError(f"{path}: array {entry.filename} claims more than the file holds")


def _read_mat(path: Path) -> BoxFile:
    with path.open("rb") as file:
        if file.read(10) == b"MATLAB 7.3":
            return _read_mat_73(path)
    from scipy.io import loadmat

    content = loadmat(path, appendmat=False)
    boxes = content.get("boxes", content.get("all_boxes"))
    if boxes is None:
        names = ", ".join(name for name in content if not name.startswith("__")) or "nothing"
        raise DataError(f"{path} has no variable 'boxes' (it holds {names})")
    if boxes.dtype != object:
        return BoxFile(only=_numbers(boxes, path, "boxes"))
    if "images" not in content:
        raise DataError(f"{path} has boxes in cells, but no 'images' to say of which image")
    images = ["".join(map(str, np.ravel(cell))) for cell in np.ravel(content["images"])]
    return _paired(images, [_or_none(cell) for cell in np.ravel(boxes)], path)


def _read_mat_73(path: Path) -> BoxFile:
    """MATLAB 7.3 files are HDF5: cells are references, text is UTF-16, matrices are transposed."""
    import h5py

    with h5py.File(path, "r") as file:
        if "boxes" not in file:
            raise DataError(f"{path} has no variable 'boxes' (it holds {', '.join(file)})")
        boxes = file["boxes"]
        if boxes.dtype != h5py.ref_dtype:
            return BoxFile(only=_numbers(boxes[()].T, path, "boxes"))
        if "images" not in file:
            raise DataError(f"{path} has boxes in cells, but no 'images' to say of which image")
        names = [
            "".join(map(chr, np.ravel(file[cell][()]))) for cell in np.ravel(file["images"][()])
        ]
        found = []
        for cell in np.ravel(boxes[()]):
            matrix = file[cell]
            found.append(np.empty((0, 4)) if "MATLAB_empty" in matrix.attrs else matrix[()].T)
        return _paired(names, found, path)


def _or_none(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """MATLAB's empty matrix is 0 x 0."""
    return values if values.size else np.empty((0, 4))


def _paired(names: list[str], boxes: list[Any], path: Path) -> BoxFile:
    if len(names) != len(boxes):
        raise DataError(f"{path} has {len(names)} images, but boxes of {len(boxes)}")
    return _named(names, boxes, path)
