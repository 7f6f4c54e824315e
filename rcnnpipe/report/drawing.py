"""One picture with marks on it: boxes, labels that stay inside, masks, points.

Sizes of lines and letters follow the size of the picture, so marks look alike on every image.
Drawn with Pillow and the DejaVu font that comes with matplotlib: equal marks give equal pixels.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Corners = tuple[float, float, float, float]

INK, PAPER, FAINT = (24, 24, 24), (255, 255, 255), (110, 110, 110)
_HALO = (0, 0, 0)
# Told apart by eye on photographs, light enough for dark letters; more follow by golden angle.
_FIRST = (
    "#ffb000", "#00c2ff", "#ff4fa3", "#7dff3b", "#b57bff",
    "#ff6b35", "#2ee6c0", "#fff23a", "#6f8cff", "#ff8f9c",
)  # fmt: skip
_GOLDEN = 0.6180339887
_MASK_SHARE = 0.42  # of a mask's colour in the picture
_MOST_COVERED = 0.3  # of a label, by those before it
_FAINT_SHARE = 130  # of 255, of a faint line's colour


def class_colour(label: int) -> Colour:
    """The colour of a class, the same on every picture."""
    number = max(label - 1, 0)
    if number < len(_FIRST):
        return rgb(_FIRST[number])
    value = 1.0 if number % 2 else 0.8
    red, green, blue = colorsys.hsv_to_rgb(number * _GOLDEN % 1, 0.75, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def rgb(name: str) -> Colour:
    """A colour from "#rrggbb"."""
    red, green, blue = ImageColor.getrgb(name)[:3]
    return red, green, blue


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans; it has Latin, Greek and Cyrillic letters."""
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


@dataclass(frozen=True)
class _Label:
    corners: Corners
    text: str
    colour: Colour


