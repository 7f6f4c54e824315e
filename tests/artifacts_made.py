"""Small valid artifacts of every kind, for tests of what reads them.

Three images (the second without rows), two classes. Everything follows from ``seed``; keyword
arguments replace single columns, so that a test can plant the one fault it is about.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rcnnpipe.artifacts import detections, features, proposals
from rcnnpipe.artifacts.bbox_reg import write_bbox_reg
from rcnnpipe.artifacts.model import write_model
from rcnnpipe.artifacts.rows import RowWriter
from rcnnpipe.artifacts.store import Header, Identified, make_header
from rcnnpipe.artifacts.svm import write_svm
from rcnnpipe.ragged import offsets_of, rows_of

Array = np.ndarray[Any, Any]

CLASSES = ("background", "cat", "dog")
IMAGE_IDS = ("first", "empty", "third")
SIZES = np.array([(120, 160), (100, 100), (80, 200)])  # height, width
COUNTS = (4, 0, 6)
DEPTH = 32


def header(
    kind: str,
    classes: Sequence[str] = CLASSES,
    settings: Mapping[str, Any] | None = None,
    inputs: Mapping[str, Identified] | None = None,
) -> Header:
    """A header as a stage called ``made`` would write."""
    return make_header(
        kind,
        stage="made",
        version=1,
        settings=settings or {},
        inputs=inputs or {},
        classes=classes,
    )


def boxes_inside(
    sizes: Array, counts: Sequence[int], random: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Random boxes (R, 4) that lie in their images and have at least a few pixels."""
    extents = np.repeat(sizes[:, ::-1], counts, axis=0)  # (R, 2) width, height
    low = random.random((len(extents), 2)) * 0.5
    high = low + 0.1 + random.random((len(extents), 2)) * 0.35
    return np.concatenate((low * extents, high * extents), axis=1).astype(np.float32)


def falling(counts: Sequence[int], random: np.random.Generator) -> npt.NDArray[np.float32]:
    """Scores (R,) that fall within each image."""
    parts = [np.sort(random.random(count))[::-1] for count in counts]
    return np.concatenate([np.zeros(0), *parts]).astype(np.float32)


