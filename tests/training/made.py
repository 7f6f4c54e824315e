"""A small detection set on the disk: bright squares on noise, with proposals near them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from rcnnpipe.artifacts import proposals as proposals_file
from rcnnpipe.artifacts.rows import RowWriter
from rcnnpipe.artifacts.store import make_header
from rcnnpipe.datasets import Dataset, Record
from rcnnpipe.training.windows import Windows

CLASSES = ("background", "red", "green")
SIZE = (72, 96)  # height, width


def record_of(
    boxes: Sequence[Sequence[float]] | npt.NDArray[np.float64] = (),
    labels: Sequence[int] | npt.NDArray[np.int64] = (),
    crowd: Sequence[int] = (),
    difficult: Sequence[int] = (),
    image_id: str = "image",
    path: Path = Path("absent.png"),
    size: tuple[int, int] = SIZE,
) -> Record:
    """A record of these objects; flags are given by object number."""
    held = np.array(boxes, np.float64).reshape(-1, 4)
    numbers = np.arange(len(held))
    truncated = np.zeros(len(held), np.bool_)
    flags = (np.isin(numbers, list(difficult)), truncated, np.isin(numbers, list(crowd)))
    areas = (held[:, 2:] - held[:, :2]).prod(axis=1)
    return Record(image_id, path, size, held, np.array(labels, np.int64), *flags, areas)


def draw_records(folder: Path, count: int) -> tuple[Record, ...]:
    """Images with one square each, red in the even ones, green in the others."""
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for number in range(count):
        random = np.random.default_rng(number)
        pixels = random.integers(0, 90, (*SIZE, 3), dtype=np.uint8)
        x, y = random.integers(0, [SIZE[1] - 32, SIZE[0] - 32])
        pixels[y : y + 30, x : x + 30, number % 2] = 250
        path = folder / f"{number:03}.png"
        Image.fromarray(pixels).save(path)
        box = [float(x), float(y), float(x + 30), float(y + 30)]
        records.append(record_of([box], [1 + number % 2], image_id=path.stem, path=path))
    return tuple(records)


def propose_near(record: Record, count: int = 10) -> npt.NDArray[np.float32]:
    """Boxes (P, 4): some lie nearly on the object, most elsewhere."""
    random = np.random.default_rng(len(record.image_id) + int(record.boxes[0, 0]))
    low = random.random((count, 2)) * (SIZE[1] - 30, SIZE[0] - 30)
    boxes = np.concatenate((low, low + 28), axis=1)
    boxes[:3] = record.boxes[0] + random.integers(-3, 4, (3, 4))
    boxes[:, 0::2] = boxes[:, 0::2].clip(0, SIZE[1])
    boxes[:, 1::2] = boxes[:, 1::2].clip(0, SIZE[0])
    return boxes.astype(np.float32)


def write_proposals(
    path: Path, dataset: Dataset, images: int | None = None, best: int | None = None
) -> Path:
    """A proposals file for the first ``images`` images, or all, of the ``best`` ones, or all."""
    records = dataset.records[:images]
    header = make_header(
        "proposals", stage="made", version=1, settings={}, inputs={"data": dataset}, classes=()
    )
    ids, sizes = [record.image_id for record in records], np.array([SIZE] * len(records))
    with RowWriter(path, header, proposals_file.COLUMNS, ids, sizes) as writer:
        for record in records:
            boxes = propose_near(record)
            scores = np.linspace(1, 0, len(boxes))
            writer.append({"boxes": boxes[:best], "scores": scores[:best]})
        writer.finish()
    return path


def windows_of(labels: Sequence[int], images: Sequence[int]) -> Windows:
    """Windows whose boxes do not matter."""
    held = np.array(labels, np.int32)
    return Windows(
        np.zeros((len(held), 4), np.float32),
        np.array(images, np.int32),
        held,
        np.flatnonzero(held > 0),
        np.flatnonzero(held == 0),
    )
