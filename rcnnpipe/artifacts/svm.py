"""The SVM file: a linear scorer for each class, for features of one layer."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rcnnpipe.artifacts.store import Header, open_artifact, read_attribute, write_artifact
from rcnnpipe.errors import ArtifactError


@dataclass(frozen=True)
class Svm:
    """Scores are ``scale * features @ weights.T + bias``.

    Attributes:
        header: of the file; ``header.classes[1:]`` are the K classes.
        layer: whose features they score.
        scale: factor that brings that layer's features to mean norm 20.
        weights: (K, D) float32.
        bias: (K,) float32; -inf, with weights of zero, for a class that could not be trained.
        report: name -> (K,) figures of the training; empty where the file has none.
    """

    header: Header
    layer: str
    scale: float
    weights: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    report: dict[str, np.ndarray[Any, Any]]


def write_svm(
    path: Path,
    header: Header,
    *,
    layer: str,
    scale: float,
    weights: npt.NDArray[np.float32],
    bias: npt.NDArray[np.float32],
    report: Mapping[str, np.ndarray[Any, Any]],
) -> None:
    """Write an SVM file; the arguments are the attributes of :class:`Svm`."""
    arrays = {"weights": weights, "bias": bias}
    arrays |= {f"report/{name}": values for name, values in report.items()}
    write_artifact(path, header, arrays, {"layer": layer, "scale": scale})


def read_svm(path: Path) -> Svm:
    """Read an SVM file.

    Raises:
        ArtifactError: it is missing, damaged or something else.
    """
    with open_artifact(path, "svm") as (header, file):
        svm = Svm(
            header=header,
            layer=str(file.attrs["layer"]),
            scale=float(read_attribute(file, "scale")),
            weights=file["weights"][()],
            bias=file["bias"][()],
            report={name: node[()] for name, node in file.get("report", {}).items()},
        )
    classes = len(header.classes) - 1
    if svm.weights.ndim != 2 or len(svm.weights) != classes or svm.bias.shape != (classes,):
        raise ArtifactError(
            f"{path} is damaged (weights {svm.weights.shape} and bias {svm.bias.shape} for "
            f"{classes} classes); run rcnnpipe train-svm again"
        )
    # A bias of -inf stands for a class without an SVM.
    if not np.isfinite(svm.weights).all() or np.isnan(svm.bias).any() or not svm.scale > 0:
        raise ArtifactError(
            f"{path} is damaged (values that are no numbers); run rcnnpipe train-svm again"
        )
    return svm
