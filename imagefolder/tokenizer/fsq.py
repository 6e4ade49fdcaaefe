"""Finite scalar quantization (arXiv 2309.15505): each channel is rounded to one of a few evenly spaced levels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from imagefolder.config import TokenizerConfig
from imagefolder.kinds import fsq_levels
from imagefolder.tokenizer.codes import Codes

MARGIN = 1e-3  # by which bounded values stay below the outermost levels


class FiniteScalarCodes(Codes):
    """The grid of all combinations of levels, channel c having levels[c] of them in [-1, 1], a step of
    1 / (levels[c] // 2) apart.

    Digit c of a token, in the mixed base of the levels with the first channel last, is the level of channel c. Codes
    are the same at every scale. There is no loss of its own: phi, too, learns from the reconstruction.
    """

    levels: Tensor
    places: Tensor

    def __init__(self, levels: tuple[int, ...], scales: int) -> None:
        super().__init__(math.prod(levels), len(levels), scales)
        self.search_flops = 4.0 * self.dim  # per channel: a product, rounding, and two comparisons
        places = [math.prod(levels[:channel]) for channel in range(len(levels))]
        self.register_buffer("levels", torch.tensor(levels), persistent=False)  # int64: exact in any model dtype
        self.register_buffer("places", torch.tensor(places), persistent=False)

    def enter(self, f: Tensor) -> Tensor:
        """The paper's bound, in [-1, 1]: tanh, shifted by half a level where their number is even."""
        levels = self.levels[:, None, None]
        reach = (levels - 1) * (1 - MARGIN) / 2
        offset = (1 - levels % 2) / 2
        return (torch.tanh(f + torch.tan(offset / reach)) * reach - offset) / (levels // 2)

    def nearest(self, z: Tensor, table: None = None) -> Tensor:
        levels, places = self.levels[:, None], self.places[:, None]
        half = levels // 2
        steps = (z.detach().flatten(-2) * half).round().clamp(-half, levels - 1 - half)
        return ((steps.long() + half) * places).sum(-2)

    @torch.no_grad()
    def neighbours(self, z: Tensor, number: int, table: None = None) -> Tensor:
        positions = z.flatten(-2).mT
        parts = positions.reshape(-1, self.dim).split(self._rows(positions))
        near = [self._distances(part).topk(number, largest=False).indices for part in parts]
        return torch.cat(near).view(*positions.shape[:-1], number)

    def _distances(self, z: Tensor) -> Tensor:
        """Squared distances of (n, C) from all codes, float64 (n, V): a sum over channels, each with few values."""
        total = z.new_zeros(len(z), 1, dtype=torch.float64)
        for steps, levels in zip((z * (self.levels // 2)).T, self.levels.tolist(), strict=True):
            level = torch.arange(levels, device=z.device) - levels // 2
            squares = ((steps.double()[:, None] - level) / (levels // 2)).square()
            total = (squares[:, :, None] + total[:, None, :]).flatten(1)
        return total

    def lookup(self, tokens: Tensor, scale: int, table: None = None) -> Tensor:
        half = self.levels // 2
        return (tokens[..., None] // self.places % self.levels - half) / half

    def straight_through(self, f: Tensor, f_hat: Tensor) -> Tensor:
        return f_hat + (f - f.detach())  # f_hat keeps its own gradient: that of phi

    def matching_losses(self, f: Tensor, f_hats: Tensor, use: Tensor | None, share: Tensor) -> tuple[Tensor, Tensor]:
        return f.new_zeros(len(f_hats)), f.new_zeros(len(f_hats))


def finite_scalar(config: TokenizerConfig) -> Codes:
    """The codes of quantizer "fsq"."""
    return FiniteScalarCodes(fsq_levels(config.codebook_size, config.code_dim), len(config.scales))