def write_rows(
    path: Path,
    header: Header,
    columns: Mapping[str, Any],
    values: Mapping[str, Array],
    *,
    image_ids: Sequence[str] = IMAGE_IDS,
    sizes: Array = SIZES,
    counts: Sequence[int] = COUNTS,
    arrays: Mapping[str, Array] | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> Path:
    """Write flat columns with a RowWriter, image by image."""
    offsets = offsets_of(counts)
    with RowWriter(path, header, columns, image_ids, sizes) as writer:
        for image in range(len(image_ids)):
            rows = rows_of(offsets, image)
            writer.append({name: column[rows] for name, column in values.items()})
        writer.finish(arrays or {}, attributes or {})
    return path


def make_proposals(path: Path, *, seed: int = 0, **replaced: Any) -> Path:
    """A proposals file; ``boxes``, ``scores``, ``header``, and what ``write_rows`` takes."""
    random = np.random.default_rng(seed)
    head = replaced.pop("header", None) or header("proposals", (), {"seed": seed})
    layout = _layout(replaced)
    values = {
        "boxes": boxes_inside(layout["sizes"], layout["counts"], random),
        "scores": falling(layout["counts"], random),
    }
    return write_rows(path, head, proposals.COLUMNS, values | replaced, **layout)


def make_detections(path: Path, *, seed: int = 0, **replaced: Any) -> Path:
    """A detections file; ``boxes``, ``scores``, ``labels``, ``header``, and ``write_rows``' own."""
    random = np.random.default_rng(seed)
    head = replaced.pop("header", None) or header("detections", settings={"seed": seed})
    layout = _layout(replaced)
    values = {
        "boxes": boxes_inside(layout["sizes"], layout["counts"], random),
        "scores": falling(layout["counts"], random),
        "labels": random.integers(1, len(head.classes), sum(layout["counts"])),
    }
    return write_rows(path, head, detections.COLUMNS, values | replaced, **layout)


def make_features(path: Path, *, seed: int = 0, **replaced: Any) -> Path:
    """A features file, layers ``pool5`` and ``fc7`` of 32; an image's first row is ground truth.

    With ``scale`` and ``cells`` it is that of a network with a pyramid.
    """
    random = np.random.default_rng(seed)
    head = replaced.pop("header", None) or header("features", settings={"layers": ["pool5", "fc7"]})
    layout = _layout(replaced)
    classes, rows = len(head.classes) - 1, sum(layout["counts"])
    first = np.zeros(rows, np.bool_)
    first[offsets_of(layout["counts"])[:-1][np.array(layout["counts"]) > 0]] = True
    labels = random.integers(1, classes + 1, rows)
    overlap = np.where(first, 1, random.random(rows)).astype(np.float32)
    overlaps = np.zeros((rows, classes), np.float32)
    overlaps[np.arange(rows), labels - 1] = overlap
    values: dict[str, Array] = {
        "boxes": boxes_inside(layout["sizes"], layout["counts"], random),
        "is_truth": first,
        "difficult": np.zeros(rows, np.bool_),
        "labels": labels,
        "overlap": overlap,
        "overlaps": overlaps,
        "truth": np.zeros(rows, np.int64),
    }
    columns = features.region_columns(classes)
    for name in ("layers/pool5", "layers/fc7"):
        drawn = np.maximum(random.normal(size=(rows, DEPTH)), 0)
        values[name] = replaced.get(name, drawn).astype(np.float16)
        columns[name] = (np.float16, values[name].shape[1:])
    for name in features.PLACES.keys() & replaced.keys():
        values[name], columns[name] = replaced[name], features.PLACES[name]
    norms = {
        f"norms/{name}": np.linalg.norm(values[f"layers/{name}"].astype(np.float32), axis=1)
        for name in ("pool5", "fc7")
    }
    means = {f"mean_norm/{name}": float(norms[f"norms/{name}"].mean()) for name in ("pool5", "fc7")}
    values |= {name: column for name, column in replaced.items() if name in values}
    return write_rows(path, head, columns, values, **layout, arrays=norms, attributes=means)


def make_model(path: Path, *, seed: int = 0, **replaced: Any) -> Path:
    """A model file of one convolution and one linear layer; keywords replace its tensors."""
    random = np.random.default_rng(seed)
    tensors: dict[str, Array] = {
        "features.0.weight": random.normal(size=(8, 3, 3, 3)).astype(np.float32),
        "features.0.bias": np.zeros(8, np.float32),
        "classifier.weight": random.normal(size=(3, 8)).astype(np.float32),
        "norm.num_batches_tracked": np.array(7, np.int64),
    }
    curves = {"loss": np.linspace(2, 0.5, 10).astype(np.float32)}
    architecture = {"network": "tiny", "layers": ["pool5"]}
    head = header("model", settings={"seed": seed})
    write_model(path, head, architecture, tensors | replaced, curves)
    return path


def make_svm(path: Path, *, seed: int = 0, **replaced: Any) -> Path:
    """An SVM file on ``fc7``; keywords replace weights, bias, or the figures of the training."""
    random = np.random.default_rng(seed)
    classes = len(CLASSES) - 1
    columns: dict[str, Any] = {
        "weights": random.normal(size=(classes, DEPTH)).astype(np.float32),
        "bias": random.normal(size=classes).astype(np.float32),
        "report": {"positives": np.arange(classes) + 5},
    }
    write_svm(path, header("svm"), layer="fc7", scale=0.5, **(columns | replaced))
    return path


def make_bbox_reg(path: Path, *, seed: int = 0, **replaced: Any) -> Path:
    """A box regression file on ``pool5``, without whitening; keywords replace its columns."""
    random = np.random.default_rng(seed)
    classes = len(CLASSES) - 1
    columns: dict[str, Any] = {
        "weights": random.normal(size=(classes, DEPTH, 4)).astype(np.float32),
        "bias": random.normal(size=(classes, 4)).astype(np.float32),
        "mean": np.zeros((classes, 4)),
        "whitening": np.tile(np.eye(4), (classes, 1, 1)),
        "report": {"examples": np.arange(classes) + 5},
    }
    settings: dict[str, Any] = {"layer": "pool5", "scale": 0.5, "pixel": 1.0}
    write_bbox_reg(path, header("bbox-reg"), **(settings | columns | replaced))
    return path


MAKERS = {
    "proposals": make_proposals,
    "features": make_features,
    "svm": make_svm,
    "bbox-reg": make_bbox_reg,
    "model": make_model,
    "detections": make_detections,
}


def _layout(replaced: dict[str, Any]) -> dict[str, Any]:
    """Take the images out of the keyword arguments: ids, sizes, counts."""
    return {
        "image_ids": replaced.pop("image_ids", IMAGE_IDS),
        "sizes": np.asarray(replaced.pop("sizes", SIZES)),
        "counts": replaced.pop("counts", COUNTS),
    }
