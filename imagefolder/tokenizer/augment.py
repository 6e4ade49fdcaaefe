"""Differentiable augmentation of what a discriminator sees (Zhao et al. 2020, arXiv:2006.10738)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DiffAugment(nn.Module):
    """Random translation, colour and cutout, in this order, drawn per image: (B, 3, H, W) in [-1, 1] -> the same shape.

    Always applied, in eval mode too; gradients flow to the images. Colours are not clamped to [-1, 1]. All draws come
    from torch's global generator on the images' device.

    Args:
        translation: largest shift, as a share of the side.
        cutout: side of the square set to zero, as a share of the image's.
    """

    def __init__(self, translation: float = 0.125, cutout: float = 0.2) -> None:
        super().__init__()
        self.translation, self.cutout = translation, cutout

    def forward(self, images: Tensor) -> Tensor:
        return cut_out(change_colour(translate(images, self.translation)), self.cutout)


def change_colour(images: Tensor) -> Tensor:
    """Brightness +-0.5, then saturation 0..2 (around the pixel's grey), then contrast 0.5..1.5 (around the mean)."""
    draws = torch.rand(3, len(images), 1, 1, 1, device=images.device, dtype=images.dtype)
    images = images + draws[0] - 0.5
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * (2 * draws[1])
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * (draws[2] + 0.5)


def translate(images: Tensor, share: float) -> Tensor:
    """Shift by whole pixels, up to `share` of the side either way; zeros come in."""
    for dim in (2, 3):
        side = images.shape[dim]
        reach = round(share * side)
        shift = torch.randint(-reach, reach + 1, (len(images), 1), device=images.device)
        source = torch.arange(side, device=images.device) - shift
        inside = _along((source >= 0) & (source < side), dim)
        # wrapped around before the mask: no pixel is read twice, so the backward scatter has no collisions
        images = images.gather(dim, _along(source % side, dim).expand_as(images)) * inside
    return images


def cut_out(images: Tensor, share: float) -> Tensor:
    """Zero a square of `share` of the side, centred anywhere in the image and cut off at its border."""
    hit = torch.ones((), dtype=torch.bool, device=images.device)
    for dim in (2, 3):
        side = images.shape[dim]
        size = round(share * side)
        first = torch.randint(0, side + 1 - size % 2, (len(images), 1), device=images.device) - size // 2
        position = torch.arange(side, device=images.device)
        hit = hit & _along((position >= first) & (position < first + size), dim)
    return images * ~hit


def _along(values: Tensor, dim: int) -> Tensor:
    """(B, side) -> (B, 1, side, 1) for rows (dim 2), (B, 1, 1, side) for columns (dim 3)."""
    return values[:, None, :, None] if dim == 2 else values[:, None, None, :]
