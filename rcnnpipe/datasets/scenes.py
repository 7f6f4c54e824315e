"""Drawing one scene of the demo set: textured ground, clutter, shapes that hide one another.

Colour and texture are drawn independently of the class, so that only the outline tells it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from rcnnpipe.datasets.outlines import Outline, clip_polygon, polygon_area, transform

Pixels = npt.NDArray[np.float64]  # (H, W, 3) in 0..255
Mask = npt.NDArray[np.bool_]  # (H, W)

SIDE = (160, 241)  # pixels, each side of an image
RADIUS = (10.0, 64.0)  # pixels, log-uniform
LEAST_VISIBLE = 0.3  # of a shape's area; less is not drawn
DIFFICULT = 0.55  # visible less than this: flagged
EMPTY, CROWDED = 0.08, 0.15  # shares of images without a shape, and with a crowd
MOST = 5  # shapes in an image


@dataclass
class Shape:
    """One drawn shape.

    Attributes:
        name: its class.
        outline: (V, 2) whole outline, also where it is hidden or outside the image.
        visible: (H, W) the pixels to be seen of it.
        covered: (H, W) the pixels later shapes lie on, of it or not.
        centre: (2,) x y.
        crowd: whether it stands for a whole group.
        hidden: whether a later shape covers some of it.
    """

    name: str
    outline: Outline
    visible: Mask
    covered: Mask
    centre: Outline
    crowd: bool = False
    hidden: bool = False

    @property
    def share(self) -> float:
        """Visible area over the whole outline's."""
        return float(self.visible.sum() / polygon_area(self.outline))

    @property
    def truncated(self) -> bool:
        """Whether the image border cuts it."""
        height, width = self.visible.shape
        return bool((self.outline < 0).any() or (self.outline > (width, height)).any())


@dataclass
class Scene:
    """A drawn image: ``pixels`` (H, W, 3) uint8 and its shapes, the hindmost first."""

    pixels: npt.NDArray[np.uint8]
    shapes: list[Shape] = field(default_factory=list)


def draw_scene(outlines: Mapping[str, Outline], random: np.random.Generator) -> Scene:
    """One scene with up to ``MOST`` shapes; the same generator gives the same scene."""
    height, width = (int(side) for side in random.integers(*SIDE, size=2))
    canvas = _ground(height, width, random)
    for _ in range(int(random.integers(0, 4))):
        _draw_clutter(canvas, random)
    shapes: list[Shape] = []
    names = list(outlines)
    if random.random() >= EMPTY:
        if random.random() < CROWDED:
            name = str(random.choice(names))
            shapes += _draw_crowd(canvas, name, outlines[name], random)
        for _ in range(int(random.integers(1, MOST + 1))):
            name = str(random.choice(names))
            _place_shape(canvas, shapes, name, outlines[name], random)
    return Scene(_photograph(canvas, random), shapes)


# --- ground -----------------------------------------------------------------------------------


def _ground(height: int, width: int, random: np.random.Generator) -> Pixels:
    """Two colours mixed by noise of several scales, at times with planks or tiles."""
    low, high = random.uniform(40, 215, (2, 3))
    high = low + (high - low) * random.uniform(0.3, 0.8)
    mix = _noise(height, width, random, first=int(random.integers(2, 5)))
    kind = random.random()
    if kind < 0.45:
        phase = _wave(height, width, random, period=random.uniform(18, 50))
        edge = np.clip((np.abs(phase) - 0.9) * 10, 0, 1)
        if kind < 0.2:
            across = _wave(height, width, random, period=random.uniform(18, 50))
            edge = np.maximum(edge, np.clip((np.abs(across) - 0.9) * 10, 0, 1))
        mix = mix * (1 - 0.5 * edge)
    ground: Pixels = low + (high - low) * mix[:, :, None]
    return ground


def _noise(height: int, width: int, random: np.random.Generator, first: int) -> Pixels:
    """Value noise (H, W) in 0..1: random grids of doubling fineness and 0.65 strength."""
    total, strength, cells = np.zeros((height, width)), 1.0, first
    while cells < max(height, width):
        grid = Image.fromarray(random.random((cells, cells)).astype(np.float32))
        fine = grid.resize((width, height), Image.Resampling.BICUBIC)
        total += strength * np.asarray(fine, np.float64)
        strength *= 0.65
        cells *= 2
    low, high = total.min(), total.max()
    scaled: Pixels = (total - low) / (high - low)
    return scaled


def _wave(height: int, width: int, random: np.random.Generator, period: float) -> Pixels:
    """Sine stripes (H, W) in -1..1 of any direction."""
    angle, phase = random.uniform(0, 2 * np.pi, 2)
    y, x = np.mgrid[:height, :width]
    across = x * np.cos(angle) + y * np.sin(angle)
    wave: Pixels = np.sin(across * (2 * np.pi / period) + phase)
    return wave


# --- painting ---------------------------------------------------------------------------------


def _coverage(polygon: Outline, height: int, width: int) -> Pixels:
    """How much of each pixel (H, W) a polygon covers, in 0..1, from 4 x 4 samples."""
    fine = Image.new("L", (4 * width, 4 * height))
    ImageDraw.Draw(fine).polygon([(4 * x - 0.5, 4 * y - 0.5) for x, y in polygon], fill=255)
    return np.asarray(fine.reduce(4), np.float64) / 255


