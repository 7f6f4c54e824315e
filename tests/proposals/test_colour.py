import colorsys

import numpy as np
import pytest

from rcnnpipe.proposals import colour


def image_of(*pixels: tuple[int, int, int]) -> np.ndarray:
    return np.array([pixels], np.uint8)


def random_image(seed: int = 0, size: tuple[int, int] = (9, 7)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def test_hsv_equals_the_standard_librarys() -> None:
    image = random_image()
    planes = colour.hsv(image)
    for y, x in np.ndindex(image.shape[:2]):
        expected = np.array(colorsys.rgb_to_hsv(*(image[y, x] / 255))) * 255
        np.testing.assert_allclose(planes[:, y, x], expected, atol=0.501)


def test_hue_is_the_first_plane_of_hsv_and_grey_has_none() -> None:
    image = random_image(1)
    np.testing.assert_array_equal(colour.hue(image), colour.hsv(image)[:1])
    grey = colour.hsv(image_of((0, 0, 0), (90, 90, 90), (255, 255, 255)))
    np.testing.assert_array_equal(grey[:, 0], [[0, 0, 0], [0, 0, 0], [0, 90, 255]])


@pytest.mark.parametrize(
    ("pixel", "lab"),
    [  # CIE L*a*b* under D50 of sRGB's white, black, primaries (Lindbloom's calculator)
        ((255, 255, 255), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((255, 0, 0), (54.29, 80.81, 69.89)),
        ((0, 255, 0), (87.82, -79.29, 80.99)),
        ((0, 0, 255), (29.57, 68.30, -112.03)),
    ],
)
def test_lab_of_known_colours(pixel: tuple[int, int, int], lab: tuple[float, ...]) -> None:
    expected = np.array([lab[0] * 2.55, lab[1] + 128, lab[2] + 128])
    np.testing.assert_allclose(colour.lab(image_of(pixel))[:, 0, 0], expected, atol=0.55)


def test_rgi_is_shares_and_intensity() -> None:
    # (30, 60, 10): shares 0.3 and 0.6 of 255; luma 0.299 * 30 + 0.587 * 60 + 0.114 * 10 = 45.33
    planes = colour.rgi(image_of((30, 60, 10), (0, 0, 0)))
    np.testing.assert_array_equal(planes[:, 0], [[77, 0], [153, 0], [45, 0]])
    image = random_image(2)
    np.testing.assert_array_equal(colour.intensity(image), colour.rgi(image)[2:])
