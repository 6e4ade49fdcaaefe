"""From the bytes of an image file to a square of 8-bit pixels: for evaluation, and augmented for the two trainings.

JPEG files are decoded in full: shrinking while decoding (Pillow's draft mode) is faster but gives other pixels.
"""

from __future__ import annotations

import io
import math
import random
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from imagefolder.errors import InputError, reason

View = Literal["plain", "tokenizer", "generator"]

SMALLEST_CROP = 0.8  # of the image's shorter side, for the tokenizer
ENLARGED = 1.125  # shorter side over the side of the generator's squares, which are cropped from it

FORMATS = ("PNG", "JPEG", "PPM", "BMP", "TIFF", "WEBP")  # those of the image suffixes; no decoder starts a program
MOST_PIXELS = 2**27
LONGEST = 100  # longer over shorter side: resized, a thinner image would fill the memory

# Pillow's own limit is lower, names no file and holds for the whole process. The limits here name the image.
Image.MAX_IMAGE_PIXELS = MOST_PIXELS

_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # TIFF tags, and a value of the second
_PNG_DEPTH = 24  # the byte of a PNG file that holds its bits per sample


def open_rgb(data: bytes, origin: str) -> Image.Image:
    """The bytes of an image file as RGB.

    Transparent images are composited over white, whatever colours are hidden. 16-bit values, and floats in [0, 1], are
    scaled to 8 bits. EXIF orientation is ignored in JPEG, PNG and WebP: published training and evaluation see the
    pixels as they are stored.

    Raises:
        InputError: naming `origin`: not a readable image, too large, too thin, or with values of unknown range.
    """
    try:
        with open_bounded(io.BytesIO(data)) as image:
            image.load()
            return to_rgb(image, data)
    except MemoryError:
        raise
    except Exception as error:  # damaged files make decoders raise almost anything
        raise InputError(f"{origin}: not a readable image ({reason(error)})") from None


def to_rgb(image: Image.Image, data: bytes | None = None) -> Image.Image:
    """An image of any mode as RGB, see `open_rgb`.

    Args:
        data: the bytes of its file, if they are known; without them, the transparent colour of a PNG is found as Pillow
            finds it.

    Raises:
        ValueError: values of unknown range, too many pixels, or too thin.
    """
    _require_bounded(image)
    if image.has_transparency_data:
        return _over_white(image, data)
    return _eight_bits(image).convert("RGB")


