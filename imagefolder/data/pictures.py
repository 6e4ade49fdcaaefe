"""Single pictures: from a file to a tensor as the models take it, and back."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imagefolder.data.images import samples_to_uint8, to_float, to_uint8
from imagefolder.data.transforms import MOST_PIXELS, center_crop, open_rgb, to_rgb
from imagefolder.errors import InputError, reason

Picture = str | Path | BinaryIO | Image.Image | np.ndarray
TOLERANCE = 1e-3  # of the limits of values
GAP = 2  # white pixels between the images of a grid


def read_image(picture: Picture, size: int = 256) -> Tensor:
    """A picture as the models take it, with the published crop: ADM's centre crop, which keeps the shorter side.

    Args:
        picture: a path, an opened binary file, a PIL image, or a numpy array uint8 (H, W, 3) or (H, W). Transparency is
            put over white, and EXIF orientation is ignored, as in training and evaluation.
        size: side of the square; `tokenizer.config.image_size` for a tokenizer.

    Returns:
        float32 (3, size, size) in [-1, 1]. A batch of one is `read_image(...)[None]`.

    Raises:
        InputError: no such file, not a readable image, or an array of another kind.
    """
    if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= MOST_PIXELS**0.5:
        raise InputError(f"size must be a number of pixels, not {size!r}")
    pixels = torch.from_numpy(np.array(center_crop(_opened(picture), size)))
    return to_float(pixels.permute(2, 0, 1).contiguous())


def to_pil(image: Tensor, *, black: Literal[-1, 0] = -1) -> Image.Image:
    """A picture of a float image (3, H, W): in [-1, 1] as from a tokenizer, or in [0, 1] (`black` = 0) as sampled.

    The 8-bit values are those that evaluation measures.

    Raises:
        InputError: another shape or dtype, or values outside the range.

    Warns:
        UserWarning: `black` is -1, but no value is below 0.
    """
    if isinstance(image, Tensor) and image.ndim == 4:
        raise InputError(f"to_pil takes one image (3, H, W), not a batch {tuple(image.shape)}: to_pil(images[0])")
    return Image.fromarray(_eight_bits(image, black)[0])


def save_image(images: Tensor, path: str | Path, *, black: Literal[-1, 0] = -1, columns: int | None = None) -> None:
    """Write an image, or a grid of several, in the format of the file's ending (.png keeps the pixels).

    Args:
        images: float (3, H, W) or (B, 3, H, W), in [-1, 1] as from a tokenizer, or in [0, 1] (`black` = 0) as sampled.
        path: of the file; its folder is made if it is missing.
        columns: of the grid; by default it is about as wide as high.

    Raises:
        InputError: another shape or dtype, values outside the range, or the file cannot be written.

    Warns:
        UserWarning: `black` is -1, but no value is below 0.
    """
    pixels, path = _eight_bits(images, black), Path(path)
    if columns is not None and columns < 1:
        raise InputError(f"columns must be at least 1, not {columns}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(_grid(pixels, columns or math.ceil(len(pixels) ** 0.5))).save(path)
    except (OSError, ValueError) as error:  # the latter for an unknown ending
        raise InputError(f"{path}: cannot be written ({reason(error)})") from None


def _opened(picture: Picture) -> Image.Image:
    """Any picture as RGB."""
    if isinstance(picture, Image.Image):
        return _converted(picture, getattr(picture, "filename", "") or "the PIL image")
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or not (picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] == 3)):
            raise InputError(f"a numpy image must be uint8 (H, W, 3) or (H, W), not {picture.dtype} {picture.shape}")
        if not picture.size:
            raise InputError(f"the numpy image has no pixels: {picture.shape}")
        return _converted(Image.fromarray(picture), "the numpy image")
    if isinstance(picture, Tensor):
        raise InputError(
            "read_image takes files, PIL images and numpy arrays; a tensor (3, H, W) in [-1, 1] needs no reading, and "
            "imagefolder.to_pil(image) makes a PIL image of it"
        )
    if not isinstance(picture, str | Path):
        if not hasattr(picture, "read"):
            what = type(picture).__name__
            raise InputError(f"a picture is a path, an opened file, a PIL image or a numpy array, not of type {what}")
        data, name = picture.read(), getattr(picture, "name", "the opened file")
        if not isinstance(data, bytes):
            raise InputError(f"{name}: opened as text; open it with mode 'rb'")
        return open_rgb(data, str(name))
    try:
        data = Path(picture).read_bytes()
    except (OSError, ValueError) as error:  # the latter for a name that none can have
        raise InputError(f"{picture}: not a readable file ({getattr(error, 'strerror', None) or error})") from None
    return open_rgb(data, str(picture))


def _converted(image: Image.Image, name: str) -> Image.Image:
    try:
        return to_rgb(image)
    except MemoryError:
        raise
    except Exception as error:  # of a damaged file that is only read now
        raise InputError(f"{name}: not a readable image ({reason(error)})") from None


def _eight_bits(images: Tensor, black: int) -> np.ndarray:
    """Float (3, H, W) or (B, 3, H, W) -> uint8 (B, H, W, 3); a warning is attributed to the caller of the caller."""
    if black not in (-1, 0):
        raise InputError(f"black is -1 (for images in [-1, 1]) or 0 (for images in [0, 1]), not {black!r}")
    fitting = isinstance(images, Tensor) and images.ndim in (3, 4) and images.shape[-3] == 3 and images.numel() > 0
    if not fitting or not images.is_floating_point():
        what = f"{str(images.dtype)[6:]} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise InputError(f"images must be float tensors (3, H, W) or (B, 3, H, W), not {what}")
    images = images.detach().float()
    low, high = torch.stack(torch.aminmax(images)).tolist()
    if not (low >= black - TOLERANCE and high <= 1 + TOLERANCE):  # written so that NaN fails
        raise InputError(f"images with black={black} must lie in [{black}, 1], not {low:.4g} to {high:.4g}")
    if black == -1 and 0 <= low < high:
        warnings.warn("no value of these images is below 0: if they lie in [0, 1], pass black=0", stacklevel=3)
    pixels = to_uint8(images) if black == -1 else samples_to_uint8(images)
    return pixels.reshape(-1, *images.shape[-3:]).permute(0, 2, 3, 1).cpu().numpy()


def _grid(images: np.ndarray, columns: int) -> np.ndarray:
    """uint8 (B, H, W, 3) -> one uint8 (rows x H, columns x W, 3), with white between and in empty places."""
    number, height, width, _ = images.shape
    columns = min(columns, number)
    rows = math.ceil(number / columns)
    sheet = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    for place, image in enumerate(images):
        top, left = place // columns * (height + GAP), place % columns * (width + GAP)
        sheet[top : top + height, left : left + width] = image
    return sheet
