"""What a quantizer chooses from: learned codes, or the corners of a binary cube (architecture section 1)."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from imagefolder.config import TokenizerConfig
from imagefolder.distributed import mean_over_processes, mean_with_gradient

USED_SHARE = 0.08  # a code counts as used when hit at least this share of its fair part (released code)
ROWS = 1024  # codes compared with all others at a time
SIMILARITIES = {"cpu": 2**20, "gpu": 2**28}  # between inputs and codes, held at a time


class Codes(nn.Module):
    """V codes of dimension C, with an exponential average of hit counts per scale."""

    def __init__(self, size: int, dim: int, scales: int) -> None:
        super().__init__()
        self.size, self.dim = size, dim
        self.register_buffer("hits", torch.zeros(scales, size))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def nearest(self, z: Tensor) -> Tensor:
        """Index of the nearest code: (B, C, s, s) -> int64 (B, s*s)."""
        raise AssertionError("abstract")

    def lookup(self, tokens: Tensor, scale: int) -> Tensor:
        """Codes of int64 (...) as a multi-scale quantizer adds them at `scale`: (..., C)."""
        raise AssertionError("abstract")

    def on_sphere(self, f: Tensor) -> Tensor:
        """A map (B, C, s, s) as the codes are compared with it: normalised over channels, or as it is."""
        raise AssertionError("abstract")

    def entropy_loss(self, z: Tensor, scale: int, use: Tensor | None) -> Tensor:
        """Entropy per sample minus entropy of the batch mean, of z (B, C, s, s); zero for learned codes."""
        return z.new_zeros(())

    @torch.no_grad()
    def neighbours(self, tokens: Tensor, number: int) -> Tensor:
        """The `number` codes nearest to each of int64 (n,), itself not among them: int64 (n, number)."""
        every = torch.arange(self.size, device=tokens.device)
        table = self.lookup(every, 0)
        parts = []
        for rows in tokens.split(ROWS):
            distance = self._distance(table[rows], table)
            distance.scatter_(1, rows[:, None], math.inf)
            parts.append(distance.topk(number, largest=False).indices)
        return torch.cat(parts)

    def _distance(self, codes: Tensor, table: Tensor) -> Tensor:
        return torch.cdist(codes, table)

    @torch.no_grad()
    def record_hits(self, counts: Tensor) -> None:
        """Average in the hit counts (scales, V) of one batch over all ranks: 0.9 for 100 updates, then 0.99."""
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
        if self.updates == 0:
            self.hits.copy_(counts)
        else:
            self.hits.lerp_(counts, 0.1 if self.updates < 100 else 0.01)
        self.updates += 1

    def usage(self, tokens_per_batch: int) -> Tensor:
        """Share of codes in use per scale, 0..1: average hits >= 0.08 of the fair part of `tokens_per_batch`.

        Released code: `tokens_per_batch` is ranks x B x K x K, at every scale.
        """
        return (self.hits >= USED_SHARE * tokens_per_batch / self.size).float().mean(-1)


class Codebook(Codes):
    """Learned codes, compared by cosine or by Euclidean distance."""

    def __init__(self, size: int, dim: int, scales: int, cosine: bool) -> None:
        super().__init__(size, dim, scales)
        self.cosine = cosine
        weight = torch.empty(size, dim).uniform_(-1 / size, 1 / size)
        self.weight = nn.Parameter(F.normalize(weight, dim=-1))

    def nearest(self, z: Tensor) -> Tensor:
        batch = len(z)
        z = z.detach().flatten(2).mT.reshape(-1, self.dim)
        codes, offset = self.weight.detach(), None
        if self.cosine:
            # argmax over codes does not depend on the length of z, so only the codes are normalised
            codes = F.normalize(codes, dim=-1)
        else:
            offset = codes.square().sum(-1) / 2
        # A part of the similarities at a time: on a CPU as much as its caches hold
        rows = max(SIMILARITIES["cpu" if z.device.type == "cpu" else "gpu"] // self.size, 1)
        parts = []
        for part in z.split(rows):
            similarity = part @ codes.T
            parts.append((similarity if offset is None else similarity - offset).argmax(-1))
        return torch.cat(parts).view(batch, -1)

    def lookup(self, tokens: Tensor, scale: int) -> Tensor:
        return F.embedding(tokens, self.weight)

    def on_sphere(self, f: Tensor) -> Tensor:
        return F.normalize(f, dim=1) if self.cosine else f

    def _distance(self, codes: Tensor, table: Tensor) -> Tensor:
        if self.cosine:
            return -(F.normalize(codes, dim=-1) @ F.normalize(table, dim=-1).T)
        return super()._distance(codes, table)


class BinaryCodes(Codes):
    """Corners of a cube of C = log2 V dimensions: bit i of a token says whether channel i is positive.

    spherical (BSQ): inputs on the unit sphere, codes +-base^k / sqrt(C); else (LFQ): inputs as they are, +-base^k.
    """

    def __init__(self, dim: int, scales: int, base: float, spherical: bool) -> None:
        super().__init__(2**dim, dim, scales)
        self.base, self.spherical = base, spherical
        self.register_buffer("weights", 2 ** torch.arange(dim), persistent=False)

    def magnitude(self, scale: int) -> float:
        """Absolute value of every component of the codes of a scale."""
        return self.base**scale / (math.sqrt(self.dim) if self.spherical else 1.0)

    def nearest(self, z: Tensor) -> Tensor:
        return ((z.detach().flatten(2) > 0) * self.weights[:, None]).sum(1)

    def lookup(self, tokens: Tensor, scale: int) -> Tensor:
        bits = (tokens[..., None] & self.weights) != 0
        return torch.where(bits, self.magnitude(scale), -self.magnitude(scale))

    def on_sphere(self, f: Tensor) -> Tensor:
        return F.normalize(f, dim=1) if self.spherical else f

    def entropy_loss(self, z: Tensor, scale: int, use: Tensor | None) -> Tensor:
        """With p(code) = softmax(2 z.code): the bits of a sample are independent, those of the batch mean are not.

        Args:
            z: (B, C, s, s), attached to the encoder.
            scale: whose codes are meant.
            use: (B,) weights of the samples; None: all 1.
        """
        x = 4 * self.magnitude(scale) * self.on_sphere(z).flatten(2).mT  # (B, n, C): log odds of each bit
        weight = x.new_ones(len(x)) if use is None else use
        total = mean_over_processes(weight.sum())
        share = (weight / (total * x.shape[1]).clamp(min=1e-6))[:, None].expand(x.shape[:2])
        per_bit = F.softplus(x) - x * torch.sigmoid(x)
        per_sample = (per_bit.sum(-1) * share).sum()
        # The mean over samples of a product of bit probabilities, as one matrix product of two halves of the bits
        low, high = (
            self._probabilities(part) for part in x.flatten(0, 1).split([self.dim // 2, -(-self.dim // 2)], -1)
        )
        mean = mean_with_gradient((low * share.reshape(-1, 1)).T @ high)
        return per_sample + torch.special.xlogy(mean, mean).sum()

    def _probabilities(self, x: Tensor) -> Tensor:
        """Log odds of b bits (n, b) -> probabilities of their 2^b combinations (n, 2^b)."""
        combinations = torch.arange(2 ** x.shape[-1], device=x.device)
        signs = 2 * ((combinations[:, None] >> torch.arange(x.shape[-1], device=x.device)) & 1) - 1
        return (x @ signs.to(x.dtype).T / 2).softmax(-1)


def build_codes(config: TokenizerConfig) -> Codes:
    """The codes of one branch."""
    scales = len(config.scales)
    if config.quantizer == "vq":
        return Codebook(config.codebook_size, config.code_dim, scales, config.cosine)
    return BinaryCodes(config.code_dim, scales, config.binary_base, spherical=config.quantizer == "bsq")
