"""From an image file's bytes to a square of 8-bit pixels: as evaluated, and as the two trainings augment.

JPEG files are decoded in full: shrinking while decoding (Pillow's draft mode) is faster and gives other pixels.
"""

from __future__ import annotations

import io
import math
import random
from typing import Literal

import numpy as np
from PIL import Image

from imagefolder.errors import InputError

View = Literal["plain", "tokenizer", "generator"]

SMALLEST_CROP = 0.8  # of the image's shorter side, for the tokenizer
ENLARGED = 1.125  # from which the generator's squares are cropped


def open_rgb(data: bytes, origin: str) -> Image.Image:
    """The bytes of an image file as RGB; `InputError` naming `origin` if they are no readable image."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode.startswith("I"):  # 16 bits per pixel, which Pillow would clip instead of scaling
                image = Image.fromarray((np.asarray(image) // 257).clip(0, 255).astype(np.uint8))
            return image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # whatever a decoder stumbles over: damaged files make them raise almost anything
        raise InputError(f"{origin}: not a readable image ({error})") from None


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
