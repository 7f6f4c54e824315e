"""Every kind of file a camera, a scanner or a web site writes becomes upright 8-bit RGB."""

import io
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from rcnnpipe.errors import DataError
from rcnnpipe.images import MAX_PIXELS, image_size, is_turned, read_image
from tests.realdata import DATA, needs_data

# A 16 x 32 picture, upright: red, green / blue, white quarters.
UPRIGHT = np.zeros((16, 32, 3), np.uint8)
UPRIGHT[:8, :16, 0] = 255
UPRIGHT[:8, 16:, 1] = 255
UPRIGHT[8:, :16, 2] = 255
UPRIGHT[8:, 16:] = 255

# How a camera stores the upright picture for each EXIF orientation (TIFF 6.0, tag 274).
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: np.rot90(upright, 2).transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](UPRIGHT)))
    options: dict[str, dict[str, Any]] = {
        "webp": {"lossless": 1},
        "jpg": {"quality": 100, "subsampling": 0},
    }
    stored.save(path, exif=exif, **options.get(suffix, {}))

    pixels = read_image(path)

    assert image_size(path) == (16, 32)
    assert is_turned(path) == (orientation >= 5)
    np.testing.assert_allclose(pixels.astype(int), UPRIGHT, atol=3 if suffix == "jpg" else 0)


def test_exif_after_the_pixels_of_a_png_is_found(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = io.BytesIO()
    Image.fromarray(UPRIGHT).save(data, "PNG")
    block = b"eXIf" + exif.tobytes()[6:]
    chunk = (len(block) - 4).to_bytes(4, "big") + block + zlib.crc32(block).to_bytes(4, "big")
    path = tmp_path / "late.png"
    path.write_bytes(data.getvalue()[:-12] + chunk + data.getvalue()[-12:])
    assert image_size(path) == (32, 16)
    assert read_image(path).shape == (32, 16, 3)


def test_grey_and_one_bit(tmp_path: Path) -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.stack([grey] * 3, -1))
    Image.fromarray(grey > 30).save(tmp_path / "bit.png")
    np.testing.assert_array_equal(read_image(tmp_path / "bit.png")[:, :, 1], (grey > 30) * 255)


def test_palette_with_and_without_transparency(tmp_path: Path) -> None:
    image = Image.fromarray(UPRIGHT).quantize(4)
    image.save(tmp_path / "plain.gif")
    np.testing.assert_array_equal(read_image(tmp_path / "plain.gif"), UPRIGHT)
    transparent = image.getpixel((0, 0))
    assert isinstance(transparent, int)
    image.save(
        tmp_path / "see.png", transparency=bytes(0 if i == transparent else 255 for i in range(4))
    )
    expected = UPRIGHT.copy()
    expected[:8, :16] = 255  # the red quarter shows white ground
    np.testing.assert_array_equal(read_image(tmp_path / "see.png"), expected)


def test_alpha_is_laid_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[..., 0] = 200
    pixels[..., 3] = [[255, 0], [128, 255]]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    got = read_image(tmp_path / "a.png")
    assert got[0, 0].tolist() == [200, 0, 0]
    assert got[0, 1].tolist() == [255, 255, 255]
    assert abs(int(got[1, 0, 1]) - 127) <= 1  # half of 0 and half of 255
    Image.fromarray(pixels[..., [0, 3]], "LA").save(tmp_path / "la.png")
    assert read_image(tmp_path / "la.png")[0].tolist() == [[200] * 3, [255] * 3]


def test_cmyk_plain_and_as_adobe_inverts_it(tmp_path: Path) -> None:
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    cyan.save(tmp_path / "plain.tif")
    assert read_image(tmp_path / "plain.tif")[4, 4].tolist() == [0, 255, 255]
    cyan.save(tmp_path / "adobe.jpg", quality=100)  # Pillow writes CMYK JPEGs as Adobe does
    assert b"Adobe" in (tmp_path / "adobe.jpg").read_bytes()
    np.testing.assert_allclose(read_image(tmp_path / "adobe.jpg")[4, 4], [0, 255, 255], atol=3)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_keeps_the_upper_byte(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 255, 256], [511, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    got = read_image(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(got, np.repeat((values // 256)[..., None], 3, 2))


def test_pixels_without_an_agreed_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 2), 70_000, np.int32)).save(tmp_path / "i.tif")
    with pytest.raises(DataError, match=r"i\.tif holds 32-bit pixels outside 0\.\.65535"):
        read_image(tmp_path / "i.tif")
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(DataError, match=r"f\.tif holds floating-point pixels"):
        read_image(tmp_path / "f.tif")


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.gif")[0, 0].tolist() == [255, 0, 0]


def test_the_pixels_are_the_callers_own(tmp_path: Path) -> None:
    Image.fromarray(UPRIGHT).save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png")
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable


def test_a_broken_exif_block_is_passed_over(tmp_path: Path) -> None:
    for number, block in enumerate((b"`M\0*\0\0\0\x08", b"MM\0*\0\0\0\x08\0\x09", b"")):
        path = tmp_path / f"{number}.jpg"
        Image.fromarray(UPRIGHT).save(path, exif=b"Exif\0\0" + block)
        assert image_size(path) == read_image(path).shape[:2] == (16, 32)


def noise() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp"])
def test_truncated_images_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise()).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"a\.{suffix} "):
        read_image(path)


def test_what_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no\.png does not exist"):
        read_image(tmp_path / "no.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(DataError, match=r"empty\.png is an empty file"):
        image_size(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("<html>404</html>")
    with pytest.raises(DataError, match="is not an image of a known format"):
        read_image(tmp_path / "text.png")
    with pytest.raises(DataError, match="cannot be opened"):
        read_image(tmp_path)


@pytest.mark.parametrize("side", [10_000, 14_000, 30_000])
def test_bombs_are_refused_by_their_header(tmp_path: Path, side: int) -> None:
    # 10,000 squared is where Pillow begins to warn; the file ends after its header either way.
    head = b"IHDR" + side.to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    chunk = (13).to_bytes(4, "big") + head + zlib.crc32(head).to_bytes(4, "big")
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + b"\x00\x00\x01\x00IDAT")
    if side**2 > MAX_PIXELS:
        with pytest.raises(DataError, match="claims more than 178,956,970 pixels"):
            image_size(path)
    else:
        with pytest.raises(DataError, match=r"bomb\.png "):
            read_image(path)


def test_threads_may_read_at_once(tmp_path: Path) -> None:
    Image.fromarray(noise()).save(tmp_path / "a.png")
    results: list[npt.NDArray[np.uint8]] = []
    threads = [
        threading.Thread(target=lambda: results.append(read_image(tmp_path / "a.png")))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert all((result == noise()).all() for result in results)


@needs_data
def test_real_photographs_agree_with_their_headers() -> None:
    for path in sorted((DATA / "raccoon" / "JPEGImages").iterdir())[:20]:
        assert read_image(path).shape == (*image_size(path), 3)
