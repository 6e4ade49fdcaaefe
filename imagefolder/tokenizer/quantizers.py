"""Quantizers: single-scale, multi-scale residual, and their product over branches (docs/method.md, "Quantizers").

All work on maps (B, C, K, K) in float32 regardless of autocast, and share one interface: `forward` (training: the
straight-through map, tokens, losses), `encode`, `decode`, `neighbours`, and `contribution`, the map that the tokens of
one scale add. What depends on the kind of codes is asked of `codes.Codes`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagefolder.config import TokenizerConfig
from imagefolder.kinds import QUANTIZERS
from imagefolder.numerics import float32_only
from imagefolder.tokenizer.codes import build_codes, entropy_of_probabilities


@dataclass
class Quantized:
    """Result of quantizing B samples in S scales.

    `z` (B, C, K, K) straight-through; `tokens` int64 (B, L); `counts` int64 (S, V), how often every code was chosen
    before any perturbation; scalar losses. For codes with an entropy loss, `sample_entropy` is its first part, and
    `bits` (S, C) holds the probabilities of the bits averaged over the samples, from which `entropy_loss` computes the
    second; both average over parts of a batch to their value for the whole. `share` (S,) is the share of the samples
    that keep each scale. A product of P branches has z (B, P*C, K, K), tokens (B, P, L), counts (P, S, V) and bits
    (P, S, C).
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
    quantizes. `u` holds uniform numbers in [0, 1), which decide whether to draw and which code: (2, T, L), for P
    branches (P, 2, T, L).
    """

    alpha: float
    delta: int
    u: Tensor


class SingleScaleQuantizer(nn.Module):
    """One map of codes: the nearest one at each position; where directions are compared, input and codes are
    normalised.

    While training, some images may have their codes replaced by nearby ones (latent perturbation, RobustTok).
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.side = config.latent_side
        self.commitment = config.commitment
        self.codebook = build_codes(config)

    def forward(
        self,
        f: Tensor,
        kept: Tensor | None = None,
        share: Tensor | None = None,
        perturbation: Perturbation | None = None,
    ) -> Quantized:
        """`kept` and `share` are ignored: there is no scale to drop. The losses are those of the nearest codes."""
        f = self.codebook.on_sphere(self.codebook.enter(f))
        tokens = self.codebook.nearest(f)
        counts = _count(tokens, self.codebook.size)[None]
        z = self.contribution(0, tokens)
        codebook_loss, commitment_loss = self.codebook.matching_losses(f, z)
        sample_entropy, bits = self.codebook.entropies(f, 0)
        if perturbation is not None:
            touched = perturbation.u.shape[-2]
            near = self.codebook.neighbours(f[:touched], perturbation.delta)
            tokens = torch.cat([perturb(tokens[:touched], near, perturbation), tokens[touched:]])
            z = self.contribution(0, tokens)
        return Quantized(
            z=self.codebook.straight_through(f, z),
            tokens=tokens,
            counts=counts,
            codebook_loss=codebook_loss,
            commitment_loss=self.commitment * commitment_loss,
            sample_entropy=sample_entropy,
            bits=bits[None],
            share=f.new_ones(1),
        )

    def encode(self, f: Tensor) -> Tensor:
        """(B, C, K, K) -> int64 (B, K*K)."""
        return self.codebook.nearest(self.codebook.enter(f))

    def neighbours(self, f: Tensor, number: int) -> Tensor:
        """The codes nearest to every position, nearest first: (B, C, K, K) -> int64 (B, K*K, number)."""
        return self.codebook.neighbours(self.codebook.enter(f), number)

    def contribution(self, scale: int, tokens: Tensor) -> Tensor:
        """Map of the tokens (B, K*K) of the only scale: (B, C, K, K)."""
        return self.vectors(tokens).mT.unflatten(-1, (self.side, self.side))

    def vectors(self, tokens: Tensor) -> Tensor:
        """Codes of tokens int64 (B, n): (B, n, C)."""
        return self.codebook.on_sphere(self.codebook.lookup(tokens, 0).mT).mT

    def decode(self, tokens: Tensor, scales: int | None = None) -> Tensor:
        """int64 (B, K*K) -> (B, C, K, K); there is only one scale."""
        return self.contribution(0, tokens)


class Phi(nn.Conv2d):
    """Residual 3x3 convolution: phi(h) = (1 - ratio) * h + ratio * conv(h)."""

    def __init__(self, dim: int, ratio: float) -> None:
        super().__init__(dim, dim, 3, padding=1)
        self.ratio = ratio

    def forward(self, h: Tensor) -> Tensor:
        return torch.lerp(h, super().forward(h), self.ratio)


