"""The colour spaces selective search looks at, each as planes of 0..255.

C planes (1 or 3), H height, W width. All planes are uint8, as in the authors' code: hues and
chromas in steps of 1/255 are what the segmentation and both histograms see.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

Planes = npt.NDArray[np.uint8]

# sRGB to CIE XYZ relative to the D50 white of the ICC profile connection space, the white divided
# out: each row sums to 1, so that white is (1, 1, 1).
_SRGB_TO_XYZ = np.array(
    [
        [0.4360747, 0.3850649, 0.1430804],
        [0.2225045, 0.7168786, 0.0606169],
        [0.0139322, 0.0971045, 0.7141733],
    ]
)
_XYZ_WEIGHTS = (_SRGB_TO_XYZ / _SRGB_TO_XYZ.sum(axis=1, keepdims=True)).astype(np.float32)
_CUBE_ROOT_STEPS = 65536


def _linear_light() -> npt.NDArray[np.float32]:
    """(256,) linear light in 0..1 of an sRGB byte (IEC 61966-2-1)."""
    value = np.arange(256) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4).astype(
        np.float32
    )


def _cube_root() -> npt.NDArray[np.float32]:
    """(steps + 1,) CIE's f(t) for t in 0..1: cube root with a linear foot."""
    value = np.arange(_CUBE_ROOT_STEPS + 1) / _CUBE_ROOT_STEPS
    foot = value * (841 / 108) + 4 / 29
    return np.where(value > (6 / 29) ** 3, np.cbrt(value), foot).astype(np.float32)


_LINEAR_LIGHT = _linear_light()
_CUBE_ROOT = _cube_root()


@njit(cache=True, nogil=True)
def _hsv(image: Any, channels: int) -> Any:
    height, width = image.shape[:2]
    planes = np.empty((channels, height, width), np.uint8)
    for y in range(height):
        for x in range(width):
            red = np.int32(image[y, x, 0])
            green = np.int32(image[y, x, 1])
            blue = np.int32(image[y, x, 2])
            value = max(red, green, blue)
            chroma = value - min(red, green, blue)
            hue = np.float32(0)  # in sixths of the circle
            if chroma > 0:
                if value == red:
                    hue = np.float32(green - blue) / np.float32(chroma)
                    if hue < 0:
                        hue += np.float32(6)
                elif value == green:
                    hue = np.float32(blue - red) / np.float32(chroma) + np.float32(2)
                else:
                    hue = np.float32(red - green) / np.float32(chroma) + np.float32(4)
            planes[0, y, x] = np.uint8(hue * np.float32(42.5) + np.float32(0.5))  # 255 / 6
            if channels == 3:
                saturation = np.float32(0)
                if value > 0:
                    saturation = np.float32(255 * chroma) / np.float32(value)
                planes[1, y, x] = np.uint8(saturation + np.float32(0.5))
                planes[2, y, x] = np.uint8(value)
    return planes


@njit(cache=True, nogil=True)
def _lab(image: Any, linear_light: Any, cube_root: Any, weights: Any) -> Any:
    height, width = image.shape[:2]
    planes = np.empty((3, height, width), np.uint8)
    steps = np.float32(cube_root.shape[0] - 1)
    half = np.float32(0.5)
    for y in range(height):
        for x in range(width):
            red = linear_light[image[y, x, 0]]
            green = linear_light[image[y, x, 1]]
            blue = linear_light[image[y, x, 2]]
            fx = cube_root[
                np.int32(
                    (weights[0, 0] * red + weights[0, 1] * green + weights[0, 2] * blue) * steps
                    + half
                )
            ]
            fy = cube_root[
                np.int32(
                    (weights[1, 0] * red + weights[1, 1] * green + weights[1, 2] * blue) * steps
                    + half
                )
            ]
            fz = cube_root[
                np.int32(
                    (weights[2, 0] * red + weights[2, 1] * green + weights[2, 2] * blue) * steps
                    + half
                )
            ]
            # The ICC's 8-bit Lab: L 0..100 onto 0..255, a and b shifted by 128.
            light = (np.float32(116) * fy - np.float32(16)) * np.float32(2.55)
            a = np.float32(500) * (fx - fy) + np.float32(128)
            b = np.float32(200) * (fy - fz) + np.float32(128)
            planes[0, y, x] = np.uint8(min(max(light + half, np.float32(0)), np.float32(255)))
            planes[1, y, x] = np.uint8(min(max(a + half, np.float32(0)), np.float32(255)))
            planes[2, y, x] = np.uint8(min(max(b + half, np.float32(0)), np.float32(255)))
    return planes


@njit(cache=True, nogil=True)
def _intensity_of(red: Any, green: Any, blue: Any) -> Any:
    """ITU-R BT.601 luma of three bytes, rounded: 0..255."""
    return np.uint8(
        (299 * np.int64(red) + 587 * np.int64(green) + 114 * np.int64(blue) + 500) // 1000
    )


@njit(cache=True, nogil=True)
def _intensity(image: Any) -> Any:
    height, width = image.shape[:2]
    planes = np.empty((1, height, width), np.uint8)
    for y in range(height):
        for x in range(width):
            planes[0, y, x] = _intensity_of(image[y, x, 0], image[y, x, 1], image[y, x, 2])
    return planes


@njit(cache=True, nogil=True)
def _rgi(image: Any) -> Any:
    height, width = image.shape[:2]
    planes = np.empty((3, height, width), np.uint8)
    for y in range(height):
        for x in range(width):
            red = np.int64(image[y, x, 0])
            green = np.int64(image[y, x, 1])
            total: Any = max(red + green + np.int64(image[y, x, 2]), 1)
            planes[0, y, x] = np.uint8((510 * red + total) // (2 * total))  # rounded 255 * r / sum
            planes[1, y, x] = np.uint8((510 * green + total) // (2 * total))
            planes[2, y, x] = _intensity_of(image[y, x, 0], image[y, x, 1], image[y, x, 2])
    return planes


def hsv(image: npt.NDArray[np.uint8]) -> Planes:
    """(3, H, W) hue, saturation and value of an RGB image (H, W, 3)."""
    planes: Planes = _hsv(image, 3)
    return planes


def lab(image: npt.NDArray[np.uint8]) -> Planes:
    """(3, H, W) CIE L*a*b* under D50, in the ICC's 8-bit encoding, of an sRGB image (H, W, 3)."""
    planes: Planes = _lab(image, _LINEAR_LIGHT, _CUBE_ROOT, _XYZ_WEIGHTS)
    return planes


def rgi(image: npt.NDArray[np.uint8]) -> Planes:
    """(3, H, W) red and green as shares of r + g + b, and intensity; black has shares of 0."""
    planes: Planes = _rgi(image)
    return planes


def hue(image: npt.NDArray[np.uint8]) -> Planes:
    """(1, H, W) the hue of `hsv` alone; grey has hue 0."""
    planes: Planes = _hsv(image, 1)
    return planes


def intensity(image: npt.NDArray[np.uint8]) -> Planes:
    """(1, H, W) BT.601 luma."""
    planes: Planes = _intensity(image)
    return planes


# Uijlings et al. 2013, section 3.2, in the order of the authors' code.
COLOUR_SPACES: dict[str, Callable[[npt.NDArray[np.uint8]], Planes]] = {
    "hsv": hsv,
    "lab": lab,
    "rgi": rgi,
    "hue": hue,
    "intensity": intensity,
}
