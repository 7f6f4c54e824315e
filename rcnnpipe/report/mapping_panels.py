"""The panels of a window: on the image, on the map of its scale, in the bins of the pyramid.

The window is drawn in one colour everywhere and the cells it is rounded to in another.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from rcnnpipe.datasets.records import Record
from rcnnpipe.models.pyramid import Pyramid
from rcnnpipe.report.drawing import FAINT, INK, PAPER, Colour, Picture, class_colour, font, wrapped
from rcnnpipe.report.mapping import Floats, Mapped, Mapper, Pixels, bins_along
from rcnnpipe.report.panels import beside, sheet

Extent = tuple[float, float]  # width and height of a cell, in pixels

_WINDOW, _CELLS = class_colour(1), class_colour(2)
_MAP, _BINS = "magma", "gray"  # outlines in all colours show on grey
_BRIGHTEST = 0.75  # grey, of the largest value: colours show on it as well
_GRID_SHARE = 70  # of 255, of a line between cells
_LEAST_CELL = 5  # pixels of a cell, for lines between cells
_LEAST_LETTERS = 8
_NARROWEST = 0.35  # of a square, that the cells of a narrow window fill at least
_THIN = 14  # pixels of a bin, below which its outline is one wide
_MIDDLE = 0.45  # grey, from which on dark letters are read more easily


@dataclass(frozen=True)
class _Panel:
    title: str
    words: tuple[str, ...]
    image: Image.Image


def draw_mapping(
    record: Record, pixels: Pixels, mapper: Mapper, found: Sequence[Mapped], longest: int = 640
) -> Image.Image:
    """A row of panels for each window of an image.

    Args:
        record: of the image.
        pixels: (H, W, 3).
        mapper: what found the windows' cells.
        found: the windows.
        longest: longer side of the image and of the map in their panels, in pixels.
    """
    height, width = record.size
    rows = []
    for number, one in enumerate(found, start=1):
        image = _on_image(one, pixels, mapper, longest)
        size = image.image.size
        panels = (image, _on_map(one, mapper, size), _in_bins(one, mapper, size))
        title = f"{record.image_id}  ({width} x {height}), window {number}: {one.window.words}"
        rows.append(beside(_framed(panels, longest), title, longest))
    return sheet(rows, widest=1)


def _on_image(one: Mapped, pixels: Pixels, mapper: Mapper, longest: int) -> _Panel:
    picture = Picture(pixels, longest)
    picture.box(one.outline, _CELLS, "cells", dashed=True)
    picture.box(one.window.box, _WINDOW, "window")
    x1, y1, x2, y2 = one.window.box
    box = ", ".join(f"{value:.0f}" for value in one.window.box)
    words = (
        f"box {box}: {x2 - x1:.0f} x {y2 - y1:.0f} pixels",
        *_reasons(one, mapper),
        "dashed: the cells, each half a stride around its centre",
    )
    return _Panel(f"Image: scale {one.scale}", words, picture.finished())


def _reasons(one: Mapped, mapper: Mapper) -> tuple[str, ...]:
    """Why a window is taken from its scale."""
    view = mapper.view
    sides = ", ".join(
        f"{side:.0f} on {scale}" for scale, side in zip(view.scales, one.sides, strict=True)
    )
    squares = f"side of a square of equal area, on each scale: {sides}"
    if len(view.scales) == 1:
        return (squares,)
    if view.choice == "nearest-area":
        return squares, f"nearest to {view.reference:g} in area: that on {one.scale}"
    wanted = view.reference * one.scale / one.sides[view.scales.index(one.scale)]
    return squares, f"it would be {view.reference:g} on {wanted:.0f}; nearest to that: {one.scale}"


def _on_map(one: Mapped, mapper: Mapper, size: tuple[int, int]) -> _Panel:
    """The map within the (width, height) of the image beside it, whose ratio it nearly has."""
    rows, columns = one.mean.shape
    cell = min(size[0] / columns, size[1] / rows)
    drawn = np.asarray(_cells(one.mean, (cell, cell), float(one.mean.max()), _MAP))
    picture = Picture(drawn, max(drawn.shape[:2]))  # at its own size
    x1, y1, x2, y2 = one.cells
    picture.box([edge * cell for edge in one.place], _WINDOW)
    picture.box([edge * cell for edge in (x1, y1, x2 + 1, y2 + 1)], _CELLS, dashed=True)
    stride, centre = mapper.geometry
    words = (
        f"cells {x1}..{x2}, {y1}..{y2} of {columns} x {rows}, counted from 0; "
        f"stride {stride}, centre of the first at pixel {centre:g} of the scaled image",
        f"projected by the rule '{mapper.view.projection}'",
    )
    title = f"Map: {mapper.layer}, mean of {one.channels} channels"
    image = Image.new("RGB", size, PAPER)
    image.paste(picture.finished())
    return _Panel(title, words, image)


def _in_bins(one: Mapped, mapper: Mapper, size: tuple[int, int]) -> _Panel:
    """For each level the cells with its bins, above the maxima of the bins.

    Two squares fill the height of the image beside, of (width, height), unless that is very flat.
    """
    longest, levels = max(size), mapper.levels
    gap, letters = max(6, longest // 60), _letters(longest)
    line = sum(font(letters).getmetrics())
    side = round(min(max((size[1] - line - gap) / 2, 0.33 * longest), 0.47 * longest))
    rows, columns = one.values.shape
    most, cell = float(one.values.max()), _stretched(rows, columns, side)
    lower = line + round(rows * cell[1]) + gap  # where the maxima begin
    image = Image.new("RGB", (len(levels) * (side + gap) - gap, lower + side), PAPER)
    draw = ImageDraw.Draw(image)
    for number, (level, maxima) in enumerate(zip(levels, one.maxima, strict=True)):
        x = number * (side + gap)
        draw.text((x, 0), f"{level} x {level}", fill=INK, font=font(letters))
        image.paste(_cells_with_bins(one.values, level, cell, most), (x, line))
        image.paste(_maxima(maxima, side, most), (x, lower))
    words = (
        f"above: channel {one.channel}, the strongest here, in the {columns} x {rows} cells, and "
        "the bins in colours; below: its maximum in each bin",
    )
    return _Panel(f"Pyramid: {Pyramid(levels).bins} bins", words, image)


def _stretched(rows: int, columns: int, side: int) -> Extent:
    """The size of a cell so that all fit a square; those of a narrow window are not square."""
    cell = side / max(rows, columns)
    least = _NARROWEST * side
    return max(cell, least / columns), max(cell, least / rows)


def _cells_with_bins(values: Floats, level: int, cell: Extent, most: float) -> Image.Image:
    """Cells (h, w), and the bins of a level around them.

    Bins that share cells lie in different lanes, each further inside, so that every outline shows.
    """
    image = _cells(values, cell, most, _BINS)
    draw = ImageDraw.Draw(image)
    across = _outlines(bins_along(values.shape[1], level), cell[0])
    down = _outlines(bins_along(values.shape[0], level), cell[1])
    narrowest = min(last - first for first, last in (*across, *down))
    width = 1 if narrowest < _THIN else 2
    for y, (top, bottom) in enumerate(down):
        for x, (left, right) in enumerate(across):
            draw.rectangle((left, top, right, bottom), outline=_bin_colour(x, y), width=width)
    return image


def _outlines(bins: Sequence[tuple[int, int]], cell: float) -> list[tuple[int, int]]:
    """Where the lines of bins run in one direction, in pixels from the first cell's edge."""
    lanes = _lanes(bins)
    narrowest = cell * min(last - first + 1 for first, last in bins)
    step = min(4, max(1, int((narrowest / 2 - 1) / (1 + max(lanes)))))
    lines = []
    for (first, last), lane in zip(bins, lanes, strict=True):
        inset = 1 + step * lane
        start, end = round(first * cell) + inset, round((last + 1) * cell) - 1 - inset
        lines.append((start, max(start, end)))
    return lines


