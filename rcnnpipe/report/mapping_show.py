"""From a data set and a network with a pyramid to pictures: which windows, which files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rcnnpipe.datasets.pixels import read_pixels
from rcnnpipe.datasets.records import Record
from rcnnpipe.errors import SettingError
from rcnnpipe.progress import track
from rcnnpipe.report.mapping import Corners, Mapper, Window
from rcnnpipe.report.mapping_panels import draw_mapping
from rcnnpipe.report.panels import sheet
from rcnnpipe.report.show import Show, file_names, save

WINDOWS = 3


def windows_given(record: Record, boxes: Sequence[Corners]) -> list[Window]:
    """Windows that the user chose.

    Raises:
        SettingError: one leaves the image.
    """
    height, width = record.size
    for x1, y1, x2, y2 in boxes:
        if min(x1, y1) < 0 or x2 > width or y2 > height:
            raise SettingError(
                f"--window {x1:g},{y1:g},{x2:g},{y2:g} leaves image '{record.image_id}', which is "
                f"{width} x {height} pixels; give corners within it, or choose other --images"
            )
    return [Window(box, "as given") for box in boxes]


def windows_chosen(known: Show, record: Record, count: int, top: int) -> list[Window]:
    """Windows well apart in size, largest first.

    They are of the best proposals; of the annotated objects, where there are no proposals; or the
    image itself, where there are no objects either.

    Args:
        known: what there is.
        record: of the image.
        count: how many windows, if there are so many.
        top: how many of the best proposals to choose from.

    Raises:
        ArtifactError: the proposals have nothing for this image, or are for another size of it.
    """
    proposals = known.marks(record).proposals
    boxes: npt.NDArray[np.floating]
    if proposals is not None and len(proposals[:top]):
        boxes = proposals[:top]
        words = [f"proposal {number} of {len(proposals)}" for number in range(1, len(boxes) + 1)]
    elif len(record.boxes):
        boxes = record.boxes
        words = [f"object, {known.dataset.classes[label]}" for label in record.labels]
    else:
        boxes = np.array([[0, 0, *record.size[::-1]]], np.float32)
        words = ["the whole image"]
    windows = []
    for row in _spread(boxes, count):
        x1, y1, x2, y2 = boxes[row].tolist()
        windows.append(Window((x1, y1, x2, y2), words[row]))
    return windows


def _spread(boxes: npt.NDArray[np.floating], count: int) -> list[int]:
    """So many of the boxes (R, 4), largest first, evenly apart in the logarithm of their area."""
    extents = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64)
    sizes = np.log(np.maximum(extents.prod(1), 1e-9))  # (R,)
    wanted = np.linspace(sizes.max(), sizes.min(), min(count, len(boxes)))
    picked: list[int] = []
    for row in np.abs(sizes - wanted[:, None]):
        row[picked] = np.inf
        picked.append(int(row.argmin()))
    return sorted(picked, key=lambda row: -sizes[row])


def draw_mappings(
    mapper: Mapper,
    records: Sequence[Record],
    windows: Sequence[Sequence[Window]],
    out: Path,
    *,
    size: int = 640,
    as_one: bool = False,
) -> list[Path]:
    """Draw how windows are mapped and write it as PNG: a picture of each image, or one of all.

    Args:
        mapper: the network.
        records: the images.
        windows: of each.
        out: a folder, or with ``as_one`` the file.
        size: longer side of the image and of the map in their panels.
        as_one: write a single file.

    Returns:
        The files written.

    Raises:
        DataError: an image cannot be read.
        SettingError: an image is too small for the network.
    """
    written, pictures = [], []
    names = file_names([record.image_id for record in records])
    jobs = zip(records, windows, names, strict=True)
    for record, chosen, name in track(jobs, len(records), "show"):
        pixels = read_pixels(record)
        picture = draw_mapping(record, pixels, mapper, mapper(record, pixels, chosen), size)
        (out.parent if as_one else out).mkdir(parents=True, exist_ok=True)
        if as_one:
            pictures.append(picture)
        else:
            written.append(save(picture, out / f"{name}.png"))
    return [save(sheet(pictures, widest=1), out)] if as_one else written
