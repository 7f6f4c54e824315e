"""The features file: for each region, what the network made of it, and what objects it overlaps.

It is large, so it is opened, and read by slices of rows. Within an image the rows of the ground
truth come first, then the proposals (as in the authors' roidb).
"""

import logging
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from rcnnpipe.artifacts.chunks import read_rows_of
from rcnnpipe.artifacts.columns import check_ragged, read_rows
from rcnnpipe.artifacts.store import Header, open_artifact
from rcnnpipe.errors import ArtifactError

_log = logging.getLogger(__name__)

# Columns that a network with a pyramid adds: (dtype, shape of one row).
PLACES = {"scale": (np.int64, ()), "cells": (np.int64, (4,))}


def region_columns(classes: int) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """The columns besides the layers, as a RowWriter needs them, for K = ``classes`` classes."""
    return {
        "boxes": (np.float32, (4,)),
        "is_truth": (np.bool_, ()),
        "difficult": (np.bool_, ()),
        "labels": (np.int64, ()),
        "overlap": (np.float32, ()),
        "overlaps": (np.float32, (classes,)),
        "truth": (np.int64, ()),
    }


@dataclass(frozen=True)
class Features:
    """An open features file of N images, R regions, K classes.

    Attributes:
        path, header: of the file.
        image_ids: (N).
        sizes: (N, 2) height, width.
        offsets: (N + 1,).
        boxes: (R, 4) float32.
        is_truth: (R,) bool, rows that are ground truth.
        difficult: (R,) bool, ground truth that is marked difficult.
        labels: (R,) int64, class of the object that overlaps the region most; 0 for none.
        overlap: (R,) float32, IoU with that object.
        overlaps: (R, K) float32, largest IoU with an object of each class; column k - 1 is k.
        truth: (R,) int64, row of that object within the same image, -1 for none.
        scale, cells: (R,) and (R, 4) where on a map each region was pooled, by a network with a
            pyramid (see rcnnpipe.extraction.maps); None by others.
        layers: name -> D, length of one region's features.
    """

    path: Path
    header: Header
    image_ids: tuple[str, ...]
    sizes: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float32]
    is_truth: npt.NDArray[np.bool_]
    difficult: npt.NDArray[np.bool_]
    labels: npt.NDArray[np.int64]
    overlap: npt.NDArray[np.float32]
    overlaps: npt.NDArray[np.float32]
    truth: npt.NDArray[np.int64]
    scale: npt.NDArray[np.int64] | None
    cells: npt.NDArray[np.int64] | None
    layers: dict[str, int]
    file: h5py.File
    pool: Executor

    def layer(self, name: str) -> h5py.Dataset:
        """The (R, D) float16 dataset of one layer.

        Raises:
            ArtifactError: the file has no such layer; lists those it has.
        """
        if name not in self.layers:
            raise ArtifactError(
                f"{self.path} has no layer '{name}', only {', '.join(self.layers)}; run "
                f"rcnnpipe extract-features with --layers {name}"
            )
        return self.file[f"layers/{name}"]

    def warn_of_random_scales(self) -> None:
        """Tell that what learns from these features will meet others in detection."""
        if self.header.settings.get("random-scales"):
            _log.warning(
                "%s was made with --random-scales, which is for finetune; detect uses the scales "
                "of the model, so extract features without it",
                self.path,
            )

    def require_length(self, name: str, length: int) -> None:
        """Make sure that a layer is there, and as long as what is to run on it needs.

        Raises:
            ArtifactError: it is not.
        """
        self.layer(name)
        if self.layers[name] != length:
            raise ArtifactError(
                f"{self.path} has {self.layers[name]} features of a region in layer '{name}', but "
                f"the model makes {length}; extract them again"
            )

    def rows(self, name: str, rows: slice) -> npt.NDArray[np.float16]:
        """Features (r, D) of a slice of rows of one layer."""
        return read_rows_of(self.layer(name), rows, self.pool)

    def norms(self, name: str) -> npt.NDArray[np.float32]:
        """L2 norm (R,) of each region's features in one layer."""
        self.layer(name)
        values: npt.NDArray[np.float32] = self.file[f"norms/{name}"][()]
        return values

    def mean_norm(self, name: str) -> float:
        """Mean L2 norm of a layer over 200 random images x 200 random regions of each."""
        self.layer(name)
        return float(self.file.attrs[f"mean_norm/{name}"])


@contextmanager
def open_features(path: Path, workers: int = 1) -> Iterator[Features]:
    """Open a features file; columns are read at once, layers when asked for.

    Args:
        path: the file.
        workers: threads that unpack layers.

    Raises:
        ArtifactError: it is missing, damaged or something else.
    """
    pool = ThreadPoolExecutor(max(1, workers))
    with pool, open_artifact(path, "features") as (header, file):
        layout = region_columns(len(header.classes) - 1)
        places = {name: spec for name, spec in PLACES.items() if name in file}
        (image_ids, sizes, offsets), columns = read_rows(path, file, header, layout | places)
        layers = {name: _length(path, name, node) for name, node in file["layers"].items()}
        nodes = {f"layers/{name}": file[f"layers/{name}"] for name in layers}
        check_ragged(path, offsets, len(image_ids), nodes)
        rows = np.repeat(np.diff(offsets), np.diff(offsets))  # (R,) of the same image
        if ((columns["truth"] < -1) | (columns["truth"] >= rows)).any():
            raise ArtifactError(f"{path} is damaged ('truth' leaves its image); make it again")
        yield Features(
            path=path,
            header=header,
            image_ids=image_ids,
            sizes=sizes,
            offsets=offsets,
            layers=layers,
            file=file,
            pool=pool,
            scale=columns.pop("scale", None),
            cells=columns.pop("cells", None),
            **columns,
        )


def _length(path: Path, name: str, node: Any) -> int:
    """How many features a layer has."""
    if not isinstance(node, h5py.Dataset) or node.ndim != 2 or node.dtype.kind != "f":
        raise ArtifactError(f"{path} is damaged (layer '{name}' is no matrix); make it again")
    return int(node.shape[1])