def _lanes(bins: Sequence[tuple[int, int]]) -> list[int]:
    """For each bin the first lane in which no earlier bin shares a cell with it."""
    lanes: list[int] = []
    for number, (first, _) in enumerate(bins):
        taken = {lanes[other] for other in range(number) if bins[other][1] >= first}
        lanes.append(min(set(range(number + 1)) - taken))
    return lanes


def _maxima(maxima: Floats, side: int, most: float) -> Image.Image:
    """Maxima (n, n) as a square of fields in the bins' colours, with numbers where they fit."""
    level = len(maxima)
    field = side / level
    image = _cells(maxima, (field, field), most, _BINS)
    draw = ImageDraw.Draw(image)
    digits = 0 if most >= 100 else 1 if most >= 10 else 2
    size = int(min(field / 2.8, 18))
    widest = font(max(size, 1)).getlength(f"{most:.{digits}f}")
    is_room = size >= _LEAST_LETTERS and widest <= field - 8
    for y, row in enumerate(maxima.tolist()):
        for x, value in enumerate(row):
            corners = (
                *(round(x * field) + 1, round(y * field) + 1),
                *(round((x + 1) * field) - 2, round((y + 1) * field) - 2),
            )
            draw.rectangle(corners, outline=_bin_colour(x, y), width=2)
            if is_room:
                middle = ((corners[0] + corners[2]) / 2, (corners[1] + corners[3]) / 2)
                ink = INK if value * _BRIGHTEST > _MIDDLE * most else PAPER
                draw.text(middle, f"{value:.{digits}f}", fill=ink, font=font(size), anchor="mm")
    return image


