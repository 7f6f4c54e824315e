"""The box regression file: for each class, how features of one layer move a region."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rcnnpipe.artifacts.store import Header, open_artifact, read_attribute, write_artifact
from rcnnpipe.errors import ArtifactError


@dataclass(frozen=True)
class BboxReg:
    """Deltas are ``(scale * features @ weights[k] + bias[k]) @ inverse(whitening[k]) + mean[k]``.

    Attributes:
        header: of the file; ``header.classes[1:]`` are the K classes.
        layer: whose features it takes.
        scale: factor that brings that layer's features to mean norm 20.
        pixel: what ``boxes.decode`` needs: 1 where widths were measured as the authors do.
        weights: (K, D, 4) float32; zeros for a class without examples, whose boxes stay.
        bias: (K, 4) float32.
        mean: (K, 4) float64, of the targets.
        whitening: (K, 4, 4) float64, targets less their mean times this were regressed.
        report: name -> (K,) figures of the training; empty where the file has none.
    """

    header: Header
    layer: str
    scale: float
    pixel: float
    weights: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    mean: npt.NDArray[np.float64]
    whitening: npt.NDArray[np.float64]
    report: dict[str, np.ndarray[Any, Any]]

    def folded(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Weights (K, D, 4) and offsets (K, 4) that take features as stored straight to deltas."""
        inverse = np.linalg.inv(self.whitening)
        weights = np.einsum("kdi,kij->kdj", self.weights, self.scale * inverse, optimize=True)
        offsets = np.einsum("ki,kij->kj", self.bias, inverse) + self.mean
        return weights.astype(np.float32), offsets.astype(np.float32)


def write_bbox_reg(
    path: Path,
    header: Header,
    *,
    layer: str,
    scale: float,
    pixel: float,
    weights: npt.NDArray[np.float32],
    bias: npt.NDArray[np.float32],
    mean: npt.NDArray[np.float64],
    whitening: npt.NDArray[np.float64],
    report: Mapping[str, np.ndarray[Any, Any]],
) -> None:
    """Write a box regression file; the arguments are the attributes of :class:`BboxReg`."""
    arrays: dict[str, Any] = {
        "weights": weights,
        "bias": bias,
        "mean": mean,
        "whitening": whitening,
    }
    arrays |= {f"report/{name}": values for name, values in report.items()}
    write_artifact(path, header, arrays, {"layer": layer, "scale": scale, "pixel": pixel})


def read_bbox_reg(path: Path) -> BboxReg:
    """Read a box regression file.

    Raises:
        ArtifactError: it is missing, damaged or something else.
    """
    with open_artifact(path, "bbox-reg") as (header, file):
        regression = BboxReg(
            header=header,
            layer=str(file.attrs["layer"]),
            scale=float(read_attribute(file, "scale")),
            pixel=float(read_attribute(file, "pixel")),
            weights=file["weights"][()],
            bias=file["bias"][()],
            mean=file["mean"][()],
            whitening=file["whitening"][()],
            report={name: node[()] for name, node in file.get("report", {}).items()},
        )
    classes, width = len(header.classes) - 1, regression.weights.shape[1:2]
    shapes = {"weights": (*width, 4), "bias": (4,), "mean": (4,), "whitening": (4, 4)}
    for name, shape in shapes.items():
        found = getattr(regression, name).shape
        if found != (classes, *shape):
            raise ArtifactError(
                f"{path} is damaged ({name} {found} for {classes} classes); run "
                "rcnnpipe train-bbox-reg again"
            )
        if not np.isfinite(getattr(regression, name)).all():
            raise ArtifactError(
                f"{path} is damaged ({name} that are no numbers); run rcnnpipe train-bbox-reg again"
            )
    if (np.linalg.matrix_rank(regression.whitening) < 4).any():
        raise ArtifactError(
            f"{path} is damaged (whitening without an inverse); run rcnnpipe train-bbox-reg again"
        )
    return regression
