"""What a quantizer chooses from: learned codes, or the corners of a binary cube (docs/method.md, "Quantizers").

`imagefolder.kinds.QUANTIZERS` names the function that builds the codes of each quantizer; `fsq.py` is another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

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
    """The V codes of dimension C of one branch, with an exponential average of hit counts per scale.

    What is computed with codes is computed for P branches at once, by the codes of any of them; codes that are not the
    same in all branches come as a `table`. Subclasses define `nearest`, `neighbours` and `lookup`, and override
    whatever else differs.
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

    def table(self, branches: Sequence[Any]) -> Any:
        """What the other methods need of the codes of some branches; None if all branches have the same codes."""
        return None

    def nearest(self, z: Tensor, table: Any = None) -> Tensor:
        """Index of the nearest code: (B, P, C, s, s) -> int64 (B, P, s*s)."""
        raise NotImplementedError

    def neighbours(self, z: Tensor, number: int, table: Any = None) -> Tensor:
        """The `number` nearest codes, nearest first: (B, P, C, s, s) -> int64 (B, P, s*s, number)."""
        raise NotImplementedError

    def lookup(self, tokens: Tensor, scale: int, table: Any = None) -> Tensor:
        """Codes of int64 (B, P, n) as a multi-scale quantizer adds them at `scale`: (B, P, n, C)."""
        raise NotImplementedError

    def enter(self, f: Tensor) -> Tensor:
        """Maps (B, P, C, K, K) in the space of the codes, before the first of several scales."""
        return f

    def on_sphere(self, x: Tensor) -> Tensor:
        """Maps or codes (B, P, C, ...) of a single scale: normalised over channels if only directions are compared."""
        return x

    def straight_through(self, f: Tensor, f_hat: Tensor) -> Tensor:
        """`f_hat` with the gradient of `f`, of any one shape."""
        return f + (f_hat - f).detach()

    def matching_losses(self, f: Tensor, f_hats: Tensor, use: Tensor | None, share: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squared distance between maps f (B, P, C, K, K) and what S scales make of them (S, B, P, C, K, K), of
        each scale (S,), twice: with the gradient of f_hats (codebook loss) and with that of f (commitment loss,
        unweighted).

        Each scale averages over the samples with `use` = 1 (S, B), of which a step's batch has this `share` (S,).
        """
        return _mean_square(f_hats - f.detach(), use, share), _mean_square(f_hats.detach() - f, use, share)

    def entropies(self, rests: Tensor, use: Tensor | None, share: Tensor) -> tuple[Tensor, Tensor]:
        """What the entropy loss is made of, given the residuals before each scale is quantized (S, B, P, C, K, K).

        Averages over samples as `matching_losses` does, and over positions: entropy summed over bits (P, S),
        probability of each bit (P, S, C).
        """
        raise NotImplementedError

    @torch.no_grad()
    def record_hits(self, counts: Tensor) -> None:
        """Average in the hit counts (scales, V) of one step over all ranks: 0.9 for 100 updates, then 0.99."""
        counts = counts.float()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
        updates = int(self.updates)
        if updates == 0:
            self.hits.copy_(counts)
        else:
            self.hits.lerp_(counts, 0.1 if updates < 100 else 0.01)
        self.updates += 1

    def usage(self, tokens_per_batch: int) -> Tensor:
        """Share of codes in use per scale, 0..1: average hits >= 0.08 of the fair part of `tokens_per_batch`.

        Released code: `tokens_per_batch` is ranks x B x K x K, at every scale.
        """
        return (self.hits >= USED_SHARE * tokens_per_batch / self.size).float().mean(-1)

    def _rows(self, positions: Tensor) -> int:
        """How many positions are compared with all codes at once."""
        most = COMPARISONS["cpu" if positions.device.type == "cpu" else "gpu"]  # CPU: what caches hold
        return max(most // self.size, 1)


class Table:
    """Learned codes of P branches: `codes` (P, V, C)."""

    def __init__(self, codes: Tensor, cosine: bool) -> None:
        self.codes, self.cosine = codes, cosine

    @cached_property
    def compared(self) -> Tensor:
        """The codes that inputs are multiplied with to find the nearest: (P, C, V), without gradient."""
        # The length of an input does not change which code is nearest, so only the codes are normalised
        codes = self.codes.detach()
        return (F.normalize(codes, dim=-1) if self.cosine else codes).mT

    @cached_property
    def offset(self) -> Tensor | None:
        """What is then subtracted from the products: (P, 1, V)."""
        return None if self.cosine else self.codes.detach().square().sum(-1)[:, None] / 2


class Codebook(Codes):
    """Learned codes, compared by cosine or by Euclidean distance."""

    def __init__(self, size: int, dim: int, scales: int, cosine: bool) -> None:
        super().__init__(size, dim, scales)
        self.cosine = cosine
        self.search_flops = 2.0 * size * dim
        weight = torch.empty(size, dim).uniform_(-1 / size, 1 / size)
        self.weight = nn.Parameter(F.normalize(weight, dim=-1))

    def table(self, branches: Sequence[Codebook]) -> Table:
        return Table(torch.stack([branch.weight for branch in branches]), self.cosine)

    def nearest(self, z: Tensor, table: Table) -> Tensor:
        # `max` takes a third of the time of `argmax`, and of equals also takes the first
        found = [similarity.max(-1).indices for similarity in self._similarities(z, table)]
        return torch.cat(found, dim=1).unflatten(1, (len(z), z.shape[-2:].numel())).transpose(0, 1)

    def neighbours(self, z: Tensor, number: int, table: Table) -> Tensor:
        near = [similarity.topk(number, dim=-1).indices for similarity in self._similarities(z, table)]
        return torch.cat(near, dim=1).unflatten(1, (len(z), z.shape[-2:].numel())).transpose(0, 1)

    @torch.no_grad()
    def _similarities(self, z: Tensor, table: Table) -> Iterator[Tensor]:
        """Lazily, for a few positions of z (B, P, C, s, s) at a time, how near every code is: (P, n, V), larger is
        nearer."""
        positions = z.flatten(3).permute(1, 0, 3, 2).flatten(1, 2)
        for part in positions.split(max(self._rows(positions) // len(positions), 1), dim=1):
            similarity = part @ table.compared
            yield similarity if table.offset is None else similarity - table.offset

    def lookup(self, tokens: Tensor, scale: int, table: Table) -> Tensor:
        first = torch.arange(0, table.codes.shape[:2].numel(), self.size, device=tokens.device)
        return F.embedding(tokens + first[:, None], table.codes.flatten(0, 1))

    def on_sphere(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=2) if self.cosine else x


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

    def nearest(self, z: Tensor, table: None = None) -> Tensor:
        return ((z.detach().flatten(-2) > 0) * self.weights[:, None]).sum(-2)

    @torch.no_grad()
    def neighbours(self, z: Tensor, number: int, table: None = None) -> Tensor:
        # All codes have the same length, so the nearest has the largest product with z
        corners = self.lookup(torch.arange(self.size, device=z.device), 0)
        return (z.flatten(-2).mT @ corners.T).topk(number, dim=-1).indices

    def lookup(self, tokens: Tensor, scale: int, table: None = None) -> Tensor:
        bits = (tokens[..., None] & self.weights) != 0
        return (2.0 * bits - 1) * self.magnitude(scale)  # `where` would copy its numbers to a GPU, and wait

    def enter(self, f: Tensor) -> Tensor:
        return self.on_sphere(f) if self.scales > 1 else f

    def on_sphere(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=2) if self.spherical else x

    def bit_log_odds(self, rests: Tensor) -> Tensor:
        """Log odds of each bit being set, given the residual at each scale: (S, B, P, C, K, K) -> the same."""
        magnitudes = self.magnitude(0) * self.base ** torch.arange(len(rests), device=rests.device)
        return rests * (BIT_SHARPNESS * magnitudes)[:, None, None, None, None, None]

    def entropies(self, rests: Tensor, use: Tensor | None, share: Tensor) -> tuple[Tensor, Tensor]:
        x = self.bit_log_odds(rests).flatten(-2)
        entropy, bits = entropy_of_log_odds(x).sum(-2).mean(-1), torch.sigmoid(x).mean(-1)  # (S, B, P), (S, B, P, C)
        if use is not None:
            entropy = entropy * (use / share[:, None])[:, :, None]
            bits = bits * (use / share[:, None])[:, :, None, None]
        return entropy.mean(1).T, bits.mean(1).transpose(0, 1)


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


def _mean_square(differences: Tensor, use: Tensor | None, share: Tensor) -> Tensor:
    """Of (S, B, ...) per scale (S,), over the samples in use, see `Codes.matching_losses`."""
    per_sample = differences.square().flatten(2).mean(-1)
    return per_sample.mean(1) if use is None else (per_sample * use).mean(1) / share