def open_bounded(file: BinaryIO, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Open an image of one of `formats` and of bounded size, without decoding it.

    Raises:
        ValueError: not such an image, too many pixels, or too thin.
        Exception: of other kinds, if the header is damaged.
    """
    try:
        image = Image.open(file, formats=formats)
    except UnidentifiedImageError:
        raise ValueError(f"its content is not {' or '.join(formats)}, or its header is damaged") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"it has more than {MOST_PIXELS:,} pixels") from None
    _require_bounded(image)
    return image


def _require_bounded(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise ValueError(f"{width:,} x {height:,} pixels are more than {MOST_PIXELS:,}")
    if min(width, height) < 1 or max(width, height) > LONGEST * min(width, height):
        raise ValueError(f"{width:,} x {height:,} pixels: one side is more than {LONGEST} times the other")


def is_16_bit_png(data: bytes) -> bool:
    """Whether a PNG file (its bytes) has 16 bits per sample; Pillow reads only 8 of them in colour images."""
    return data[_PNG_DEPTH : _PNG_DEPTH + 1] == b"\x10"


def _over_white(image: Image.Image, data: bytes | None) -> Image.Image:
    """A decoded image with any kind of transparency, over white. RGB."""
    key = image.info.get("transparency")
    if key is None or image.mode == "P" or data is None:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    # A PNG with one transparent colour, given in the bit depth of the file; Pillow compares it with scaled values
    values = np.asarray(image)
    if image.mode == "RGB":
        if is_16_bit_png(data):
            raise ValueError(
                "a transparent colour of 16 bits, of which only 8 are read; save it with 8 bits per sample"
            )
        key = np.array(key) & 255
        hidden = (values == key).all(-1)
    elif image.mode == "1":
        hidden = values == bool(key)
    else:
        most = 2 ** data[_PNG_DEPTH] - 1
        hidden = values == (key & most if most > 255 else (key & most) * 255 // most)
    shown = np.array(_eight_bits(image).convert("RGB"))
    shown[hidden] = 255
    return Image.fromarray(shown)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit and float greys, which Pillow would clip, to 8 bits; return other images as they are.

    Raises:
        ValueError: values outside 16 bits, floats outside [0, 1], or an unknown white level.
    """
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    values = np.asarray(image)
    low, high = values.min(), values.max()
    white = 1 if image.mode == "F" else 4095 if bits == 12 else 65535
    if not (low >= 0 and high <= white):  # written so that NaN fails
        raise ValueError(f"its values are {low:g} to {high:g}, outside 0 to {white}")
    if image.mode == "I" and bits == 32 and 0 < high <= 255:
        raise ValueError(f"its values are {low} to {high} in 32 bits, so its white level is unknown")
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = white - values
    if image.mode == "F":
        return Image.fromarray(np.rint(values * 255).astype(np.uint8))
    scaled = values // 257 if white == 65535 else values.astype(np.uint32) * 255 // white
    return Image.fromarray(scaled.astype(np.uint8))


def square(image: Image.Image, size: int, *, view: View, epoch: int, index: int, seed: int) -> np.ndarray:
    """One view of image `index`: uint8 (size, size, 3), a function of the arguments alone."""
    if view == "plain":
        return center_crop(image, size)
    rng = random.Random(f"{seed}:{epoch}:{index}")  # not of the worker or process
    if view == "generator":
        return enlarged_crop(image, size, rng)
    array = random_crop(image, size, rng)
    return array[:, ::-1] if rng.random() < 0.5 else array


def describe_view(size: int, view: View, seed: int) -> str:
    """How `square` computes its pixels, in one line."""
    return {
        "plain": f"ADM centre crop to {size}",
        "tokenizer": f"ADM random crop of {SMALLEST_CROP} to 1 of the shorter side to {size}, random flip, seed {seed}",
        "generator": f"shorter side to {ENLARGED} x {size} (Lanczos, longer side truncated), random crop, seed {seed}",
    }[view]


def center_crop(image: Image.Image, size: int) -> np.ndarray:
    """ADM's centre crop: box halving while at least twice `size`, bicubic to it, centre. uint8 (size, size, 3)."""
    image = _shrink(image, size)
    top, left = (image.height - size) // 2, (image.width - size) // 2
    return np.asarray(image)[top : top + size, left : left + size]


def random_crop(image: Image.Image, size: int, rng: random.Random) -> np.ndarray:
    """ADM's random crop: resized as for the centre crop, to a shorter side in size..ceil(size / 0.8), then cropped.

    uint8 (size, size, 3).
    """
    image = _shrink(image, rng.randint(size, math.ceil(size / SMALLEST_CROP)))
    return _random_square(image, size, rng)


def enlarged_crop(image: Image.Image, size: int, rng: random.Random) -> np.ndarray:
    """Shorter side to 1.125 x size (Lanczos; longer side truncated), then cropped. uint8 (size, size, 3)."""
    shorter, least = round(size * ENLARGED), min(image.size)
    width, height = (shorter if side == least else shorter * side // least for side in image.size)
    return _random_square(image.resize((width, height), Image.Resampling.LANCZOS), size, rng)


def _shrink(image: Image.Image, shorter: int) -> Image.Image:
    while min(image.size) >= 2 * shorter:
        image = image.resize((image.width // 2, image.height // 2), resample=Image.Resampling.BOX)
    scale = shorter / min(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def _random_square(image: Image.Image, size: int, rng: random.Random) -> np.ndarray:
    top, left = rng.randint(0, image.height - size), rng.randint(0, image.width - size)
    return np.asarray(image)[top : top + size, left : left + size]
