"""A model's tensors in a safetensors file, which other tools read."""

import json
from pathlib import Path

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
    try:
        from safetensors.numpy import save
    except ImportError:
        raise SettingError(
            "--format safetensors needs one more package; run pip install 'rcnnpipe[safetensors]'"
        ) from None
    about = {
        "architecture": model.architecture,
        "classes": model.header.classes,
        "settings": model.header.settings,
        "id": model.header.id,
    }
    # One entry, because the package writes several in another order each time.
    metadata = {"rcnnpipe": json.dumps(about, sort_keys=True)}
    tensors = {name: np.asarray(values, order="C") for name, values in model.tensors.items()}
    with whole_file(path) as partial:
        partial.write_bytes(save(tensors, metadata))  # its own writing hides what went wrong
    return len(tensors)
