"""Quantizers: single-scale vector, multi-scale residual vector, and their product over branches (section 1).

All work on maps (B, C, K, K) in float32 whatever the autocast, and share one interface: `forward` (training: the
straight-through map, tokens, losses), `encode`, `decode`, and `contribution`, the map that the tokens of one scale add.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagefolder.config import TokenizerConfig

USED_SHARE = 0.08  # a code counts as used when hit at least this share of its fair part (released code)


@dataclass
class Quantized:
    """Result of quantizing: `z` (B, C, K, K) straight-through, `tokens` int64 (B, L), two scalar losses."""

    z: Tensor
    tokens: Tensor
    codebook_loss: Tensor
    commitment_loss: Tensor


class Codebook(nn.Embedding):
    """V codes of dimension C, with an exponential average of hit counts per scale."""

    def __init__(self, size: int, dim: int, scales: int, cosine: bool) -> None:
        super().__init__(size, dim)
        self.cosine = cosine
        nn.init.uniform_(self.weight, -1 / size, 1 / size)
        self.weight.data.copy_(F.normalize(self.weight.data, dim=-1))
        self.register_buffer("hits", torch.zeros(scales, size))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def nearest(self, z: Tensor) -> Tensor:
        """Index of the nearest code, by cosine or squared distance: (B, C, s, s) -> int64 (B, s*s)."""
        z = z.detach().flatten(2).mT  # (B, s*s, C)
        if self.cosine:
            # argmax over codes does not depend on the length of z, so only the codes are normalised
            return (z @ F.normalize(self.weight.detach(), dim=-1).T).argmax(-1)
        codes = self.weight.detach()
        return (2 * z @ codes.T - codes.square().sum(-1)).argmax(-1)

    @torch.no_grad()
    def record_hits(self, counts: Tensor) -> None:
        """Average in the hit counts (scales, V) of one training batch: 0.9 for 100 updates, then 0.99."""
        if self.updates == 0:
            self.hits.copy_(counts)
        else:
            self.hits.lerp_(counts, 0.1 if self.updates < 100 else 0.01)
        self.updates += 1

    def usage(self, tokens_per_batch: int) -> Tensor:
        """Share of codes in use per scale, 0..1: average hits >= 0.08 of the fair part of `tokens_per_batch`."""
        return (self.hits >= USED_SHARE * tokens_per_batch / self.num_embeddings).float().mean(-1)


class VectorQuantizer(nn.Module):
    """Single scale: normalised input, nearest normalised code, which is also the output."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.side = config.latent_side
        self.commitment = config.commitment
        self.codebook = Codebook(config.codebook_size, config.code_dim, 1, config.cosine)

    def codes(self) -> Tensor:
        """Codes as they are output: (V, C)."""
        return F.normalize(self.codebook.weight, dim=-1) if self.codebook.cosine else self.codebook.weight

    def _normalise(self, f: Tensor) -> Tensor:
        return F.normalize(f, dim=1) if self.codebook.cosine else f

    def forward(self, f: Tensor, kept: Tensor | None = None) -> Quantized:
        """`kept` is ignored: there is no scale to drop."""
        f = self._normalise(f)
        tokens = self.encode(f)
        z = self.contribution(0, tokens)
        if self.training:
            self.codebook.record_hits(_count(tokens, self.codebook.num_embeddings)[None])
        return Quantized(
            z=f + (z - f).detach(),
            tokens=tokens,
            codebook_loss=F.mse_loss(z, f.detach()),
            commitment_loss=self.commitment * F.mse_loss(z.detach(), f),
        )

    def encode(self, f: Tensor) -> Tensor:
        """(B, C, K, K) -> int64 (B, K*K)."""
        return self.codebook.nearest(f)

    def contribution(self, scale: int, tokens: Tensor) -> Tensor:
        """Map of the tokens (B, K*K) of the only scale: (B, C, K, K)."""
        return F.embedding(tokens, self.codes()).mT.unflatten(-1, (self.side, self.side))

    def decode(self, tokens: Tensor) -> Tensor:
        """int64 (B, K*K) -> (B, C, K, K)."""
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

    Per scale: area-resize what is left, nearest codes by cosine, unnormalised codes resized back (bicubic), phi, add.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.scales = config.scales
        self.side = config.latent_side
        self.commitment = config.commitment
        self.codebook = Codebook(config.codebook_size, config.code_dim, len(self.scales), config.cosine)
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
        h = self.codebook(tokens).mT.unflatten(-1, (side, side))
        if side != self.side:
            h = F.interpolate(h, size=(self.side, self.side), mode="bicubic")
        return self.phis[self.phi_of_scale[scale]](h)

    def forward(self, f: Tensor, kept: Tensor | None = None) -> Quantized:
        """Quantize with losses.

        Args:
            f: (B, C, K, K).
            kept: int64 (B,), number of scales each sample uses (quantizer dropout); None: all.
        """
        rest, f_hat = f.detach(), torch.zeros_like(f)
        tokens, codebook_loss, commitment_loss = [], f.new_zeros(()), f.new_zeros(())
        for scale in range(len(self.scales)):
            index = self.codebook.nearest(self.down(rest, scale))
            h = self.contribution(scale, index)
            rest = rest - h.detach()
            use = None if kept is None else (kept > scale).to(f.dtype)[:, None, None, None]
            f_hat = f_hat + (h if use is None else h * use)
            codebook_loss = codebook_loss + _masked_mse(f_hat, f.detach(), use)
            # Summed over scales, not averaged like the codebook term: as released
            commitment_loss = commitment_loss + self.commitment * _masked_mse(f_hat.detach(), f, use)
            tokens.append(index)
        if self.training:
            self.codebook.record_hits(torch.stack([_count(t, self.codebook.num_embeddings) for t in tokens]))
        return Quantized(
            z=f + (f_hat - f).detach(),
            tokens=torch.cat(tokens, dim=1),
            codebook_loss=codebook_loss / len(self.scales),
            commitment_loss=commitment_loss,
        )

    def encode(self, f: Tensor) -> Tensor:
        """(B, C, K, K) -> int64 (B, L), scales concatenated small to large."""
        tokens = []
        for scale in range(len(self.scales)):
            index = self.codebook.nearest(self.down(f, scale))
            f = f - self.contribution(scale, index)
            tokens.append(index)
        return torch.cat(tokens, dim=1)

    def decode(self, tokens: Tensor) -> Tensor:
        """int64 (B, L) -> f_hat (B, C, K, K)."""
        parts = tokens.split([side * side for side in self.scales], dim=1)
        f_hat = self.contribution(0, parts[0])
        for scale, part in enumerate(parts[1:], start=1):
            f_hat = f_hat + self.contribution(scale, part)
        return f_hat


