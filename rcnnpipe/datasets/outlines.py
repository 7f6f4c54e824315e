"""Outlines of the drawn shapes: closed polygons (V, 2) x y about the origin, y down, radius 1.

``SHAPES`` are the classes of the demo set, ``OTHER_SHAPES`` those of its auxiliary task: as with
ImageNet and VOC, what is learned on the one helps with the other, and no class is in both.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

Outline = npt.NDArray[np.float64]

_CURVE = 40  # points on a full turn: within a tenth of a pixel of the circle at radius 60


def _turn(start: float = 0.0, stop: float = 2 * np.pi, count: int = _CURVE) -> Outline:
    """Points on the unit circle from angle ``start`` to ``stop``, clockwise on the screen."""
    angles = np.linspace(start, stop, count)
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def _regular(corners: int) -> Outline:
    return _turn(-np.pi / 2, 1.5 * np.pi, corners + 1)[:-1]


def _star() -> Outline:
    radii = np.where(np.arange(10) % 2, 0.45, 1.0)
    return _regular(10) * radii[:, None]


def _ring() -> Outline:
    """Outer and inner circle joined by a seam, because COCO polygons know no holes."""
    return np.concatenate([_turn(), _turn()[::-1] * 0.55])


def _points(*corners: tuple[float, float]) -> Outline:
    return np.array(corners, np.float64)


def _cross(arm: float = 0.3) -> Outline:
    quarter = _points((arm, -1), (arm, -arm), (1, -arm))
    turns = [np.array([[0, 1], [-1, 0]]), np.array([[-1, 0], [0, -1]]), np.array([[0, -1], [1, 0]])]
    return np.concatenate([quarter, *(quarter @ turn for turn in turns)])


def _crescent() -> Outline:
    outer = _turn(0.25 * np.pi, 1.75 * np.pi)
    inner = _turn(1.68 * np.pi, 0.32 * np.pi, 30) * 0.75 + (0.38, 0)
    crescent: Outline = np.concatenate([outer, inner]) + np.array([0.2, 0])
    return crescent


def _heart() -> Outline:
    angle = np.linspace(0, 2 * np.pi, _CURVE)[:-1]
    x = 16 * np.sin(angle) ** 3
    y = -13 * np.cos(angle) + 5 * np.cos(2 * angle) + 2 * np.cos(3 * angle) + np.cos(4 * angle)
    return np.stack([x, y], 1) / 16


def _drop() -> Outline:
    body = _turn(-0.17 * np.pi, 1.17 * np.pi) * 0.65 + (0, 0.35)
    return np.concatenate([body, _points((0, -1))])


SHAPES: Final[Mapping[str, Outline]] = {
    "circle": _turn()[:-1],
    "cross": _cross(),
    "ring": _ring(),
    "square": _regular(4),
    "star": _star(),
    "triangle": _regular(3),
}

OTHER_SHAPES: Final[Mapping[str, Outline]] = {
    "arrow": _points(
        (-1, -0.28), (0.1, -0.28), (0.1, -0.75), (1, 0), (0.1, 0.75), (0.1, 0.28), (-1, 0.28)
    ),
    "bolt": _points((0.25, -1), (-0.6, 0.15), (-0.05, 0.15), (-0.3, 1), (0.6, -0.2), (0.05, -0.2)),
    "crescent": _crescent(),
    "drop": _drop(),
    "heart": _heart(),
    "hexagon": _regular(6),
    "hook": _points((-0.7, -1), (-0.1, -1), (-0.1, 0.4), (0.75, 0.4), (0.75, 1), (-0.7, 1)),
    "trapezium": _points((-0.4, -0.7), (0.4, -0.7), (1, 0.7), (-1, 0.7)),
}


def transform(outline: Outline, centre: Outline, radius: Outline, angle: float) -> Outline:
    """The outline stretched by ``radius`` (2,), turned by ``angle``, moved to ``centre`` (2,)."""
    cosine, sine = np.cos(angle), np.sin(angle)
    turn = np.array([[cosine, sine], [-sine, cosine]])
    turned: Outline = (outline * radius) @ turn + centre
    return turned


def clip_polygon(polygon: Outline, size: tuple[int, int]) -> Outline:
    """The part inside an image of ``size`` (height, width); empty (0, 2) where none is.

    Source: Sutherland and Hodgman 1974. Concave parts stay joined along the border, which changes
    neither area nor bounds.
    """
    height, width = size
    for axis, limit, sign in ((0, 0, 1), (0, width, -1), (1, 0, 1), (1, height, -1)):
        if not len(polygon):
            break
        depth = sign * (polygon[:, axis] - limit)  # positive inside
        kept = []
        for place, point in enumerate(polygon):
            before = polygon[place - 1]
            if (depth[place] >= 0) != (depth[place - 1] >= 0):
                share = depth[place - 1] / (depth[place - 1] - depth[place])
                crossing = before + share * (point - before)
                crossing[axis] = limit  # exactly
                kept.append(crossing)
            if depth[place] >= 0:
                kept.append(point)
        polygon = np.array(kept).reshape(-1, 2)
    return polygon


def polygon_area(polygon: Outline) -> float:
    """Area inside, by the shoelace formula."""
    x, y = polygon.T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)
