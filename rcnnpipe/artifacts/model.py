"""The model file: tensors as datasets, and the settings that rebuild the network. No pickle."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rcnnpipe.artifacts.store import Header, open_artifact, read_attribute, write_artifact
from rcnnpipe.errors import ArtifactError

Array = np.ndarray[Any, Any]
_NUMBERS = "biuf"  # kinds of dtype


@dataclass(frozen=True)
class Model:
    """A network's weights and how to build it.

    Attributes:
        header: of the file; ``header.classes`` are the outputs of its classifier.
        architecture: settings from which the network is built.
        tensors: state-dict name -> values.
        curves: name -> one value for each step or epoch, as training recorded them.
    """

    header: Header
    architecture: dict[str, Any]
    tensors: dict[str, Array]
    curves: dict[str, Array]


def write_model(
    path: Path,
    header: Header,
    architecture: Mapping[str, Any],
    tensors: Mapping[str, Array],
    curves: Mapping[str, Array] | None = None,
) -> None:
    """Write a model; names of tensors keep their dots ("features.0.weight")."""
    arrays = {f"tensors/{name}": values for name, values in tensors.items()}
    arrays |= {f"curves/{name}": values for name, values in (curves or {}).items()}
    write_artifact(path, header, arrays, {"architecture": dict(architecture)})


def read_model(path: Path) -> Model:
    """Read a whole model file.

    Raises:
        ArtifactError: it is missing, damaged or something else.
    """
    with open_artifact(path, "model") as (header, file):
        tensors = {name: node[()] for name, node in file["tensors"].items()}
        for name, values in tensors.items():
            if np.asarray(values).dtype.kind not in _NUMBERS:
                raise ArtifactError(
                    f"{path} is damaged (tensor {name} holds no numbers); make it again"
                )
        return Model(
            header=header,
            architecture=read_attribute(file, "architecture"),
            tensors=tensors,
            curves={name: node[()] for name, node in file.get("curves", {}).items()},
        )
