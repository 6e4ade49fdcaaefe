"""Tokens in memory instead of in a token cache."""

from __future__ import annotations

from imagefolder.data.images import ArrayImages, to_float
from imagefolder.tokenizer.model import Tokenizer


def encoded(tokenizer: Tokenizer, images: ArrayImages) -> ArrayImages:
    """Images (N, 3, H, W) as tokens (N, P, L)."""
    return ArrayImages(tokenizer.encode(to_float(images.images)).cpu(), images.labels)
