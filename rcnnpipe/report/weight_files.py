"""A model's tensors in a safetensors file, which other tools read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rcnnpipe.artifacts.model import Model
from rcnnpipe.errors import SettingError
from rcnnpipe.report.files import whole_file


def write_safetensors(path: Path, model: Model) -> int:
    """Write the tensors under their names; how to rebuild the network is in the metadata.

    The metadata's one entry, ``rcnnpipe``, is JSON of architecture, classes, settings and id.

    Returns:
        The number of tensors.

    Raises:
        SettingError: the package safetensors is not installed.
    """
    return _write(path, model, model.tensors, {})


def write_torchvision(path: Path, model: Model) -> int:
    """Write a detector's tensors by the names of torchvision's, which load into its ``FasterRCNN``.

    The metadata also say how it is built there, under ``torchvision``.

    Returns:
        The number of tensors.

    Raises:
        SettingError: the model is no detector that torchvision has the like of, or the package
            safetensors is not installed.
    """
    from rcnnpipe.models.detector import build_detector
    from rcnnpipe.models.torchvision_detectors import arguments, exported_tensors

    if "detector" not in model.architecture:
        raise SettingError(
            "--format torchvision is for detectors with a feature pyramid, and this model is a "
            "network alone, which goes by --format safetensors, under torchvision's names"
        )
    detector = build_detector(model.architecture, model.tensors)
    return _write(path, model, exported_tensors(detector), {"torchvision": arguments(detector)})


def _write(path: Path, model: Model, values: Mapping[str, Any], more: dict[str, Any]) -> int:
    try:
        from safetensors.numpy import save
    except ImportError:
        raise SettingError(
            "a safetensors file needs one more package; run pip install 'rcnnpipe[safetensors]'"
        ) from None
    about = more | {
        "architecture": model.architecture,
        "classes": model.header.classes,
        "settings": model.header.settings,
        "id": model.header.id,
    }
    # One entry, because the package writes several in another order each time.
    metadata = {"rcnnpipe": json.dumps(about, sort_keys=True)}
    tensors = {name: np.asarray(value, order="C") for name, value in values.items()}
    with whole_file(path) as partial:
        partial.write_bytes(save(tensors, metadata))  # its own writing hides what went wrong
    return len(tensors)