class ProductQuantizer(nn.Module):
    """Independent quantizers, one per branch, on maps (B, P, C, K, K); outputs are concatenated on channels."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        kind = MultiScaleQuantizer if len(config.scales) > 1 else VectorQuantizer
        self.branches = nn.ModuleList(kind(config) for _ in range(config.branches))
        self.scales = config.scales
        self.dropout = config.quantizer_dropout if len(config.scales) > 1 else 0.0
        self.dropout_start = config.dropout_start

    def draw_kept(self, batch: int, device: torch.device) -> Tensor | None:
        """Quantizer dropout: scales kept per sample, int64 (B,); only the first share of a batch is touched."""
        touched = int(self.dropout * batch)
        if not self.training or touched == 0:
            return None
        kept = torch.full((batch,), len(self.scales), device=device)
        kept[:touched] = torch.randint(self.dropout_start, len(self.scales) + 1, (touched,), device=device)
        return kept

    def forward(self, f: Tensor, kept: Tensor | None = None) -> Quantized:
        """`z` is (B, P*C, K, K), `tokens` (B, P, L); losses are averaged over branches."""
        with torch.autocast(f.device.type, enabled=False):
            results = [quantizer(f[:, p].float(), kept) for p, quantizer in enumerate(self.branches)]
        return Quantized(
            z=torch.cat([r.z for r in results], dim=1),
            tokens=torch.stack([r.tokens for r in results], dim=1),
            codebook_loss=torch.stack([r.codebook_loss for r in results]).mean(),
            commitment_loss=torch.stack([r.commitment_loss for r in results]).mean(),
        )

    def encode(self, f: Tensor) -> Tensor:
        """(B, P, C, K, K) -> int64 (B, P, L)."""
        with torch.autocast(f.device.type, enabled=False):
            return torch.stack([q.encode(f[:, p].float()) for p, q in enumerate(self.branches)], dim=1)

    def decode(self, tokens: Tensor) -> Tensor:
        """int64 (B, P, L) -> (B, P*C, K, K)."""
        with torch.autocast(tokens.device.type, enabled=False):
            return torch.cat([q.decode(tokens[:, p]) for p, q in enumerate(self.branches)], dim=1)


def phi_of_scale(scales: int, shared: int) -> list[int]:
    """Which of the `shared` convolutions each scale uses: the nearest tick to k / (S-1); 0: one per scale."""
    if shared == 0:
        return list(range(scales))
    margin = 1 / 3 / shared if shared == 4 else 1 / 2 / shared
    # numpy's rounding matters: with ten scales and four ticks, scales 2 and 7 lie exactly between two ticks
    ticks = np.linspace(margin, 1 - margin, shared)
    return [int(np.argmin(np.abs(ticks - k / max(scales - 1, 1)))) for k in range(scales)]


def usage_and_perplexity(tokens: Tensor, codebook_size: int) -> tuple[float, float]:
    """Share of codes hit at least once (0..1) and exp of the entropy of the hits (1..V) over int64 tokens."""
    counts = _count(tokens, codebook_size).double()
    share = counts[counts > 0] / counts.sum()
    return float((counts > 0).double().mean()), math.exp(-float((share * share.log()).sum()))


def _count(tokens: Tensor, size: int) -> Tensor:
    return torch.bincount(tokens.flatten(), minlength=size).float()


def _masked_mse(a: Tensor, b: Tensor, use: Tensor | None) -> Tensor:
    """Mean squared error over the samples with use = 1."""
    if use is None:
        return F.mse_loss(a, b)
    return ((a - b).square() * use).mean() / use.mean().clamp(min=1e-6)