class Picture:
    """An image scaled to a size, to draw on; coordinates are those of the original image."""

    def __init__(self, pixels: npt.NDArray[np.uint8], longest: int) -> None:
        """Begin with the image alone.

        Args:
            pixels: (H, W, 3).
            longest: length of the longer side of the picture, in pixels; small images grow.
        """
        height, width = pixels.shape[:2]
        self.scale = longest / max(height, width)
        size = (max(1, round(width * self.scale)), max(1, round(height * self.scale)))
        self.image = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
        self.line = max(2, round(longest / 220))
        self.letters = max(11, round(longest / 36))
        self._draw = ImageDraw.Draw(self.image)
        self._labels: list[_Label] = []

    def box(
        self,
        box: Sequence[float],
        colour: Colour,
        text: str = "",
        *,
        dashed: bool = False,
    ) -> None:
        """A box x1 y1 x2 y2 with a label; a dark rim keeps it visible on any ground."""
        left, top, right, bottom = self._corners(box)
        rim = (left - 1, top - 1, right + 1, bottom + 1)
        self._rectangle(rim, _HALO, self.line + 2, dashed)
        self._rectangle((left, top, right, bottom), colour, self.line, dashed)
        if text:
            self._labels.append(_Label((left, top, right, bottom), text, colour))

    def faint_boxes(self, boxes: npt.NDArray[np.floating], colour: Colour) -> None:
        """Many boxes (R, 4) in half-transparent lines, so that the image shows through."""
        lines = Image.new("L", self.image.size)
        draw = ImageDraw.Draw(lines)
        for box in boxes.tolist():
            draw.rectangle(self._corners(box), outline=_FAINT_SHARE, width=max(1, self.line // 2))
        self.image.paste(Image.new("RGB", self.image.size, colour), mask=lines)

    def mask(self, mask: npt.NDArray[np.bool_], colour: Colour) -> None:
        """A mask (H, W) of the original image, laid over it."""
        share = Image.fromarray(mask.astype(np.uint8) * round(255 * _MASK_SHARE))
        share = share.resize(self.image.size, Image.Resampling.BILINEAR)
        self.image.paste(Image.new("RGB", self.image.size, colour), mask=share)

    def points(self, points: npt.NDArray[np.floating], colour: Colour) -> None:
        """Keypoints (P, 3) x, y, visibility: seen ones filled, hidden ones as rings.

        As COCO has them, 0 is the middle of the first pixel.
        """
        radius = self.line + 1
        for x, y, visibility in points.tolist():
            if visibility == 0:
                continue
            x, y = (x + 0.5) * self.scale, (y + 0.5) * self.scale
            circle = (x - radius, y - radius, x + radius, y + radius)
            fill = colour if visibility > 1 else None
            self._draw.ellipse(circle, fill=fill, outline=_HALO if fill else colour, width=1)

    def finished(self) -> Image.Image:
        """The picture with its labels on top: none outside, smaller ones where there are many.

        The last box comes first. A label that could only stand on others is left out; its box is
        there in any case.
        """
        many = len(self._labels)
        share = 1.0 if many <= 8 else 0.85 if many <= 16 else 0.7
        size = max(10, round(self.letters * share))
        taken: list[Corners] = []
        for label in reversed(self._labels):
            text = fitted(label.text, size, self.image.width - 4)
            place = self._place(label.corners, text, size, taken)
            covered = sum(_shared(place, other) for other in taken)
            if covered <= _MOST_COVERED * (place[2] - place[0]) * (place[3] - place[1]):
                self._write(place, text, size, label.colour)
                taken.append(place)
        self._labels.clear()
        return self.image

    def _place(self, corners: Corners, text: str, size: int, taken: Sequence[Corners]) -> Corners:
        letters, pad = font(size), _pad(size)
        width = letters.getlength(text) + 2 * pad
        height = sum(letters.getmetrics()) + pad
        places = [self._pushed_in(x, y, width, height) for x, y in _places(corners, width, height)]
        return min(places, key=lambda spot: sum(_shared(spot, other) for other in taken))

    def _write(self, place: Corners, text: str, size: int, colour: Colour) -> None:
        self._draw.rectangle(place, fill=colour)
        bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 110
        where = (place[0] + _pad(size), place[1] + _pad(size) // 2)
        self._draw.text(where, text, fill=INK if bright else PAPER, font=font(size))

    def _pushed_in(self, x: float, y: float, width: float, height: float) -> Corners:
        x = round(min(max(x, 0), max(self.image.width - width, 0)))
        y = round(min(max(y, 0), max(self.image.height - height, 0)))
        return x, y, x + round(width), y + round(height)

    def _corners(self, box: Sequence[float]) -> tuple[int, int, int, int]:
        """Where a box's lines run: inside of the picture even when it leaves the image."""
        width, height = self.image.size
        left, top = (round(value * self.scale) for value in box[:2])
        right, bottom = (round(value * self.scale) - 1 for value in box[2:4])
        left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
        return left, top, max(min(right, width - 1), left), max(min(bottom, height - 1), top)

    def _rectangle(
        self, corners: tuple[int, int, int, int], colour: Colour, width: int, dashed: bool
    ) -> None:
        left, top, right, bottom = corners
        if min(right - left, bottom - top) < 2 * width:  # the lines would meet
            self._draw.rectangle(corners, fill=colour)
            return
        if not dashed:
            self._draw.rectangle(corners, outline=colour, width=width)
            return
        step = 4 * self.line
        for start in range(left, right + 1, 2 * step):
            end = min(start + step, right)
            self._draw.rectangle((start, top, end, min(top + width - 1, bottom)), fill=colour)
            self._draw.rectangle((start, max(bottom - width + 1, top), end, bottom), fill=colour)
        for start in range(top, bottom + 1, 2 * step):
            end = min(start + step, bottom)
            self._draw.rectangle((left, start, min(left + width - 1, right), end), fill=colour)
            self._draw.rectangle((max(right - width + 1, left), start, right, end), fill=colour)


def fitted(text: str, size: int, width: float) -> str:
    """Text cut to a width in pixels, with an ellipsis where it was cut."""
    letters = font(size)
    if letters.getlength(text) <= width:
        return text
    while text and letters.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def wrapped(text: str, size: int, width: float) -> list[str]:
    """Text in lines of a width in pixels, broken between words; a longer word is cut."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if lines[-1] and font(size).getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return [fitted(line, size, width) for line in lines]


def _pad(size: int) -> int:
    """Space around the letters of a label."""
    return max(1, size // 6)


def _places(corners: Corners, width: float, height: float) -> list[tuple[float, float]]:
    """Where a label may stand, best first: above its box, inside at the corners, below."""
    left, top, right, bottom = corners
    return [
        (left, top - height),
        (left, top),
        (right - width, top - height),
        (left, bottom),
        (right - width, top),
        (left, bottom - height),
        (right - width, bottom),
    ]


def _shared(first: Corners, second: Corners) -> float:
    """Area that two labels have in common."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(width, 0) * max(height, 0)
