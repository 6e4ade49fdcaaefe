"""From the bytes of an image to RGB: transparency, bit depth, sizes, and what is rejected."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from imagefolder.data.transforms import open_bounded, open_rgb
from imagefolder.errors import InputError


def opened(data: bytes) -> list[list[int]]:
    """All pixels in order."""
    return np.asarray(open_rgb(data, "x.png")).reshape(-1, 3).tolist()


def unreadable(data: bytes) -> str:
    with pytest.raises(InputError, match=r"^x\.png: not a readable image \(") as caught:
        open_rgb(data, "x.png")
    return str(caught.value)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, depth: int, color: int, rows: list[bytes], key: bytes = b"") -> bytes:
    """A PNG that Pillow cannot write; `key` is its tRNS chunk."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + (chunk(b"tRNS", key) if key else b"") + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "WEBP"])
def test_colours_hidden_by_transparency_do_not_matter(mode: str) -> None:
    seen = []
    for under in (0, 200):
        pixels = np.full((1, 4, 4), under, np.uint8)
        pixels[0, :, 3] = [0, 255, 128, 0]
        pixels[0, 1:3, :3] = 60
        image = Image.fromarray(pixels)
        if mode == "P":
            image = image.quantize(4)
        elif mode == "LA":
            image = image.convert("LA")
        options = {"lossless": True, "exact": True} if mode == "WEBP" else {}
        seen.append(opened(encoded(image, "WEBP" if mode == "WEBP" else "PNG", **options)))
    assert seen[0] == seen[1]
    assert seen[0][:2] == [[255] * 3, [60] * 3]
    assert abs(seen[0][2][0] - (60 + 255) / 2) <= 1


@pytest.mark.parametrize(
    ("depth", "color", "row", "key", "expected"),
    [
        (1, 0, b"\xa0", b"\0\0", [255, 255, 255]),  # white, black, white without the black
        (2, 0, b"\x1b", b"\0\2", [0, 85, 255]),
        (4, 0, b"\x3c\xf0", b"\0\3", [255, 204, 255]),
        (8, 0, b"\7\10\11", b"\0\10", [7, 255, 9]),
        (16, 0, b"\1\1\2\2\xff\xff", b"\2\2", [1, 255, 255]),
        (8, 2, b"\1\1\1\2\2\2\3\3\3", b"\0\2\0\2\0\2", [1, 255, 3]),
    ],
)
def test_a_single_transparent_colour_is_white(
    depth: int, color: int, row: bytes, key: bytes, expected: list[int]
) -> None:
    assert opened(png(3, 1, depth, color, [row], key)) == [[value] * 3 for value in expected]


def test_a_transparent_colour_of_more_bits_than_are_read_is_rejected() -> None:
    row = struct.pack(">6H", 1, 2, 3, 40000, 5, 6)
    assert opened(png(2, 1, 16, 2, [row])) == [[0, 0, 0], [156, 0, 0]]
    assert "a transparent colour of 16 bits" in unreadable(png(2, 1, 16, 2, [row], row[:6]))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([0.0, 0.25, 0.3, 1.0], np.float32), [0, 64, 76, 255]),
        (np.array([0, 256, 257, 65535], np.uint16), [0, 0, 1, 255]),
        (np.array([0, 256, 257, 65535], np.int32), [0, 0, 1, 255]),
        (np.array([0.0, 1.01], np.float32), "its values are 0 to 1.01"),
        (np.array([0.0, 200.0], np.float32), "its values are 0 to 200"),
        (np.array([-0.5, 1.0], np.float32), "its values are -0.5 to 1"),
        (np.array([np.nan, 1.0], np.float32), "its values are nan to nan"),
        (np.array([0, 65536], np.int32), "its values are 0 to 65536"),
        (np.array([-1, 300], np.int32), "its values are -1 to 300"),
        (np.array([0, 200], np.int32), "its values are 0 to 200 in 32 bits"),
    ],
)
def test_deep_greys_are_scaled_or_rejected_but_never_clipped(values: np.ndarray, expected: list[int] | str) -> None:
    data = encoded(Image.fromarray(values[None]), "TIFF")
    if isinstance(expected, str):
        assert expected in unreadable(data)
    else:
        assert opened(data) == [[value] * 3 for value in expected]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "PPM", "TIFF", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_plain_images_have_the_pixels_that_pillow_reads(kind: str, mode: str) -> None:
    if mode == "CMYK" and kind not in ("JPEG", "TIFF"):
        return
    noise = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    data = encoded(Image.fromarray(noise).convert(mode), kind)
    assert np.array_equal(opened(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).reshape(-1, 3))


def test_exif_orientation_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.new("RGB", (8, 4)), "JPEG", exif=exif)
    assert open_rgb(data, "x").size == (8, 4)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("size", "why"),
    [
        ((2**14, 2**13 + 1), "134,217,728"),
        ((2**16, 2**15), "134,217,728 pixels"),
        ((101, 1), "101 x 1 pixels: one side is more than 100 times the other"),
        ((7, 701), "7 x 701 pixels: one side"),
    ],
)
def test_the_size_is_checked_before_anything_is_decoded(size: tuple[int, int], why: str) -> None:
    assert why in unreadable(png(*size, 8, 0, []))


def test_large_images_within_the_limits_open_without_a_warning() -> None:
    """Pillow itself warns from 90 million pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_bounded(io.BytesIO(png(2**14, 2**13, 8, 0, []))).size == (2**14, 2**13)
    assert len(opened(png(100, 1, 8, 0, [bytes(100)]))) == 100
