"""Quantizers: single-scale, multi-scale residual, and their product over branches (docs/method.md, "Quantizers").

What depends on the kind of codes is asked of `codes.Codes`. Branches are independent, and computed together: their
codes in one table, their channels side by side, phi as a grouped convolution. All of it is in float32, regardless of
autocast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagefolder.config import TokenizerConfig
from imagefolder.kinds import QUANTIZERS
from imagefolder.numerics import float32_only
from imagefolder.tokenizer.codes import Codes, build_codes, entropy_of_probabilities


@dataclass
class Quantized:
    """Result of quantizing B samples in P branches of S scales.

    `z` (B, P*C, K, K) straight-through; `tokens` int64 (B, P, L); `counts` int64 (P, S, V), how often every code was
    chosen before any perturbation; scalar losses, averaged over branches. For codes with an entropy loss,
    `sample_entropy` is its first part, and `bits` (P, S, C) holds the probabilities of the bits averaged over the
    samples, from which `entropy_loss` computes the second; both average over parts of a batch to their value for the
    whole. `share` (S,) is the share of the samples that keep each scale.
    """

    z: Tensor
    tokens: Tensor
    counts: Tensor
    codebook_loss: Tensor
    commitment_loss: Tensor
    sample_entropy: Tensor
    bits: Tensor
    share: Tensor

    @property
    def entropy_loss(self) -> Tensor:
        """Of these samples alone; zero for codes without an entropy loss."""
        return self.sample_entropy - codebook_entropy(self.bits, self.share)


def codebook_entropy(bits: Tensor, share: Tensor) -> Tensor:
    """Sum over bits of the entropy of their average probability (..., S, C), each scale divided by its share (S,) of
    the samples, averaged over scales and branches."""
    return (entropy_of_probabilities(bits).sum(-1) / share).mean()


@dataclass(frozen=True)
class Perturbation:
    """Latent perturbation of the first T samples of a batch (docs/method.md, "Latent perturbation").

    Each code is, with probability `alpha`, replaced by one drawn from the `delta` codes nearest to the vector it
    quantizes. `u` (2, T, P, L) holds uniform numbers in [0, 1), which decide whether to draw and which code.
    """

    alpha: float
    delta: int
    u: Tensor


class Branch(nn.Module):
    """What one branch learns: its codes and, with several scales, the 3x3 convolutions of
    phi(h) = (1 - ratio) * h + ratio * conv(h)."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.codebook = build_codes(config)
        if len(config.scales) > 1:
            number, dim = config.shared_phi or len(config.scales), config.code_dim
            self.phis = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1) for _ in range(number))


