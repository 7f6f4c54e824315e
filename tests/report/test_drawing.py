"""Marks stand where they should, stay inside and can be read."""

import numpy as np
import pytest
from PIL import Image

from rcnnpipe.report.drawing import Picture, _shared, class_colour, fitted, font

RED = (255, 0, 0)


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


def where(image: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Bounds x1 y1 x2 y2 (past the end) of a colour."""
    ys, xs = np.nonzero((np.asarray(image) == colour).all(axis=2))
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


@pytest.mark.parametrize(("height", "width"), [(50, 100), (100, 50), (300, 600), (1, 2000)])
def test_the_longer_side_has_the_size_asked_for(height: int, width: int) -> None:
    assert max(Picture(grey(height, width), 320).finished().size) == 320


def test_a_box_is_drawn_at_its_corners() -> None:
    picture = Picture(grey(100, 200), 400)  # twice as large
    picture.box([10, 20, 60, 70], RED)
    assert where(picture.finished(), RED) == (20, 40, 120, 140)


@pytest.mark.parametrize(
    ("box", "bounds"),
    [
        ([0, 0, 200, 100], (0, 0, 400, 200)),
        ([-50, -50, 500, 500], (0, 0, 400, 200)),
        ([50, 50, 50, 50], (100, 100, 101, 101)),
        ([300, 20, 400, 50], (399, 40, 400, 100)),
    ],
)
@pytest.mark.parametrize("dashed", [False, True])
def test_boxes_that_leave_the_image_or_have_no_area(
    box: list[float], bounds: tuple[int, ...], dashed: bool
) -> None:
    picture = Picture(grey(100, 200), 400)
    picture.box(box, RED, dashed=dashed)
    found = where(picture.finished(), RED)
    # A dash may end before the far corner, but never past it.
    tolerance = 5 * picture.line if dashed else 0
    assert found[:2] == bounds[:2]
    assert all(0 <= b - f <= tolerance for f, b in zip(found[2:], bounds[2:], strict=True))


@pytest.mark.parametrize(
    "box",
    [[0, 0, 20, 20], [190, 0, 200, 10], [0, 95, 5, 100], [195, 95, 200, 100], [0, 0, 200, 100]],
)
def test_labels_are_never_clipped(box: list[float]) -> None:
    picture = Picture(grey(100, 200), 400)
    picture.box(box, RED, "a label")
    text = font(picture.letters)
    found = np.asarray(picture.finished())
    assert (found == RED).all(axis=2).sum() > 0.5 * text.getlength("a label") * sum(
        text.getmetrics()
    )


def test_labels_avoid_each_other() -> None:
    picture = Picture(grey(400, 400), 400)
    for _ in range(3):
        picture.box([100, 100, 200, 200], RED, "label")
    texts = [picture._place((100, 100, 200, 200), "label", picture.letters, [])]
    for _ in range(2):
        texts.append(picture._place((100, 100, 200, 200), "label", picture.letters, texts))
    assert all(_shared(a, b) == 0 for i, a in enumerate(texts) for b in texts[:i])


def test_long_texts_are_cut_to_fit() -> None:
    assert fitted("short", 12, 1000) == "short"
    cut = fitted("a very long name of a class", 12, 80)
    assert cut.endswith("…")
    assert font(12).getlength(cut) <= 80


def test_masks_tint_their_pixels_only() -> None:
    mask = np.zeros((100, 100), np.bool_)
    mask[20:60, 10:50] = True
    picture = Picture(grey(100, 100), 100)
    picture.mask(mask, RED)
    found = np.asarray(picture.finished()).astype(int)
    assert (found[mask][:, 0] > 150).all()
    assert (found[~mask] == 128).all()


def test_hidden_keypoints_are_rings_and_absent_ones_nothing() -> None:
    counts = []
    for visibility in (0, 1, 2):
        picture = Picture(grey(100, 100), 200)
        picture.points(np.array([[50, 50, visibility]]), RED)
        counts.append(int((np.asarray(picture.finished()) == RED).all(axis=2).sum()))
    assert counts[0] == 0 < counts[1] < counts[2]


def test_colours_of_classes_differ() -> None:
    colours = [class_colour(label) for label in range(1, 81)]
    assert len(set(colours)) == 80
    assert colours == [class_colour(label) for label in range(1, 81)]
