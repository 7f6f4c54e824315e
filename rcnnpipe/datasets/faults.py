"""The kinds of fault a data set can have, and what the reader does about each.

An ``error`` would corrupt training or evaluation: the reader refuses the data set until the fault
is put right or quarantined (``rcnnpipe check DATA --fix``). A ``warning`` is read as its line says.
"""

from dataclasses import dataclass

ERROR, WARNING = "error", "warning"

# kind: (severity, what it means)
KINDS: dict[str, tuple[str, str]] = {
    # images
    "missing-image": (ERROR, "an annotated or listed image has no file"),
    "unreadable-image": (ERROR, "the file is no image, or its pixels have no agreed range"),
    "truncated-image": (ERROR, "the header is right but the pixels cannot be decoded"),
    "size-mismatch": (ERROR, "the annotation speaks of another image size than the file has"),
    "turned-image": (ERROR, "annotated in the frame before the EXIF orientation is applied"),
    "missing-size": (WARNING, "the annotation has no image size; the file's header is used"),
    "ambiguous-image": (WARNING, "several files have the image's name; the first is used"),
    "unused-image": (WARNING, "an image file that no split or annotation names; not read"),
    # files and ids
    "missing-annotation": (ERROR, "a listed image has no annotation file"),
    "malformed-annotation": (ERROR, "an annotation that cannot be parsed"),
    "outside-folder": (ERROR, "a file name that leaves the data folder"),
    "duplicate-image": (ERROR, "two images with one id"),
    "repeated-image": (WARNING, "an image listed more than once in a split; read once"),
    "duplicate-annotation": (WARNING, "two annotations with one id; both are read"),
    "dangling-annotation": (ERROR, "an annotation of an image that is not listed"),
    "split-overlap": (WARNING, "an image that belongs to two splits"),
    "empty-split": (WARNING, "a split without a single image"),
    # boxes
    "not-a-number": (ERROR, "a coordinate that is no finite number"),
    "zero-area": (ERROR, "a box whose corners coincide in x or y"),
    "inverted": (ERROR, "a box whose second corner lies before the first"),
    "outside": (ERROR, "a box wholly outside its image"),
    "beyond-border": (WARNING, "a box more than a pixel beyond the border; clipped to the image"),
    "tiny-box": (WARNING, "a box with a side below two pixels; read"),
    "repeated-box": (WARNING, "the same class and box twice in one image; both are read"),
    "coordinate-base": (WARNING, "boxes that look 0-based where 1-based are due, or the reverse"),
    # classes, flags, masks, keypoints
    "unknown-class": (ERROR, "a class that the data set does not declare"),
    "duplicate-class": (ERROR, "a class name declared twice"),
    "similar-class": (WARNING, "class names that differ in case or blanks only"),
    "class-lists-differ": (WARNING, "two splits declare different classes; do not mix them"),
    "unused-class": (WARNING, "a declared class without an object"),
    "bad-flag": (WARNING, "a difficult, truncated or crowd flag that is neither 0 nor 1; as 1"),
    "bad-segment": (ERROR, "a mask that cannot be drawn: odd or short polygons, a broken RLE"),
    "segment-box-mismatch": (WARNING, "a mask whose bounds are not the box; both are kept"),
    "bad-keypoints": (ERROR, "keypoints of the wrong number, visibility or not finite"),
    "keypoint-outside": (WARNING, "a labelled keypoint outside the image; kept"),
}


@dataclass(frozen=True)
class Fault:
    """One fault of one image, annotation or the whole set.

    Attributes:
        kind: a key of ``KINDS``.
        message: one clause without the place, e.g. "box 504 337 504 337 has no area".
        image_id: the image, or None for the whole set.
        annotation: the annotation within the image (object number, COCO id or line), or None.
        written: the box as the file has it; with ``annotation`` it recognises the object again.
    """

    kind: str
    message: str
    image_id: str | None = None
    annotation: str | None = None
    written: str | None = None

    def __post_init__(self) -> None:
        """Only known kinds."""
        assert self.kind in KINDS, self.kind

    @property
    def severity(self) -> str:
        """``error`` or ``warning``."""
        return KINDS[self.kind][0]

    def __str__(self) -> str:
        """Place and message: ``image 12, annotation 3: box 1 2 1 2 has no area``."""
        place = f"image {self.image_id}" if self.image_id is not None else ""
        if self.annotation is not None:
            place += f"{', ' if place else ''}annotation {self.annotation}"
        return f"{place}: {self.message}" if place else self.message
