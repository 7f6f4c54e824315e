"""What the readers of all formats produce: objects as written, with the faults found on the way.

Parsing never raises for the content of an annotation; it notes a ``Fault`` and goes on, so that
one pass serves both ``open_dataset``, which refuses errors, and ``rcnnpipe check``, which lists
them.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rcnnpipe.datasets.faults import Fault

Box = tuple[float, float, float, float]
NO_SIZE = "the annotation has no image size; the file's header is used"


@dataclass(slots=True)
class ParsedObject:
    """One annotated object.

    Attributes:
        key: names it within its image for people: the object's number, COCO id or line.
        written: the box as the file has it.
        name: the class as written.
        box: x1 y1 x2 y2, continuous, 0-based; None where none was written (a noted fault).
        area: square pixels where the file gives one.
        segment, keypoints: as in ``Record``; keypoints flat, three numbers a point.
    """

    key: str
    written: str
    name: str
    box: Box | None
    difficult: bool = False
    truncated: bool = False
    crowd: bool = False
    area: float | None = None
    segment: Any = None
    keypoints: list[float] | None = None


@dataclass(slots=True)
class ParsedImage:
    """One image; ``path`` is None where there is no file, ``size`` (height, width) where unsaid."""

    image_id: str
    path: Path | None
    size: tuple[int, int] | None = None
    objects: list[ParsedObject] = field(default_factory=list)


@dataclass
class Parsed:
    """One split as written.

    Attributes:
        classes: declared or found names, without background, in label order.
        category_ids: the source's own numbers of these classes.
        pixel: the width of a box whose two corners are the same: 1 where corners are inclusive
            pixels (VOC), else 0.
    """

    images: list[ParsedImage]
    classes: list[str]
    category_ids: list[int] = field(default_factory=list)
    keypoint_names: tuple[str, ...] = ()
    pixel: float = 0.0
    faults: list[Fault] = field(default_factory=list)


def number(text: object) -> float:
    """A finite or infinite number, NaN for whatever is none (None, text, a list)."""
    try:
        return float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return math.nan


def flag(value: object) -> tuple[bool, bool]:
    """A 0/1 flag as (value, whether it was written properly); absent means 0."""
    if value is None or value == "" or value == 0 or value == "0":
        return False, True
    return True, value == 1 or value == "1"
