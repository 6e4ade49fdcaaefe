"""Which tokens show a region of the image."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from imagefolder.config import TokenizerConfig
from imagefolder.errors import InputError
from imagefolder.validation import shown

SHARE = 0.5 + 1e-9  # of a token's cell


def positions_inside(box: Sequence[float], config: TokenizerConfig) -> Tensor:
    """Positions whose cell lies in a box of the image by more than half of its area: bool (L,).

    In a token map of side s, the token in row i and column j has a cell of (image_size / s)^2 pixels there. The
    coarsest maps therefore belong to a box only if it is large.

    Args:
        box: (left, top, right, bottom) in pixels, as for PIL's `crop`.

    Raises:
        InputError: not a box inside the image, or too small: more than half of no cell lies in it.
    """
    side = config.image_size
    _check(box, side)
    left, top, right, bottom = (float(edge) for edge in box)
    parts = []
    for cells in config.scales:
        edges = torch.arange(cells + 1, dtype=torch.float64) * side / cells
        rows, columns = _covered(edges, top, bottom), _covered(edges, left, right)
        parts.append((rows[:, None] * columns[None, :] > SHARE).flatten())
    inside = torch.cat(parts)
    if not inside.any():
        smallest = side / config.scales[-1]
        raise InputError(
            f"box {tuple(box)} is too small for {config.name}: it must cover more than half of a token's cell, and the "
            f"smallest cells have {smallest:.4g} x {smallest:.4g} pixels"
        )
    return inside


def _covered(edges: Tensor, start: float, stop: float) -> Tensor:
    """The share of each interval between neighbouring edges that lies within start..stop."""
    length = (edges[1:].clamp(max=stop) - edges[:-1].clamp(min=start)).clamp(min=0)
    return length / (edges[1:] - edges[:-1])


def _check(box: Any, side: int) -> None:
    number = isinstance(box, Sequence) and len(box) == 4
    number = number and all(isinstance(edge, Real) and not isinstance(edge, bool) for edge in box)
    if not number or not (0 <= box[0] < box[2] <= side and 0 <= box[1] < box[3] <= side):
        raise InputError(f"box must be (left, top, right, bottom) in pixels within 0..{side}, not {shown(box)}")
