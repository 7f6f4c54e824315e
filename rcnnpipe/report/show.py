"""From a data set and artifacts to pictures: what is known, which images, which files."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from rcnnpipe.artifacts.columns import ImageList, rows_for_images
from rcnnpipe.artifacts.detections import Detections, read_detections
from rcnnpipe.artifacts.proposals import Proposals, read_proposals
from rcnnpipe.artifacts.store import require_same_classes
from rcnnpipe.datasets import Dataset, Record, open_dataset
from rcnnpipe.errors import ArtifactError, DataError, SettingError
from rcnnpipe.images import read_image
from rcnnpipe.progress import track
from rcnnpipe.ragged import rows_of
from rcnnpipe.randomness import generator
from rcnnpipe.report.files import whole_file
from rcnnpipe.report.mistakes import best_thresholds
from rcnnpipe.report.panels import KINDS, Marks, draw_row, sheet

_SHEET = "contact-sheet"
_FEW = 8  # classes whose thresholds are all said
_SMALL = 320  # longer side of a panel's picture on the contact sheet


@dataclass(frozen=True)
class Show:
    """What is known about the images of a data set.

    Attributes:
        dataset: images and ground truth.
        classes: names of the labels; of a plain folder those of the detections.
        proposals, detections: the files and what they hold, where given.
        thresholds: label -> least score of a detection that is shown.
        notes: sentences about what was chosen for the user.
    """

    dataset: Dataset
    classes: tuple[str, ...]
    proposals: tuple[Path, Proposals] | None
    detections: tuple[Path, Detections] | None
    thresholds: dict[int, float]
    notes: tuple[str, ...]

    @staticmethod
    def open(
        data: Path,
        split: str | None,
        proposals: Path | None,
        detections: Path | None,
        threshold: float | None,
    ) -> "Show":
        """Read everything and check that it belongs together.

        Args:
            data: a recipe, a folder or an image.
            split: its split.
            proposals, detections: files, where there are any.
            threshold: least score shown; None takes each class's best F1.

        Raises:
            DataError: the data set cannot be read.
            ArtifactError: a file is damaged, or of other classes.
        """
        dataset = open_dataset(data, split)
        if not dataset.records:
            raise DataError(f"{data} has no images; is this the right split?")
        read = (detections, read_detections(detections)) if detections else None
        classes = dataset.classes
        if read and is_annotated(dataset):
            require_same_classes(str(detections), read[1].classes, str(data), classes)
        elif read:
            classes = read[1].classes
        if read and not set(read[1].image_ids) & set(dataset.image_ids):
            raise ArtifactError(
                f"{detections} has no image in common with {data}; name the data and split that it "
                "was made for"
            )
        thresholds, notes = _thresholds(dataset, read[1], threshold) if read else ({}, ())
        return Show(
            dataset=dataset,
            classes=classes,
            proposals=(proposals, read_proposals(proposals)) if proposals else None,
            detections=read,
            thresholds=thresholds,
            notes=notes,
        )

    def panels(self, wanted: Sequence[str]) -> tuple[str, ...]:
        """The panels to draw: those asked for, or all there is something for.

        Raises:
            SettingError: a panel is asked for that lacks its file or annotations.
        """
        annotated = is_annotated(self.dataset)
        lacking = {
            "truth": "" if annotated else "annotations",
            "proposals": "" if self.proposals else "--proposals FILE",
            "detections": "" if self.detections else "--detections FILE",
            "errors": "" if self.detections else "--detections FILE",
        }
        if not annotated and not lacking["errors"]:
            lacking["errors"] = "annotations"
        for kind in wanted:
            if lacking[kind]:
                raise SettingError(f"--kind {kind} needs {lacking[kind]}")
        if wanted:
            return tuple(kind for kind in KINDS if kind in wanted)
        # A plain folder without anything else is shown as it is.
        return tuple(kind for kind in KINDS if not lacking[kind]) or ("truth",)

    def marks(self, record: Record) -> Marks:
        """What is to be drawn on one image.

        Raises:
            ArtifactError: a file has nothing for this image, or for another size of it.
        """
        boxes = labels = scores = regions = None
        if self.proposals:
            path, proposals = self.proposals
            rows = _rows(path, proposals, record, "proposals")
            regions = proposals.boxes[rows]
        if self.detections:
            path, found = self.detections
            rows = _rows(path, found, record, "detections")
            boxes, labels, scores = found.boxes[rows], found.labels[rows], found.scores[rows]
        return Marks(regions, boxes, labels, scores, self.thresholds)


def is_annotated(dataset: Dataset) -> bool:
    """Whether any image has an annotated object."""
    return any(len(record.boxes) for record in dataset.records)


def choose(
    dataset: Dataset, image_ids: Sequence[str] | None, count: int, seed: int
) -> tuple[Record, ...]:
    """The images named, or ``count`` random ones, in the order of the data set.

    Raises:
        DataError: the data set lacks an image that is named.
    """
    if image_ids:
        by_id = {record.image_id: record for record in dataset.records}
        missing = [image_id for image_id in image_ids if image_id not in by_id]
        if missing:
            raise DataError(
                f"{dataset.name} has no image '{missing[0]}'; its ids are like "
                f"'{dataset.records[0].image_id}'"
            )
        return tuple(by_id[image_id] for image_id in dict.fromkeys(image_ids))
    total = len(dataset.records)
    drawn = generator(seed, "show").choice(total, min(count, total), replace=False)
    return tuple(dataset.records[number] for number in sorted(drawn.tolist()))


def draw(
    known: Show,
    records: Sequence[Record],
    kinds: Sequence[str],
    out: Path,
    *,
    size: int = 640,
    top: int = 50,
    as_one: bool = False,
) -> list[Path]:
    """Draw images and write them as PNG: one a picture and a contact sheet, or all in one file.

    Args:
        known: what to draw.
        records: the images.
        kinds: the panels.
        out: a folder, or with ``as_one`` the file.
        size: longer side of a panel's picture.
        top: how many proposals are drawn.
        as_one: write a single file.

    Returns:
        The files written.
    """
    # Everything is looked up before anything is drawn.
    marks = {record.image_id: known.marks(record) for record in records}

    def drawn(record: Record, pixels: npt.NDArray[np.uint8]) -> Callable[[int], Image.Image]:
        held = (record, pixels, known.classes, marks[record.image_id], kinds)
        return lambda longest: draw_row(*held, longest, top)

    return write_pictures(records, drawn, out, size, as_one)


def write_pictures(
    records: Sequence[Record],
    drawn: Callable[[Record, npt.NDArray[np.uint8]], Callable[[int], Image.Image]],
    out: Path,
    size: int,
    as_one: bool,
) -> list[Path]:
    """Write a picture of each image and a contact sheet, or all in one file.

    Args:
        records: the images.
        drawn: what makes the picture of one, from its pixels (H, W, 3) and the longer side.
        out: a folder, or with ``as_one`` the file.
        size: longer side of a panel's picture.
        as_one: write a single file.

    Returns:
        The files written.
    """
    names = file_names([record.image_id for record in records])
    written, small = [], []
    whole = as_one and len(records) == 1
    (out.parent if as_one else out).mkdir(parents=True, exist_ok=True)
    for record, name in track(zip(records, names, strict=True), len(records), "show"):
        picture = drawn(record, _pixels_of(record))
        if whole or not as_one:
            written.append(save(picture(size), out if whole else out / f"{name}.png"))
        if len(records) > 1:
            small.append(picture(min(size, _SMALL)))
    if small:
        written.append(save(sheet(small), out if as_one else out / f"{_SHEET}.png"))
    return written


def _pixels_of(record: Record) -> npt.NDArray[np.uint8]:
    pixels = read_image(record.path)
    if pixels.shape[:2] != record.size:
        raise DataError(
            f"{record.path} is {pixels.shape[1]} x {pixels.shape[0]} pixels, but annotated as "
            f"{record.size[1]} x {record.size[0]}; run rcnnpipe check"
        )
    return pixels


def _thresholds(
    dataset: Dataset, detections: Detections, threshold: float | None
) -> tuple[dict[int, float], tuple[str, ...]]:
    labels = range(1, len(detections.classes))
    if threshold is not None:
        return dict.fromkeys(labels, threshold), ()
    if any((~(record.crowd | record.difficult)).any() for record in dataset.records):
        found = best_thresholds(dataset, detections)
        return found, (
            f"least scores shown, by best F1 of this split: {_words(found, detections)}",
        )
    # Probabilities, or margins of SVMs, whose border is 0.
    least = 0.0 if (detections.scores < 0).any() else 0.5
    note = f"no objects to choose a threshold by: detections from {least:g} on are shown"
    return dict.fromkeys(labels, least), (note,)


def _words(thresholds: dict[int, float], detections: Detections) -> str:
    if len(thresholds) > _FEW:
        low, high = min(thresholds.values()), max(thresholds.values())
        return f"{low:.3g} to {high:.3g} over {len(thresholds)} classes"
    names = detections.classes
    return ", ".join(f"{names[label]} {score:.3g}" for label, score in thresholds.items())


def _rows(path: Path, rows: Proposals | Detections, record: Record, what: str) -> slice:
    image = ImageList((record.image_id,), np.array([record.size]))
    (number,) = rows_for_images(path, rows, image, what)
    return rows_of(rows.offsets, number)


def file_names(image_ids: Sequence[str]) -> list[str]:
    """A file name for each image id: other signs become _, and no two are the same."""
    taken = {_SHEET}
    names = []
    for image_id in image_ids:
        plain = re.sub(r"[^\w.-]+", "_", image_id).lstrip(".")[:150] or "image"
        name, number = plain, 1
        while name.lower() in taken:
            number += 1
            name = f"{plain}-{number}"
        taken.add(name.lower())
        names.append(name)
    return names


def save(picture: Image.Image, path: Path) -> Path:
    """Write a picture as PNG, whole or not at all."""
    with whole_file(path) as partial:
        picture.save(partial, format="PNG")
    return path