def _paint(canvas: Pixels, cover: Pixels, random: np.random.Generator) -> None:
    """A shadow and a textured surface that stands out from what lies below, in place."""
    height, width = cover.shape
    right, down = (int(v) for v in random.integers(1, 4, 2))
    soft = Image.fromarray((cover * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(2.5))
    shadow = np.asarray(soft, np.float64)[: height - down, : width - right] / 255
    canvas[down:, right:] *= 1 - 0.45 * shadow[:, :, None]
    below = np.average(canvas.reshape(-1, 3), axis=0, weights=cover.ravel() + 1e-9)
    colour = random.uniform(15, 240, 3)
    while np.abs(colour - below).sum() < 130:
        colour = random.uniform(15, 240, 3)
    other = np.clip(colour + random.uniform(-70, 70, 3), 0, 255)
    kind = random.integers(4)
    if kind == 0:
        mix = _noise(height, width, random, first=8)
    elif kind == 1:
        mix = _wave(height, width, random, period=random.uniform(5, 14)) / 2 + 0.5
    elif kind == 2:
        period = random.uniform(6, 14)
        mix = _wave(height, width, random, period) * _wave(height, width, random, period) / 2 + 0.5
    else:
        mix = _wave(height, width, random, period=4.0 * width) / 2 + 0.5
    surface = colour + (other - colour) * mix[:, :, None]
    canvas += (surface - canvas) * cover[:, :, None]


def _draw_clutter(canvas: Pixels, random: np.random.Generator) -> None:
    """A blob or a bar that is no object."""
    height, width = canvas.shape[:2]
    centre = random.uniform((0, 0), (width, height))
    if random.random() < 0.5:
        angles = np.linspace(0, 2 * np.pi, 48)[:-1]
        radii = 1 + sum(
            random.uniform(0.1, 0.35) * np.sin(k * angles + random.uniform(0, 6)) for k in (2, 3, 5)
        )
        outline = np.stack([np.cos(angles), np.sin(angles)], 1) * np.asarray(radii)[:, None]
        stretch = np.full(2, random.uniform(6, 22))
    else:
        outline = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], np.float64)
        stretch = np.array([random.uniform(25, 90), random.uniform(1.2, 4)])
    polygon = transform(outline, centre, stretch, random.uniform(0, 2 * np.pi))
    _paint(canvas, _coverage(polygon, height, width), random)


def _photograph(canvas: Pixels, random: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Light from one side, the lens' softness and the sensor's noise."""
    height, width = canvas.shape[:2]
    light = 1 + 0.2 * _wave(height, width, random, period=3.0 * width)
    noisy = canvas * light[:, :, None]
    image = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(random.uniform(0.3, 0.7)))
    noise = random.normal(0, random.uniform(2, 6), (height, width, 3))
    return np.clip(np.asarray(image, np.float64) + noise, 0, 255).astype(np.uint8)


# --- objects ----------------------------------------------------------------------------------


def _place_shape(
    canvas: Pixels, shapes: list[Shape], name: str, outline: Outline, random: np.random.Generator
) -> None:
    """Draw one more shape where enough of it and of all others stays visible, if such is found.

    Two tries in three avoid any overlap.
    """
    height, width = canvas.shape[:2]
    for attempt in range(12):
        radius = np.exp(random.uniform(*np.log(RADIUS))) * np.exp(random.uniform(-0.2, 0.2, 2))
        margin = 0.5 * radius.max()  # the centre stays inside: at most about half is cut off
        centre = random.uniform(margin, (width - margin, height - margin))
        polygon = transform(outline, centre, radius, random.uniform(0, 2 * np.pi))
        cover = _coverage(polygon, height, width)
        mask = cover >= 0.5
        covered = [(shape, shape.visible & ~mask) for shape in shapes]
        overlaps = any(left.sum() < shape.visible.sum() for shape, left in covered)
        if overlaps and attempt % 3:
            continue
        if mask.sum() < LEAST_VISIBLE * polygon_area(polygon) or any(
            left.sum() < (1.0 if shape.crowd else LEAST_VISIBLE) * polygon_area(shape.outline)
            for shape, left in covered
            if left.sum() < shape.visible.sum()
        ):
            continue
        for shape, left in covered:
            shape.hidden |= bool(left.sum() < shape.visible.sum())
            shape.visible = left
            shape.covered |= mask
        _paint(canvas, cover, random)
        shapes.append(Shape(name, polygon, mask, np.zeros_like(mask), centre))
        return


def _draw_crowd(
    canvas: Pixels, name: str, outline: Outline, random: np.random.Generator
) -> list[Shape]:
    """A cluster of tiny shapes, one region in the annotation."""
    height, width = canvas.shape[:2]
    centre = random.uniform(30, (width - 30, height - 30))
    union = np.zeros((height, width), np.bool_)
    for _ in range(int(random.integers(10, 20))):
        place = centre + random.normal(0, 14, 2)
        polygon = transform(
            outline, place, np.full(2, random.uniform(3.5, 6)), random.uniform(0, 2 * np.pi)
        )
        cover = _coverage(polygon, height, width)
        _paint(canvas, cover, random)
        union |= cover >= 0.5
    rows, columns = np.flatnonzero(union.any(1)), np.flatnonzero(union.any(0))
    left, top, right, bottom = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    hull = np.array([(left, top), (right, top), (right, bottom), (left, bottom)], np.float64)
    return [Shape(name, hull, union, np.zeros_like(union), centre, crowd=True)]


def visible_bounds(shape: Shape) -> tuple[float, float, float, float]:
    """x1 y1 x2 y2 of what is seen: of the outline where nothing hides it, else of the pixels."""
    if not shape.hidden and not shape.crowd:
        polygon = clip_polygon(shape.outline, shape.visible.shape)
        return (*polygon.min(0).tolist(), *polygon.max(0).tolist())
    rows, columns = np.flatnonzero(shape.visible.any(1)), np.flatnonzero(shape.visible.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
