"""From an image file's bytes to a square of 8-bit pixels: as evaluated, and as the two trainings augment.

JPEG files are decoded in full: shrinking while decoding (Pillow's draft mode) is faster and gives other pixels.
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
ENLARGED = 1.125  # from which the generator's squares are cropped


FORMATS = ("PNG", "JPEG", "PPM", "BMP", "TIFF", "WEBP")  # what the suffixes of images mean; no decoder starts a program
MOST_PIXELS = 2**27
LONGEST = 100  # longer side over shorter side; resized to a square's side, thinner images would fill the memory

# Pillow's own bound is lower, warns without a name, and is for the whole process. Images are bounded here, by name.
Image.MAX_IMAGE_PIXELS = MOST_PIXELS

_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF, and the value of one
_PNG_DEPTH = 24  # the byte of a PNG file that holds its bits per sample


def open_rgb(data: bytes, origin: str) -> Image.Image:
    """The bytes of an image file as RGB.

    Transparent images are laid over white, whatever colours they have beneath. 16 bits are scaled to 8, and so are
    floats from 0 to 1. An orientation in EXIF data turns no JPEG, PNG or WebP: published training and evaluation see
    the pixels as they are stored.

    Raises:
        InputError: naming `origin`: no readable image, too large or too thin, or values of unknown meaning.
    """
    try:
        with open_bounded(io.BytesIO(data)) as image:
            image.load()
            if image.has_transparency_data:
                return _over_white(image, data)
            return _eight_bits(image).convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # whatever a decoder stumbles over: damaged files make them raise almost anything
        raise InputError(f"{origin}: not a readable image ({reason(error)})") from None


def open_bounded(file: BinaryIO, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """An image not decoded yet, of one of some formats and of bounded size.

    Raises:
        ValueError: it is none, or has too many pixels, or is too thin.
        Exception: of other kinds, where the header is damaged.
    """
    try:
        image = Image.open(file, formats=formats)
    except UnidentifiedImageError:
        raise ValueError(f"its content is not {' or '.join(formats)}, or its beginning is damaged") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"it has more than {MOST_PIXELS:,} pixels") from None
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise ValueError(f"{width:,} x {height:,} pixels are more than {MOST_PIXELS:,}")
    if min(width, height) < 1 or max(width, height) > LONGEST * min(width, height):
        raise ValueError(f"{width:,} x {height:,} pixels: one side is more than {LONGEST} times the other")
    return image


def is_16_bit_png(data: bytes) -> bool:
    """Whether the bytes of a PNG file say that it has 16 bits per sample; of colours Pillow drops half of them."""
    return data[_PNG_DEPTH : _PNG_DEPTH + 1] == b"\x10"


def _over_white(image: Image.Image, data: bytes) -> Image.Image:
    """A decoded image with transparency, in whatever form, over white. RGB."""
    key = image.info.get("transparency")
    if key is None or image.mode == "P":
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    # A PNG with one transparent colour, given in the file's own bits. Pillow compares it with scaled values.
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
    """Greys of 16 bits or of floats as 8 bits, as Pillow would clip them instead of scaling; others as they are.

    Raises:
        ValueError: values beyond 16 bits, or floats beyond 0 to 1.
    """
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    values = np.asarray(image)
    low, high = values.min(), values.max()
    white = 1 if image.mode == "F" else 4095 if bits == 12 else 65535
    if not (low >= 0 and high <= white):  # the other way round, NaN would pass
        raise ValueError(f"its values are {low:g} to {high:g}, where white can only be taken to be {white}")
    if image.mode == "I" and bits == 32 and 0 < high <= 255:
        raise ValueError(f"its values are {low} to {high} in 32 bits, so which of them is white is not known")
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = white - values
    if image.mode == "F":
        return Image.fromarray(np.rint(values * 255).astype(np.uint8))
    scaled = values // 257 if white == 65535 else values.astype(np.uint32) * 255 // white
    return Image.fromarray(scaled.astype(np.uint8))


def square(image: Image.Image, size: int, view: View, epoch: int, index: int, seed: int) -> np.ndarray:
    """One view of image number `index`, the same whenever and wherever it is asked for. uint8 (size, size, 3)."""
    if view == "plain":
        return center_crop(image, size)
    rng = random.Random(f"{seed}:{epoch}:{index}")  # of the run, the epoch and the image, not of workers or processes
    if view == "generator":
        return enlarged_crop(image, size, rng)
    array = random_crop(image, size, rng)
    return array[:, ::-1] if rng.random() < 0.5 else array


def describe_view(size: int, view: View, seed: int) -> str:
    """One line saying how `square` makes its pixels."""
    return {
        "plain": f"ADM centre crop to {size}",
        "tokenizer": f"ADM random crop of {SMALLEST_CROP} to 1 of the shorter side to {size}, random flip, seed {seed}",
        "generator": f"shorter side to {ENLARGED} x {size} (Lanczos, longer side truncated), random crop, seed {seed}",
    }[view]


def center_crop(image: Image.Image, size: int) -> np.ndarray:
    """ADM's centre crop: box halving while twice too large, bicubic to the shorter side, centre. uint8 (H, W, 3)."""
    image = _shrink(image, size)
    top, left = (image.height - size) // 2, (image.width - size) // 2
    return np.asarray(image)[top : top + size, left : left + size]


def random_crop(image: Image.Image, size: int, rng: random.Random) -> np.ndarray:
    """ADM's random crop: shorter side anywhere in size..ceil(size / 0.8), as for its centre crop, then a random square.

    uint8 (H, W, 3).
    """
    image = _shrink(image, rng.randint(size, math.ceil(size / SMALLEST_CROP)))
    return _random_square(image, size, rng)


def enlarged_crop(image: Image.Image, size: int, rng: random.Random) -> np.ndarray:
    """Shorter side to 1.125 x size (Lanczos; the longer one truncated), then a random square. uint8 (H, W, 3)."""
    shorter, least = round(size * ENLARGED), min(image.size)
    enlarged = tuple(shorter if side == least else shorter * side // least for side in image.size)
    return _random_square(image.resize(enlarged, Image.Resampling.LANCZOS), size, rng)


def _shrink(image: Image.Image, shorter: int) -> Image.Image:
    while min(image.size) >= 2 * shorter:
        image = image.resize((image.width // 2, image.height // 2), resample=Image.Resampling.BOX)
    scale = shorter / min(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def _random_square(image: Image.Image, size: int, rng: random.Random) -> np.ndarray:
    top, left = rng.randint(0, image.height - size), rng.randint(0, image.width - size)
    return np.asarray(image)[top : top + size, left : left + size]