def _bin_colour(x: int, y: int) -> Colour:
    """Of a bin: others than those beside it."""
    return class_colour(1 + (x + 3 * y) % 10)


def _cells(values: Floats, cell: Extent, most: float, colours: str) -> Image.Image:
    """Values (h, w) from 0 to ``most`` as fields of so many pixels, with lines between them."""
    rows, columns = values.shape
    size = (max(1, round(columns * cell[0])), max(1, round(rows * cell[1])))
    image = Image.fromarray(_heat(values, most, colours)).resize(size, Image.Resampling.NEAREST)
    if min(cell) >= _LEAST_CELL:
        lines = Image.new("L", size)
        draw = ImageDraw.Draw(lines)
        for x in (round(column * cell[0]) for column in range(1, columns)):
            draw.line((x, 0, x, size[1]), fill=_GRID_SHARE)
        for y in (round(row * cell[1]) for row in range(1, rows)):
            draw.line((0, y, size[0], y), fill=_GRID_SHARE)
        image.paste(Image.new("RGB", size, PAPER), mask=lines)
    return image


def _heat(values: Floats, most: float, name: str) -> npt.NDArray[np.uint8]:
    """Colours (h, w, 3) of values (h, w) from 0 to ``most``, in one of matplotlib's scales."""
    import matplotlib

    shares = values / most if most > 0 else np.zeros_like(values)
    brightest = _BRIGHTEST if name == _BINS else 1.0
    colours: npt.NDArray[np.uint8] = matplotlib.colormaps[name](shares * brightest, bytes=True)
    return np.ascontiguousarray(colours[..., :3])


def _framed(panels: Sequence[_Panel], longest: int) -> list[Image.Image]:
    """Panels under their titles and words, the pictures all beginning at one height."""
    size = _letters(longest)
    line = sum(font(size).getmetrics()) + 2
    widths = [max(panel.image.width, 16 * size) for panel in panels]
    texts = [
        [
            (text, FAINT if number else INK)
            for number, words in enumerate((panel.title, *panel.words))
            for text in wrapped(words, size, width - 4)
        ]
        for panel, width in zip(panels, widths, strict=True)
    ]
    top = line * max(map(len, texts)) + 4
    framed = []
    for panel, width, text in zip(panels, widths, texts, strict=True):
        image = Image.new("RGB", (width, top + panel.image.height), PAPER)
        draw = ImageDraw.Draw(image)
        for number, (words, ink) in enumerate(text):
            draw.text((2, number * line), words, fill=ink, font=font(size))
        image.paste(panel.image, (0, top))
        framed.append(image)
    return framed


def _letters(longest: int) -> int:
    return max(11, round(longest / 36))
