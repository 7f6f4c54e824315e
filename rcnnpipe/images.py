"""Image files: whatever is on the disk becomes 8-bit RGB, as a viewer would show it.

One rule for each kind, the same in every stage:

- The EXIF orientation is applied, to the pixels and to the size.
- Grey, palette and CMYK become RGB; Adobe's inverted CMYK is inverted back.
- Transparent pixels are laid on white.
- 16-bit samples keep their upper byte (value // 256), whatever range the image uses of them.
- Of an animation the first frame counts.
"""

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from rcnnpipe.errors import DataError

IMAGE_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)

# Larger images are refused before memory is taken; Pillow's own hard limit, 0.5 GB of RGB.
MAX_PIXELS = 2 * (1024 * 1024 * 1024 // 4 // 3)

_ORIENTATION = 0x0112  # the EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED = (5, 6, 7, 8)  # these exchange height and width

# Pillow warns of damage beside the pixels (EXIF blocks, TIFF tags), which is no matter here.
# Changing warning filters is not safe in threads, hence the lock; it is held for headers only.
_headers = threading.Lock()


def read_image(path: str | Path) -> npt.NDArray[np.uint8]:
    """The pixels (H, W, 3) uint8 RGB, turned upright as EXIF says; contiguous and writable.

    Raises:
        DataError: the file is missing, no image, truncated, larger than ``MAX_PIXELS``, or holds
            values without an agreed scale (floating point, 32 bit).
    """
    with _opened(path) as image:
        try:
            image.load()
            with _quiet():
                orientation = _orientation(image)
            upright = image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
            return _rgb(upright, path)
        except DataError:
            raise
        except Exception as error:  # Pillow's decoders raise whatever they trip over
            raise DataError(
                f"{path} is truncated or damaged and cannot be decoded ({error}); replace the file"
            ) from error


def image_size(path: str | Path) -> tuple[int, int]:
    """The size (height, width) after EXIF orientation, from the header: no pixel is decoded.

    Raises:
        DataError: as ``read_image``, for what the header can show.
    """
    with _opened(path) as image:
        width, height = image.size
        if isinstance(image, TiffImageFile):  # Pillow's versions differ on which frame size means
            width, height = image.tag_v2[256], image.tag_v2[257]
        with _quiet():
            turned = _orientation(image) in _TURNED
    return (width, height) if turned else (height, width)


def is_turned(path: str | Path) -> bool:
    """Whether EXIF exchanges height and width: tools that ignore EXIF annotate the other frame."""
    with _opened(path) as image, _quiet():
        return _orientation(image) in _TURNED


@contextmanager
def _quiet() -> Iterator[None]:
    with _headers, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """The image with its header read and its size within bounds."""
    try:
        with _quiet():
            image = Image.open(path)
    except FileNotFoundError as error:
        raise DataError(f"image {path} does not exist") from error
    except Image.DecompressionBombError as error:
        raise DataError(_too_large(path)) from error
    except UnidentifiedImageError as error:
        empty = os.path.getsize(path) == 0
        what = "is an empty file" if empty else "is not an image of a known format"
        raise DataError(f"{path} {what}; replace it or leave it out") from error
    except Exception as error:
        raise DataError(f"image {path} cannot be opened ({error})") from error
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise DataError(_too_large(path))
        yield image


def _too_large(path: str | Path) -> str:
    return f"{path} claims more than {MAX_PIXELS:,} pixels and is not decoded; scale it down"


def _orientation(image: Image.Image) -> int:
    # Pillow decodes a whole PNG to look for EXIF behind the pixels; that is only done where
    # something stands there.
    try:
        if image.format == "PNG" and not _png_tail(image):
            exif = Image.Image.getexif(image)
        else:
            exif = image.getexif()
        return int(exif.get(_ORIENTATION, 1))
    except Exception:  # a broken EXIF block: viewers show the image as it is stored
        return 1


def _png_tail(image: Image.Image) -> bool:
    """Whether a PNG has metadata after its pixels."""
    seen_pixels = False
    with open(image.filename, "rb") as file:  # type: ignore[attr-defined]
        file.seek(8)
        while len(head := file.read(8)) == 8:
            kind = head[4:]
            if kind == b"IEND":
                return False
            if kind == b"IDAT":
                seen_pixels = True
            elif seen_pixels:
                return True
            file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
    return False


def _rgb(image: Image.Image, path: str | Path) -> npt.NDArray[np.uint8]:
    if image.mode.startswith("I"):
        return _from_16_bit(np.asarray(image), path)
    if image.mode == "F":
        raise DataError(
            f"{path} holds floating-point pixels, which have no agreed range; convert it to 8 bit"
        )
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.array(image.convert("RGB"))  # a copy: the caller may write to it


def _from_16_bit(values: npt.NDArray[np.integer], path: str | Path) -> npt.NDArray[np.uint8]:
    if values.size and not (values.min() >= 0 and values.max() < 65536):
        raise DataError(f"{path} holds 32-bit pixels outside 0..65535; convert it to 8 bit")
    grey = (values // 256).astype(np.uint8)  # (H, W)
    return np.repeat(grey[:, :, None], 3, axis=2)  # (H, W, 3)
