"""What a quantizer chooses from: learned codes, or the corners of a binary cube (docs/method.md, "Quantizers")."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from imagefolder.config import TokenizerConfig

USED_SHARE = 0.08  # a code counts as used when hit at least this share of its fair part (released code)
SIMILARITIES = {"cpu": 2**20, "gpu": 2**28}  # between inputs and codes, held at a time
BIT_SHARPNESS = 4.0  # p(bit) = sigmoid(4 x magnitude) in the entropy loss


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

    def neighbours(self, z: Tensor, number: int) -> Tensor:
        """The `number` nearest codes, nearest first: (B, C, s, s) -> int64 (B, s*s, number)."""
        raise AssertionError("abstract")

    def lookup(self, tokens: Tensor, scale: int) -> Tensor:
        """Codes of int64 (...) as a multi-scale quantizer adds them at `scale`: (..., C)."""
        raise AssertionError("abstract")

    def on_sphere(self, f: Tensor) -> Tensor:
        """A map (B, C, s, s) as the codes are compared with it: normalised over channels, or as it is."""
        raise AssertionError("abstract")

    def entropies(
        self, rest: Tensor, scale: int, used: Tensor | None = None, share: Tensor | float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """What a scale adds to the entropy loss, from what is left (B, C, K, K) before it is quantized.

        Averages over positions and the samples with `used` = 1 (B,), of which a step's batch has this `share`: entropy
        summed over bits (), probability of each bit (C,). Zero and of no bits for learned codes.
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


class Codebook(Codes):
    """Learned codes, compared by cosine or by Euclidean distance."""

    def __init__(self, size: int, dim: int, scales: int, cosine: bool) -> None:
        super().__init__(size, dim, scales)
        self.cosine = cosine
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
        z = z.flatten(2).mT.reshape(-1, self.dim)
        codes, offset = self.weight, None
        if self.cosine:
            # which code is nearest does not depend on the length of z, so only the codes are normalised
            codes = F.normalize(codes, dim=-1)
        else:
            offset = codes.square().sum(-1) / 2
        # on a CPU, as much as its caches hold
        rows = max(SIMILARITIES["cpu" if z.device.type == "cpu" else "gpu"] // self.size, 1)
        for part in z.split(rows):
            similarity = part @ codes.T
            yield similarity if offset is None else similarity - offset

    def lookup(self, tokens: Tensor, scale: int) -> Tensor:
        return F.embedding(tokens, self.weight)

    def on_sphere(self, f: Tensor) -> Tensor:
        return F.normalize(f, dim=1) if self.cosine else f


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

    @torch.no_grad()
    def neighbours(self, z: Tensor, number: int) -> Tensor:
        # All codes are equally long, so the nearest has the largest product with z
        table = self.lookup(torch.arange(self.size, device=z.device), 0)
        return (z.flatten(2).mT @ table.T).topk(number, dim=-1).indices

    def lookup(self, tokens: Tensor, scale: int) -> Tensor:
        bits = (tokens[..., None] & self.weights) != 0
        return torch.where(bits, self.magnitude(scale), -self.magnitude(scale))

    def on_sphere(self, f: Tensor) -> Tensor:
        return F.normalize(f, dim=1) if self.spherical else f

    def bit_log_odds(self, rest: Tensor, scale: int) -> Tensor:
        """Log odds of each bit being set, given what is left to be quantized: (B, C, K, K) -> (B, C, K*K)."""
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


def build_codes(config: TokenizerConfig) -> Codes:
    """The codes of one branch."""
    scales = len(config.scales)
    if config.quantizer == "vq":
        return Codebook(config.codebook_size, config.code_dim, scales, config.cosine)
    return BinaryCodes(config.code_dim, scales, config.binary_base, spherical=config.quantizer == "bsq")