class MultiScaleQuantizer(nn.Module):
    """Residual quantizer over growing token maps, one codebook for all scales.

    Per scale: area-resize the residual, find the nearest codes, resize them back (bicubic), apply phi, add.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.scales = config.scales
        self.side = config.latent_side
        self.commitment = config.commitment
        self.sum_commitment = config.commitment_over_scales == "sum" and QUANTIZERS[config.quantizer].learned
        self.codebook = build_codes(config)
        number = config.shared_phi or len(self.scales)
        self.phis = nn.ModuleList(Phi(config.code_dim, config.phi_ratio) for _ in range(number))
        self.phi_of_scale = phi_of_scale(len(self.scales), config.shared_phi)

    def down(self, f: Tensor, scale: int) -> Tensor:
        """Area-resize a map (B, C, K, K) to the side of `scale`; the last scale keeps it."""
        side = self.scales[scale]
        return f if side == self.side else F.interpolate(f, size=(side, side), mode="area")

    def contribution(self, scale: int, tokens: Tensor) -> Tensor:
        """What the tokens (B, s*s) of one scale add to f_hat: (B, C, K, K)."""
        side = self.scales[scale]
        h = self.codebook.lookup(tokens, scale).mT.unflatten(-1, (side, side))
        if side != self.side:
            h = F.interpolate(h, size=(self.side, self.side), mode="bicubic")
        return self.phis[self.phi_of_scale[scale]](h)

    def forward(
        self,
        f: Tensor,
        kept: Tensor | None = None,
        share: Tensor | None = None,
        perturbation: Perturbation | None = None,
    ) -> Quantized:
        """Quantize with losses.

        Args:
            f: (B, C, K, K).
            kept: int64 (B,), number of scales that each sample keeps (quantizer dropout); None: all.
            share: (S,), the share of the step's samples that keep each scale, if these are only some of them; None:
                that of `kept`. A scale's losses are averaged over the samples that keep it.
            perturbation: must be None.
        """
        assert perturbation is None, "latent perturbation needs a single-scale quantizer"
        f = self.codebook.enter(f)
        number = len(self.scales)
        use = None if kept is None else (kept > torch.arange(number, device=f.device)[:, None]).to(f.dtype)  # (S, B)
        if share is None:
            share = f.new_ones(number) if use is None else use.mean(1)
        share = share.clamp(min=1e-6)
        rest, f_hat, terms = f.detach(), torch.zeros_like(f), []
        for scale in range(number):
            index = self.codebook.nearest(self.down(rest, scale))
            used = None if use is None else use[scale]
            # Of the residual before this scale's contribution, with a gradient to the encoder
            entropies = self.codebook.entropies(f - f_hat.detach(), scale, used, share[scale])
            h = self.contribution(scale, index)
            rest = rest - h.detach()
            f_hat = f_hat + (h if used is None else h * used[:, None, None, None])
            terms.append((index, *self.codebook.matching_losses(f, f_hat, used, share[scale]), *entropies))
        tokens, codebook_losses, commitment_losses, sample_entropies, bits = zip(*terms, strict=True)
        over_scales = torch.sum if self.sum_commitment else torch.mean
        return Quantized(
            z=self.codebook.straight_through(f, f_hat),
            tokens=torch.cat(tokens, dim=1),
            counts=torch.stack([_count(t, self.codebook.size) for t in tokens]),
            codebook_loss=torch.stack(codebook_losses).mean(),
            commitment_loss=self.commitment * over_scales(torch.stack(commitment_losses)),
            sample_entropy=(torch.stack(sample_entropies) / share).mean(),
            bits=torch.stack(bits),
            share=share,
        )

    def encode(self, f: Tensor) -> Tensor:
        """(B, C, K, K) -> int64 (B, L), scales concatenated small to large."""
        rest = self.codebook.enter(f)
        tokens = [self.codebook.nearest(self.down(rest, 0))]
        for scale in range(1, len(self.scales)):
            rest = rest - self.contribution(scale - 1, tokens[-1])
            tokens.append(self.codebook.nearest(self.down(rest, scale)))
        return torch.cat(tokens, dim=1)

    def neighbours(self, f: Tensor, number: int) -> Tensor:
        """The codes nearest to the vector each token quantizes, nearest first: (B, C, K, K) -> int64 (B, L, number)."""
        rest, near = self.codebook.enter(f), []
        for scale in range(len(self.scales)):
            z = self.down(rest, scale)
            near.append(self.codebook.neighbours(z, number))
            rest = rest - self.contribution(scale, self.codebook.nearest(z))
        return torch.cat(near, dim=1)

    def decode(self, tokens: Tensor, scales: int | None = None) -> Tensor:
        """int64 (B, L) -> f_hat (B, C, K, K), of the first `scales` scales alone if given (at least 1)."""
        parts = tokens.split([side * side for side in self.scales], dim=1)
        f_hat = self.contribution(0, parts[0])
        for scale, part in enumerate(parts[1:scales], start=1):
            f_hat = f_hat + self.contribution(scale, part)
        return f_hat


class ProductQuantizer(nn.Module):
    """Independent quantizers, one per branch, on maps (B, P, C, K, K); outputs are concatenated on channels."""

    branches: Sequence[SingleScaleQuantizer | MultiScaleQuantizer]

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        kind = MultiScaleQuantizer if len(config.scales) > 1 else SingleScaleQuantizer
        modules = nn.ModuleList(kind(config) for _ in range(config.branches))
        self.branches = cast("Sequence[SingleScaleQuantizer | MultiScaleQuantizer]", modules)
        self.scales, self.side = config.scales, config.latent_side
        self.length = config.length
        self.dropout = config.quantizer_dropout
        self.dropout_start = config.dropout_start

    @property
    def has_entropy(self) -> bool:
        """Whether the codes have an entropy loss."""
        return self.branches[0].codebook.has_entropy

    def touched(self, batch: int) -> int:
        """How many samples of a batch quantizer dropout touches: the first ones."""
        return floor_of_share(self.dropout, batch)

    def draw_kept(self, batch: int, generator: torch.Generator | None = None) -> Tensor | None:
        """Quantizer dropout: number of scales that each sample of a whole batch keeps, int64 (B,); None: all of them.

        `generator`: a CPU generator; the draws are made on the CPU.
        """
        touched = self.touched(batch)
        if touched == 0 or len(self.scales) == 1:
            return None
        kept = torch.full((batch,), len(self.scales))
        kept[:touched] = torch.randint(self.dropout_start, len(self.scales) + 1, (touched,), generator=generator)
        return kept

    def share_kept(self, kept: Tensor) -> Tensor:
        """Share of the samples that keep each scale: int64 (B,) -> float32 (S,)."""
        return (kept > torch.arange(len(self.scales), device=kept.device)[:, None]).float().mean(1)

    def forward(
        self,
        f: Tensor,
        kept: Tensor | None = None,
        share: Tensor | None = None,
        perturbation: Perturbation | None = None,
    ) -> Quantized:
        """Losses are averaged over branches; all branches get the same arguments, see `MultiScaleQuantizer.forward`."""
        with float32_only(f.device):
            results = [
                quantizer(f[:, p].float(), kept, share, perturbation and replace(perturbation, u=perturbation.u[p]))
                for p, quantizer in enumerate(self.branches)
            ]

        def mean(name: str) -> Tensor:
            return torch.stack([getattr(result, name) for result in results]).mean()

        return Quantized(
            z=torch.cat([r.z for r in results], dim=1),
            tokens=torch.stack([r.tokens for r in results], dim=1),
            counts=torch.stack([r.counts for r in results]),
            codebook_loss=mean("codebook_loss"),
            commitment_loss=mean("commitment_loss"),
            sample_entropy=mean("sample_entropy"),
            bits=torch.stack([r.bits for r in results]),
            share=results[0].share,
        )

    def record_hits(self, counts: Tensor) -> None:
        """Average in how often every code was chosen in a step (P, S, V), see `Codes.usage`."""
        for quantizer, hits in zip(self.branches, counts, strict=True):
            quantizer.codebook.record_hits(hits)

    def encode(self, f: Tensor) -> Tensor:
        """(B, P, C, K, K) -> int64 (B, P, L)."""
        with float32_only(f.device):
            return torch.stack([q.encode(f[:, p].float()) for p, q in enumerate(self.branches)], dim=1)

    def neighbours(self, f: Tensor, number: int) -> Tensor:
        """(B, P, C, K, K) -> int64 (B, P, L, number)."""
        with float32_only(f.device):
            return torch.stack([q.neighbours(f[:, p].float(), number) for p, q in enumerate(self.branches)], dim=1)

    def contribution(self, branch: int, scale: int, tokens: Tensor) -> Tensor:
        """What the tokens (B, s*s) of one scale add to the map of a branch: (B, C, K, K)."""
        with float32_only(tokens.device):
            return self.branches[branch].contribution(scale, tokens)

    def vectors(self, branch: int, tokens: Tensor) -> Tensor:
        """Codes of the tokens (B, n) of a single-scale branch: (B, n, C)."""
        quantizer = self.branches[branch]
        assert isinstance(quantizer, SingleScaleQuantizer), "codes of several scales are summed as maps"
        return quantizer.vectors(tokens)

    def decode(self, tokens: Tensor, scales: int | None = None) -> Tensor:
        """int64 (B, P, L) -> (B, P*C, K, K), of the first `scales` scales alone if given (at least 1)."""
        with float32_only(tokens.device):
            return torch.cat([q.decode(tokens[:, p], scales) for p, q in enumerate(self.branches)], dim=1)


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
        tokens: int64 (B, L).
        near: int64 (B, L, at least `perturbation.delta`), nearest first.
        perturbation: with u (2, B, L).
    """
    which = (perturbation.u[1] * perturbation.delta).long()
    drawn = near.gather(-1, which[..., None])[..., 0]
    return torch.where(perturbation.u[0] < perturbation.alpha, drawn, tokens)


def usage_and_perplexity(tokens: Tensor, codebook_size: int) -> tuple[float, float]:
    """Share of codes hit at least once (0..1) and exp of the entropy of the hits (1..V) over int64 tokens."""
    counts = _count(tokens, codebook_size).double()
    share = counts[counts > 0] / counts.sum()
    return float((counts > 0).double().mean()), math.exp(-float((share * share.log()).sum()))


def _count(tokens: Tensor, size: int) -> Tensor:
    return torch.bincount(tokens.flatten(), minlength=size)
