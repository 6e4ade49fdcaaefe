"""What a quantizer chooses from: learned codes, or the corners of a binary cube (docs/method.md, "Quantizers").

`imagefolder.kinds.QUANTIZERS` names the function that builds the codes of each quantizer; `fsq.py` is another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from imagefolder.config import TokenizerConfig
from imagefolder.kinds import QUANTIZERS, imported

USED_SHARE = 0.08  # a code counts as used when hit at least this share of its fair part (released code)
COMPARISONS = {"cpu": 2**20, "gpu": 2**28}  # of inputs with codes, held in memory at a time
BIT_SHARPNESS = 4.0  # p(bit) = sigmoid(4 x magnitude) in the entropy loss


class Codes(nn.Module):
    """V codes of dimension C, with an exponential average of hit counts per scale.

    Subclasses define `nearest`, `neighbours` and `lookup`, and override whatever else differs.
    """

    hits: Tensor
    updates: Tensor

    has_entropy = False
    """whether `entropies` returns a loss"""
    search_flops = 0.0
    """floating-point operations that find the nearest code of one position"""

    def __init__(self, size: int, dim: int, scales: int) -> None:
        super().__init__()
        self.size, self.dim, self.scales = size, dim, scales
        self.register_buffer("hits", torch.zeros(scales, size))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def nearest(self, z: Tensor) -> Tensor:
        """Index of the nearest code: (B, C, s, s) -> int64 (B, s*s)."""
        raise NotImplementedError

    def neighbours(self, z: Tensor, number: int) -> Tensor:
        """The `number` nearest codes, nearest first: (B, C, s, s) -> int64 (B, s*s, number)."""
        raise NotImplementedError

    def lookup(self, tokens: Tensor, scale: int) -> Tensor:
        """Codes of int64 (...) as a multi-scale quantizer adds them at `scale`: (..., C)."""
        raise NotImplementedError

    def enter(self, f: Tensor) -> Tensor:
        """A map (B, C, K, K) in the space of the codes, before the first of several scales."""
        return f

    def on_sphere(self, x: Tensor) -> Tensor:
        """A map or codes (B, C, ...) of a single scale: normalised over channels if only directions are compared."""
        return x

    def straight_through(self, f: Tensor, f_hat: Tensor) -> Tensor:
        """`f_hat` (B, C, K, K) with the gradient of `f`."""
        return f + (f_hat - f).detach()

    def matching_losses(
        self, f: Tensor, f_hat: Tensor, used: Tensor | None = None, share: Tensor | float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Mean squared distance between the map f (B, C, K, K) and its quantization, twice: with the gradient of f_hat
        (codebook loss) and with that of f (commitment loss, unweighted). Both are scalars.

        They average over the samples with `used` = 1 (B,), of which a step's batch has this `share`.
        """
        return _masked_mse(f_hat, f.detach(), used, share), _masked_mse(f_hat.detach(), f, used, share)

    def entropies(
        self, rest: Tensor, scale: int, used: Tensor | None = None, share: Tensor | float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """What a scale adds to the entropy loss, given the residual (B, C, K, K) before it is quantized.

        Averages as `matching_losses` does, and over positions: entropy summed over bits (), probability of each bit
        (C,). Without an entropy loss: zero, and no bits.
        """
        return rest.new_zeros(()), rest.new_zeros(0)

    @torch.no_grad()
    def record_hits(self, counts: Tensor) -> None:
        """Average in the hit counts (scales, V) of one step over all ranks: 0.9 for 100 updates, then 0.99."""
        counts = counts.float()
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

    def _positions(self, z: Tensor) -> Iterator[Tensor]:
        """The positions of z (B, C, s, s) as (n, C), as many at a time as are compared with all codes at once."""
        rows = max(COMPARISONS["cpu" if z.device.type == "cpu" else "gpu"] // self.size, 1)  # CPU: what caches hold
        yield from z.flatten(2).mT.reshape(-1, self.dim).split(rows)


class Codebook(Codes):
    """Learned codes, compared by cosine or by Euclidean distance."""

    def __init__(self, size: int, dim: int, scales: int, cosine: bool) -> None:
        super().__init__(size, dim, scales)
        self.cosine = cosine
        self.search_flops = 2.0 * size * dim
        weight = torch.empty(size, dim).uniform_(-1 / size, 1 / size)
        self.weight = nn.Parameter(F.normalize(weight, dim=-1))

    def nearest(self, z: Tensor) -> Tensor:
        positions = z.shape[2:].numel()
        return torch.cat([similarity.argmax(-1) for similarity in self._similarities(z)]).view(len(z), positions)

    def neighbours(self, z: Tensor, number: int) -> Tensor:
        near = [similarity.topk(number, dim=-1).indices for similarity in self._similarities(z)]
        return torch.cat(near).view(len(z), z.shape[2:].numel(), number)

    @torch.no_grad()
    def _similarities(self, z: Tensor) -> Iterator[Tensor]:
        """Lazily, for a few positions of z (B, C, s, s) at a time, how near every code is: (n, V), larger is nearer."""
        codes, offset = self.weight, None
        if self.cosine:
            # The length of z does not change which code is nearest, so only the codes are normalised
            codes = F.normalize(codes, dim=-1)
        else:
            offset = codes.square().sum(-1) / 2
        for part in self._positions(z):
            similarity = part @ codes.T
            yield similarity if offset is None else similarity - offset

    def lookup(self, tokens: Tensor, scale: int) -> Tensor:
        return F.embedding(tokens, self.weight)

    def on_sphere(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) if self.cosine else x


class BinaryCodes(Codes):
    """Corners of a cube of C = log2 V dimensions: bit i of a token says whether channel i is positive.

    spherical (BSQ): inputs on the unit sphere, codes +-base^k / sqrt(C); otherwise (LFQ) inputs unchanged, codes
    +-base^k.
    """

    weights: Tensor
    has_entropy = True

    def __init__(self, dim: int, scales: int, base: float, spherical: bool) -> None:
        super().__init__(2**dim, dim, scales)
        self.base, self.spherical = base, spherical
        self.register_buffer("weights", 2 ** torch.arange(dim), persistent=False)

    def magnitude(self, scale: int) -> float:
        """Absolute value of every component of the codes of a scale."""
        return self.base**scale / (math.sqrt(self.dim) if self.spherical else 1.0)

    def nearest(self, z: Tensor) -> Tensor:
        return ((z.detach().flatten(2) > 0) * self.weights[:, None]).sum(1)

    @torch.no_grad()
    def neighbours(self, z: Tensor, number: int) -> Tensor:
        # All codes have the same length, so the nearest has the largest product with z
        table = self.lookup(torch.arange(self.size, device=z.device), 0)
        return (z.flatten(2).mT @ table.T).topk(number, dim=-1).indices

    def lookup(self, tokens: Tensor, scale: int) -> Tensor:
        bits = (tokens[..., None] & self.weights) != 0
        return torch.where(bits, self.magnitude(scale), -self.magnitude(scale))

    def enter(self, f: Tensor) -> Tensor:
        return self.on_sphere(f) if self.scales > 1 else f

    def on_sphere(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) if self.spherical else x

    def bit_log_odds(self, rest: Tensor, scale: int) -> Tensor:
        """Log odds of each bit being set, given the residual: (B, C, K, K) -> (B, C, K*K)."""
        return BIT_SHARPNESS * self.magnitude(scale) * rest.flatten(2)

    def entropies(
        self, rest: Tensor, scale: int, used: Tensor | None = None, share: Tensor | float = 1.0
    ) -> tuple[Tensor, Tensor]:
        x = self.bit_log_odds(rest, scale)
        entropy, bits = entropy_of_log_odds(x).sum(1).mean(-1), torch.sigmoid(x).mean(-1)  # (B,), (B, C)
        if used is None:
            return entropy.mean(), bits.mean(0)
        return (entropy * used).mean() / share, (bits * used[:, None]).mean(0) / share


def entropy_of_log_odds(x: Tensor) -> Tensor:
    """Entropy of bits with log odds x, in nats, elementwise."""
    return F.softplus(x) - x * torch.sigmoid(x)


def entropy_of_probabilities(p: Tensor) -> Tensor:
    """Entropy of bits that are set with probability p, in nats, elementwise; no gradient where p is 0 or 1."""
    p = p.clamp(1e-7, 1 - 1e-7)
    return -(p * p.log() + (1 - p) * (-p).log1p())


def learned(config: TokenizerConfig) -> Codes:
    """The codes of quantizer "vq"."""
    return Codebook(config.codebook_size, config.code_dim, len(config.scales), config.cosine)


def spherical(config: TokenizerConfig) -> Codes:
    """The codes of quantizer "bsq"."""
    return BinaryCodes(config.code_dim, len(config.scales), config.binary_base, spherical=True)


def lookup_free(config: TokenizerConfig) -> Codes:
    """The codes of quantizer "lfq"."""
    return BinaryCodes(config.code_dim, len(config.scales), config.binary_base, spherical=False)


def build_codes(config: TokenizerConfig) -> Codes:
    """The codes of one branch."""
    return imported(QUANTIZERS[config.quantizer].codes)(config)


def _masked_mse(a: Tensor, b: Tensor, used: Tensor | None, share: Tensor | float) -> Tensor:
    if used is None:
        return F.mse_loss(a, b)
    return ((a - b).square().mean((1, 2, 3)) * used).mean() / share
