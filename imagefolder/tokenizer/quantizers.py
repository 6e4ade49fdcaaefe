"""Quantizers: single-scale, multi-scale residual, and their product over branches (architecture section 1).

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
from imagefolder.distributed import own_count, own_samples, world_size
from imagefolder.tokenizer.codes import Codes, build_codes


@dataclass
class Quantized:
    """Result of quantizing: `z` (B, C, K, K) straight-through, `tokens` int64 (B, L), three scalar losses."""

    z: Tensor
    tokens: Tensor
    codebook_loss: Tensor
    commitment_loss: Tensor
    entropy_loss: Tensor


class SingleScaleQuantizer(nn.Module):
    """One map of codes: the nearest one of each position; where codes are compared by direction, both are normalised.

    While training, a share of the images may have their codes replaced by near ones (latent perturbation, RobustTok).
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.side = config.latent_side
        self.commitment = config.commitment
        self.codebook = build_codes(config)
        self.perturbed_images = config.perturbed_images
        self.perturbed_codes, self.perturbation_depth = config.perturbed_codes, config.perturbation_depth

    def forward(self, f: Tensor, kept: Tensor | None = None) -> Quantized:
        """`kept` is ignored: there is no scale to drop."""
        entropy_loss = self.codebook.entropy_loss(f, 0, None)
        f = self.codebook.on_sphere(f)
        tokens = self.encode(f)
        if self.training:
            self.codebook.record_hits(_count(tokens, self.codebook.size)[None])
        z = self.contribution(0, tokens)
        codebook_loss, commitment_loss = F.mse_loss(z, f.detach()), self.commitment * F.mse_loss(z.detach(), f)
        touched = own_count(int(self.perturbed_images * len(f) * world_size() + 0.5)) if self.training else 0
        if touched:
            u = torch.rand(2, *tokens[:touched].shape, device=tokens.device)
            near = perturb(tokens[:touched], self.codebook, self.perturbed_codes, self.perturbation_depth, u)
            tokens = torch.cat([near, tokens[touched:]])
            z = self.contribution(0, tokens)
        return Quantized(f + (z - f).detach(), tokens, codebook_loss, commitment_loss, entropy_loss)

    def encode(self, f: Tensor) -> Tensor:
        """(B, C, K, K) -> int64 (B, K*K)."""
        return self.codebook.nearest(f)

    def contribution(self, scale: int, tokens: Tensor) -> Tensor:
        """Map of the tokens (B, K*K) of the only scale: (B, C, K, K)."""
        return self.vectors(tokens).mT.unflatten(-1, (self.side, self.side))

    def vectors(self, tokens: Tensor) -> Tensor:
        """What tokens int64 (B, n) stand for: (B, n, C)."""
        return self.codebook.on_sphere(self.codebook.lookup(tokens, 0).mT).mT

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
        self.binary = config.quantizer != "vq"
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

    def forward(self, f: Tensor, kept: Tensor | None = None) -> Quantized:
        """Quantize with losses.

        Args:
            f: (B, C, K, K).
            kept: int64 (processes * B,), number of scales that each sample of all processes' batch uses (quantizer
                dropout); None: all. A scale's losses are averaged over the samples of all processes that use it.
        """
        rest = f if self.binary else f.detach()  # the entropy loss reaches the encoder through what is left
        f_hat, number = torch.zeros_like(f), len(self.scales)
        tokens, codebook_loss, commitment_loss, entropy_loss = [], *f.new_zeros(3)
        for scale in range(number):
            z = self.down(rest, scale)
            index = self.codebook.nearest(z)
            h = self.contribution(scale, index)
            rest = rest - h.detach()
            used = None if kept is None else (kept > scale).to(f.dtype)
            use, share = (None, None) if used is None else (own_samples(used), used.mean())
            f_hat = f_hat + (h if use is None else h * use[:, None, None, None])
            codebook_loss = codebook_loss + _masked_mse(f_hat, f.detach(), use, share)
            commitment_loss = commitment_loss + self.commitment * _masked_mse(f_hat.detach(), f, use, share)
            entropy_loss = entropy_loss + self.codebook.entropy_loss(z, scale, use)
            tokens.append(index)
        if self.training:
            self.codebook.record_hits(torch.stack([_count(t, self.codebook.size) for t in tokens]))
        return Quantized(
            z=f + (f_hat - f).detach(),
            tokens=torch.cat(tokens, dim=1),
            codebook_loss=codebook_loss / number,
            # As released: summed over scales with learned codes, averaged with binary ones
            commitment_loss=commitment_loss / number if self.binary else commitment_loss,
            entropy_loss=entropy_loss / number,
        )

    def encode(self, f: Tensor) -> Tensor:
        """(B, C, K, K) -> int64 (B, L), scales concatenated small to large."""
        tokens = [self.codebook.nearest(self.down(f, 0))]
        for scale in range(1, len(self.scales)):
            f = f - self.contribution(scale - 1, tokens[-1])
            tokens.append(self.codebook.nearest(self.down(f, scale)))
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
        kind = MultiScaleQuantizer if len(config.scales) > 1 else SingleScaleQuantizer
        self.branches = nn.ModuleList(kind(config) for _ in range(config.branches))
        self.scales = config.scales
        self.dropout = config.quantizer_dropout if len(config.scales) > 1 else 0.0
        self.dropout_start = config.dropout_start

    def set_perturbed_images(self, share: float) -> None:
        """Share of the images whose codes are perturbed from now on while training (single-scale quantizers)."""
        for quantizer in self.branches:
            quantizer.perturbed_images = share

    def touched(self, batch: int) -> int:
        """How many samples of a batch quantizer dropout touches: its first ones."""
        return int(self.dropout * batch)

    def draw_kept(self, batch: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor | None:
        """Quantizer dropout: scales kept per sample of all processes' batch, int64 (B,); None: all scales by all.

        `generator`: on the CPU and alike in all processes, so that they draw the same.
        """
        touched = self.touched(batch)
        if not self.training or touched == 0:
            return None
        kept = torch.full((batch,), len(self.scales))
        kept[:touched] = torch.randint(self.dropout_start, len(self.scales) + 1, (touched,), generator=generator)
        return kept.to(device, non_blocking=True)

    def forward(self, f: Tensor, kept: Tensor | None = None) -> Quantized:
        """`z` is (B, P*C, K, K), `tokens` (B, P, L); losses are averaged over branches.

        `kept` (of all processes' batch) as `draw_kept` draws it.
        """
        with float32_only(f.device):
            results = [quantizer(f[:, p].float(), kept) for p, quantizer in enumerate(self.branches)]
        return Quantized(
            z=torch.cat([r.z for r in results], dim=1),
            tokens=torch.stack([r.tokens for r in results], dim=1),
            codebook_loss=torch.stack([r.codebook_loss for r in results]).mean(),
            commitment_loss=torch.stack([r.commitment_loss for r in results]).mean(),
            entropy_loss=torch.stack([r.entropy_loss for r in results]).mean(),
        )

    def encode(self, f: Tensor) -> Tensor:
        """(B, P, C, K, K) -> int64 (B, P, L)."""
        with float32_only(f.device):
            return torch.stack([q.encode(f[:, p].float()) for p, q in enumerate(self.branches)], dim=1)

    def decode(self, tokens: Tensor) -> Tensor:
        """int64 (B, P, L) -> (B, P*C, K, K)."""
        with float32_only(tokens.device):
            return torch.cat([q.decode(tokens[:, p]) for p, q in enumerate(self.branches)], dim=1)


def float32_only(device: torch.device) -> torch.autocast:
    """Context without autocast on a device (the meta device knows none: there it does nothing)."""
    return torch.autocast("cpu" if device.type == "meta" else device.type, enabled=False)


def phi_of_scale(scales: int, shared: int) -> list[int]:
    """Which of the `shared` convolutions each scale uses: the nearest tick to k / (S-1); 0: one per scale."""
    if shared == 0:
        return list(range(scales))
    margin = 1 / 3 / shared if shared == 4 else 1 / 2 / shared
    # numpy's rounding matters: with ten scales and four ticks, scales 2 and 7 lie exactly between two ticks
    ticks = np.linspace(margin, 1 - margin, shared)
    return [int(np.argmin(np.abs(ticks - k / max(scales - 1, 1)))) for k in range(scales)]


def perturb(tokens: Tensor, codes: Codes, share: float, depth: int, u: Tensor) -> Tensor:
    """Replace a share of codes by one of their nearest ones (arXiv 2503.08354).

    Args:
        tokens: int64, any shape.
        codes: they index.
        share: probability of each code to be replaced (alpha).
        depth: number of nearest codes a replacement is drawn from (delta), the code itself not among them.
        u: uniform numbers in [0, 1), (2, *tokens.shape): whether to replace, and by which.
    """
    used, position = tokens.unique(return_inverse=True)
    near = codes.neighbours(used, depth)[position, (u[1] * depth).long()]
    return torch.where(u[0] < share, near, tokens)


def usage_and_perplexity(tokens: Tensor, codebook_size: int) -> tuple[float, float]:
    """Share of codes hit at least once (0..1) and exp of the entropy of the hits (1..V) over int64 tokens."""
    counts = _count(tokens, codebook_size).double()
    share = counts[counts > 0] / counts.sum()
    return float((counts > 0).double().mean()), math.exp(-float((share * share.log()).sum()))


def _count(tokens: Tensor, size: int) -> Tensor:
    return torch.bincount(tokens.flatten(), minlength=size).float()


def _masked_mse(a: Tensor, b: Tensor, use: Tensor | None, share: Tensor | None) -> Tensor:
    """Mean squared error over the samples with use = 1, which are this share of all processes' batch."""
    if use is None:
        return F.mse_loss(a, b)
    return ((a - b).square().mean((1, 2, 3)) * use).mean() / share.clamp(min=1e-6)
