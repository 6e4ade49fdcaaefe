"""What a tokenizer refuses: each kind of wrong image or token, with what to do about it.

Only the ranges of values are read from the device, once per call.
"""

from __future__ import annotations

import os
import warnings

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imagefolder.config import TokenizerConfig
from imagefolder.errors import InputError

TOLERANCE = 1e-3  # of the limits -1 and 1: rounding, also of bfloat16


def check_images(images: Tensor, config: TokenizerConfig) -> None:
    """Raise `InputError` unless images are float (B, 3, H, W) in [-1, 1], H = W = config.image_size.

    Images in [0, 1] cannot be told from very bright ones in [-1, 1], so they are a warning, which is attributed to the
    caller of the caller: no value of the batch is below 0, and not all are equal.
    """
    side = config.image_size
    wanted = f"(B, 3, {side}, {side})"
    if not isinstance(images, Tensor):
        raise InputError(f"images must be a float tensor {wanted}, not {_kind(images)}; {_conversion(images, side)}")
    if not images.is_floating_point():
        remedy = "images / 127.5 - 1" if images.dtype == torch.uint8 else "x / 127.5 - 1 for 8-bit values x"
        raise InputError(f"images must be float in [-1, 1], not {str(images.dtype)[6:]}; convert them: {remedy}")
    if images.ndim != 4 or tuple(images.shape[1:]) != (3, side, side):
        raise InputError(
            f"images must be float of shape {wanted} for {config.name}, not {tuple(images.shape)}; "
            f"{_reshaping(images, side)}"
        )
    if not images.numel():
        return
    low, high = torch.stack(torch.aminmax(images.float())).tolist()
    if not (low >= -1 - TOLERANCE and high <= 1 + TOLERANCE):  # written so that NaN fails
        if low != low:
            raise InputError("images must lie in [-1, 1], but contain NaN")
        eight_bits = low >= 0 and 2 < high <= 255
        remedy = "8-bit values x: x / 127.5 - 1" if eight_bits else "resizing overshoots: images.clamp(-1, 1)"
        raise InputError(f"images must lie in [-1, 1], not {low:.4g} to {high:.4g}; for {remedy}")
    if 0 <= low < high:
        warnings.warn(
            "images must lie in [-1, 1], but none of these values is below 0: if they lie in [0, 1], convert them: "
            "images * 2 - 1",
            stacklevel=3,
        )


def check_tokens(tokens: Tensor, config: TokenizerConfig) -> None:
    """Raise `InputError` unless tokens are int64 (B, branches, L) in [0, codebook_size)."""
    shape = (config.branches, config.length)
    wanted = f"tokens must be int64 of shape (B, {shape[0]}, {shape[1]}) for {config.name}"
    if not isinstance(tokens, Tensor):
        remedy = "torch.from_numpy(tokens)" if isinstance(tokens, np.ndarray) else "torch.as_tensor(tokens)"
        raise InputError(f"{wanted}, not {_kind(tokens)}; convert them: {remedy}")
    if tokens.dtype != torch.int64 or tokens.ndim != 3 or tuple(tokens.shape[1:]) != shape:
        remedy = ""
        if tuple(tokens.shape) == shape:
            remedy = "; add the batch dimension: tokens[None]"
        elif tuple(tokens.shape[1:]) == shape and not tokens.dtype.is_floating_point:
            remedy = "; convert them: tokens.long()"
        raise InputError(f"{wanted}, not {str(tokens.dtype)[6:]} {tuple(tokens.shape)}{remedy}")
    if not tokens.numel():
        return
    low, high = torch.stack(torch.aminmax(tokens)).tolist()
    if low < 0 or high >= config.codebook_size:
        raise InputError(
            f"tokens must lie in 0..{config.codebook_size - 1}, the codebook of {config.name}, not {low}..{high}"
        )


def _kind(value: object) -> str:
    """What a value is, in words."""
    if isinstance(value, Image.Image):
        return "a PIL image"
    if isinstance(value, np.ndarray):
        return f"a numpy array ({value.dtype} {value.shape})"
    if isinstance(value, str | os.PathLike):
        return "a path"
    return f"of type {type(value).__name__}"


def _conversion(images: object, side: int) -> str:
    """How to make a tensor of images that are none."""
    if isinstance(images, Image.Image | str | os.PathLike):
        return f"read it: imagefolder.read_image(..., size={side})[None]"
    if isinstance(images, np.ndarray):
        if images.dtype == np.uint8:
            return f"read each one: torch.stack([imagefolder.read_image(x, size={side}) for x in images])"
        return "convert it: torch.from_numpy(images)"
    return "make one batch of single images: torch.stack(images)"


def _reshaping(images: Tensor, side: int) -> str:
    """How to bring a tensor of another shape into that of images."""
    shape = images.shape
    if images.ndim == 3 and shape[0] == 3:
        return "add the batch dimension: images[None]"
    if images.ndim == 3 and shape[-1] == 3:
        return "put channels first and add the batch dimension: images.movedim(-1, 0)[None]"
    if images.ndim == 4 and shape[1] != 3 and shape[-1] == 3:
        return "put channels first: images.movedim(-1, 1)"
    if images.ndim == 4 and shape[1] == 1:
        return "repeat the grey channel: images.expand(-1, 3, -1, -1)"
    return f"imagefolder.read_image(path, size={side}) crops and resizes a file"