class ProductQuantizer(nn.Module):
    """Independent quantizers, one per branch, on maps (B, P, C, K, K).

    Several scales: a residual quantizer over growing token maps, with one codebook for all of them. Per scale, the
    residual is resized (area) and replaced by the nearest codes, which are resized back (bicubic), pass phi and are
    added to the quantized map.

    One scale: the nearest code at each position; where directions are compared, input and codes are normalised. While
    training, some images may have their codes replaced by nearby ones (latent perturbation, RobustTok).
    """

    branches: Sequence[Branch]
    scale_of_token: Tensor

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.branches = cast("Sequence[Branch]", nn.ModuleList(Branch(config) for _ in range(config.branches)))
        self.scales, self.side, self.dim = config.scales, config.latent_side, config.code_dim
        self.length = config.length
        scale_of_token = [scale for scale, side in enumerate(config.scales) for _ in range(side * side)]
        self.register_buffer("scale_of_token", torch.tensor(scale_of_token), persistent=False)
        self.single_scale = len(config.scales) == 1
        self.phi_of_scale, self.phi_ratio = phi_of_scale(len(config.scales), config.shared_phi), config.phi_ratio
        self.commitment = config.commitment
        self.sum_commitment = config.commitment_over_scales == "sum" and QUANTIZERS[config.quantizer].learned
        self.dropout = config.quantizer_dropout
        self.dropout_start = config.dropout_start

    @property
    def codes(self) -> Codes:
        """Those of the first branch, which compute for all branches, given a table of theirs."""
        return self.branches[0].codebook

    @property
    def has_entropy(self) -> bool:
        """Whether the codes have an entropy loss."""
        return self.codes.has_entropy

    def touched(self, batch: int) -> int:
        """How many samples of a batch quantizer dropout touches: the first ones."""
        return floor_of_share(self.dropout, batch)

    def draw_kept(self, batch: int, generator: torch.Generator | None = None) -> Tensor | None:
        """Quantizer dropout: number of scales that each sample of a whole batch keeps, int64 (B,); None: all of them.

        `generator`: a CPU generator; the draws are made on the CPU.
        """
        touched = self.touched(batch)
        if touched == 0 or self.single_scale:
            return None
        kept = torch.full((batch,), len(self.scales))
        kept[:touched] = torch.randint(self.dropout_start, len(self.scales) + 1, (touched,), generator=generator)
        return kept

    def share_kept(self, kept: Tensor) -> Tensor:
        """Share of the samples that keep each scale: int64 (B,) -> float32 (S,)."""
        return self._uses(kept).mean(1)

    def forward(
        self,
        f: Tensor,
        kept: Tensor | None = None,
        share: Tensor | None = None,
        perturbation: Perturbation | None = None,
    ) -> Quantized:
        """Quantize with losses, which are those of the nearest codes.

        Args:
            f: (B, P, C, K, K).
            kept: int64 (B,), number of scales that each sample keeps in all branches (quantizer dropout); None: all.
            share: (S,), the share of the step's samples that keep each scale, if these are only some of them; None:
                that of `kept`. A scale's losses are averaged over the samples that keep it.
            perturbation: must be None with several scales.
        """
        assert perturbation is None or self.single_scale, "latent perturbation needs a single-scale quantizer"
        with float32_only(f.device):
            codes, table = self.codes, self._table()
            f = codes.enter(f.float())
            if self.single_scale:
                f = codes.on_sphere(f)
            use = None if kept is None else self._uses(kept)
            if share is None:
                share = f.new_ones(len(self.scales)) if use is None else use.mean(1)
            share = share.clamp(min=1e-6)
            rest, f_hat, tokens, f_hats = f.detach(), torch.zeros_like(f), [], [torch.zeros_like(f)]
            for scale in range(len(self.scales)):
                tokens.append(codes.nearest(self._down(rest, scale), table))
                h = self._contribution(scale, tokens[-1], table)
                rest = rest - h.detach()
                f_hat = f_hat + (h if use is None else h * use[scale][:, None, None, None, None])
                f_hats.append(f_hat)
            chosen = torch.cat(tokens, dim=2)
            counts = self._counts(chosen)
            codebook_loss, commitment_loss = codes.matching_losses(f, torch.stack(f_hats[1:]), use, share)
            sample_entropy, bits = f.new_zeros(()), f.new_zeros(*counts.shape[:2], 0)
            if codes.has_entropy:
                # Of the residual before each scale's contribution, with a gradient to the encoder
                before = f - torch.stack(f_hats[:-1]).detach()
                sample_entropies, bits = codes.entropies(before, use, share)
                sample_entropy = (sample_entropies / share).mean()
            if perturbation is not None:
                touched = perturbation.u.shape[1]
                near = codes.neighbours(f[:touched], perturbation.delta, table)
                chosen = torch.cat([perturb(chosen[:touched], near, perturbation), chosen[touched:]])
                f_hat = self._contribution(0, chosen, table)
            return Quantized(
                z=codes.straight_through(f, f_hat).flatten(1, 2),
                tokens=chosen,
                counts=counts,
                codebook_loss=codebook_loss.mean(),
                commitment_loss=self.commitment * (torch.sum if self.sum_commitment else torch.mean)(commitment_loss),
                sample_entropy=sample_entropy,
                bits=bits,
                share=share,
            )

    def record_hits(self, counts: Tensor) -> None:
        """Average in how often every code was chosen in a step (P, S, V), see `Codes.usage`."""
        for branch, hits in zip(self.branches, counts, strict=True):
            branch.codebook.record_hits(hits)

    def encode(self, f: Tensor) -> Tensor:
        """(B, P, C, K, K) -> int64 (B, P, L), scales concatenated small to large."""
        with float32_only(f.device):
            codes, table = self.codes, self._table()
            rest = codes.enter(f.float())
            tokens = [codes.nearest(self._down(rest, 0), table)]
            for scale in range(1, len(self.scales)):
                rest = rest - self._contribution(scale - 1, tokens[-1], table)
                tokens.append(codes.nearest(self._down(rest, scale), table))
            return torch.cat(tokens, dim=2)

    def neighbours(self, f: Tensor, number: int) -> Tensor:
        """The codes nearest to the vector each token quantizes, nearest first: (B, P, C, K, K) -> int64
        (B, P, L, number)."""
        with float32_only(f.device):
            codes, table = self.codes, self._table()
            rest = codes.enter(f.float())
            z = self._down(rest, 0)
            near = [codes.neighbours(z, number, table)]
            for scale in range(1, len(self.scales)):
                rest = rest - self._contribution(scale - 1, codes.nearest(z, table), table)
                z = self._down(rest, scale)
                near.append(codes.neighbours(z, number, table))
            return torch.cat(near, dim=2)

    def contribution(self, scale: int, tokens: Tensor, branches: Sequence[int] | None = None) -> Tensor:
        """What the tokens (B, Q, s*s) of one scale add to the maps of Q branches (None: all): (B, Q*C, K, K)."""
        with float32_only(tokens.device):
            return self._contribution(scale, tokens, self._table(branches), branches).flatten(1, 2)

    def vectors(self, tokens: Tensor) -> Tensor:
        """Codes of the tokens (B, P, n) of the only scale: (B, P, n, C)."""
        assert self.single_scale, "codes of several scales are summed as maps"
        return self.codes.on_sphere(self.codes.lookup(tokens, 0, self._table()).mT).mT

    def decode(self, tokens: Tensor, scales: int | None = None) -> Tensor:
        """int64 (B, P, L) -> (B, P*C, K, K), of the first `scales` scales alone if given (at least 1)."""
        with float32_only(tokens.device):
            table = self._table()
            parts = tokens.split([side * side for side in self.scales], dim=2)
            f_hat = self._contribution(0, parts[0], table)
            for scale, part in enumerate(parts[1:scales], start=1):
                f_hat = f_hat + self._contribution(scale, part, table)
            return f_hat.flatten(1, 2)

    def _table(self, branches: Sequence[int] | None = None) -> Any:
        """The codes of some branches (None: all), see `Codes.table`."""
        return self.codes.table([branch.codebook for branch in self._chosen(branches)])

    def _chosen(self, branches: Sequence[int] | None) -> Sequence[Branch]:
        return self.branches if branches is None else [self.branches[p] for p in branches]

    def _down(self, f: Tensor, scale: int) -> Tensor:
        """Area-resize maps (B, P, C, K, K) to the side of `scale`; the last scale keeps it."""
        side = self.scales[scale]
        if side == self.side:
            return f
        return F.interpolate(f.flatten(1, 2), size=(side, side), mode="area").unflatten(1, f.shape[1:3])

    def _contribution(self, scale: int, tokens: Tensor, table: Any, branches: Sequence[int] | None = None) -> Tensor:
        """`contribution` as (B, Q, C, K, K), with a table of the branches' codes."""
        side, number = self.scales[scale], tokens.shape[1]
        h = self.codes.lookup(tokens, scale, table).mT
        if self.single_scale:
            return self.codes.on_sphere(h).unflatten(-1, (side, side))
        h = h.reshape(len(tokens), number * self.dim, side, side)
        if side != self.side:
            h = F.interpolate(h, size=(self.side, self.side), mode="bicubic")
        phis: list[Any] = [branch.phis[self.phi_of_scale[scale]] for branch in self._chosen(branches)]
        weight, bias = (torch.cat([getattr(phi, name) for phi in phis]) for name in ("weight", "bias"))
        h = torch.lerp(h, F.conv2d(h, weight, bias, padding=1, groups=number), self.phi_ratio)
        return h.unflatten(1, (number, self.dim))

    def _uses(self, kept: Tensor) -> Tensor:
        """Whether each scale is kept: int64 (B,) -> float32 (S, B) of zeros and ones."""
        return (kept > torch.arange(len(self.scales), device=kept.device)[:, None]).float()

    def _counts(self, tokens: Tensor) -> Tensor:
        """How often every code was chosen: int64 (B, P, L) -> (P, S, V)."""
        branches, scales, size = len(self.branches), len(self.scales), self.codes.size
        row = self.scale_of_token + torch.arange(branches, device=tokens.device)[:, None] * scales
        chosen = (tokens + row * size).flatten()
        return torch.bincount(chosen, minlength=branches * scales * size).view(branches, scales, size)


def floor_of_share(share: float, number: int) -> int:
    """The whole part of a share of a number; 0.7 of 90 is 63, although floating point makes it slightly less."""
    return int(share * number + 1e-6)


def phi_of_scale(scales: int, shared: int) -> list[int]:
    """Which of the `shared` convolutions each scale uses: the nearest tick to k / (S-1); 0: one per scale."""
    if shared == 0:
        return list(range(scales))
    margin = 1 / 3 / shared if shared == 4 else 1 / 2 / shared
    # numpy's rounding matters: with ten scales and four ticks, scales 2 and 7 lie exactly between two ticks
    ticks = np.linspace(margin, 1 - margin, shared)
    return [int(np.argmin(np.abs(ticks - k / max(scales - 1, 1)))) for k in range(scales)]


def perturb(tokens: Tensor, near: Tensor, perturbation: Perturbation) -> Tensor:
    """Replace a share of codes by ones drawn from those nearest to the vectors they quantize.

    Args:
        tokens: int64 (B, P, L).
        near: int64 (B, P, L, at least `perturbation.delta`), nearest first.
        perturbation: with u (2, B, P, L).
    """
    which = (perturbation.u[1] * perturbation.delta).long()
    drawn = near.gather(-1, which[..., None])[..., 0]
    return torch.where(perturbation.u[0] < perturbation.alpha, drawn, tokens)


def usage_and_perplexity(tokens: Tensor, codebook_size: int) -> tuple[float, float]:
    """Share of codes hit at least once (0..1) and exp of the entropy of the hits (1..V) over int64 tokens."""
    counts = torch.bincount(tokens.flatten(), minlength=codebook_size).double()
    share = counts[counts > 0] / counts.sum()
    return float((counts > 0).double().mean()), math.exp(-float((share * share.log()).sum()))
