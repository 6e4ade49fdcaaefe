"""Drawing tokens: per-image random numbers, top-k, top-p, jointly or branch by branch (docs/method.md, "Sampling")."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from imagefolder.config import UNGUIDED, Factor, GeneratorConfig, SamplingConfig, Share
from imagefolder.errors import InputError
from imagefolder.kinds import ORDERS
from imagefolder.validation import ListToTuple, checked, shown

TEMPERATURES = (1e-30, 1e30)  # float32 can divide by these
SEED_BITS = 4096
LARGEST_UNIFORM = 1 - 2**-53  # the largest float64 below 1


@checked
class Sampling:
    """How a generator is sampled unless told otherwise; the defaults are those of the released 2.60 gFID."""

    guidance: Factor = 3.25
    top_k: Annotated[int, Field(ge=0, le=2**26)] = 750
    top_p: Share = 0.95
    temperature: float | Annotated[tuple[float, ...], ListToTuple] = 1.0
    """one for all scales, or one per scale"""


@dataclass(frozen=True)
class Drawing:
    """How the tokens of a batch are drawn: `Sampling`'s settings, checked, with a temperature for every scale."""

    guidance: float
    top_k: int
    top_p: float
    temperatures: tuple[float, ...]
    joint: bool


def arguments_of(settings: SamplingConfig) -> dict[str, Any]:
    """Sampling settings as arguments of `Generator.sample` and `Sampling`: all but the batch size."""
    return {name: getattr(settings, name) for name in UNGUIDED}


def check_sampling(
    config: GeneratorConfig,
    *,
    guidance: float,
    top_k: int,
    top_p: float,
    temperature: float | Sequence[float],
    joint: bool,
) -> list[float]:
    """Temperature of every scale; `InputError` if a sampling setting is out of range or does not fit the model.

    The ranges are those of `SamplingConfig`; a temperature lies in 1e-30..1e30.
    """
    SamplingConfig(guidance=guidance, top_k=top_k, top_p=top_p)
    scales = len(config.scales)
    temperatures = list(temperature) if isinstance(temperature, Sequence) else [temperature] * scales
    if len(temperatures) != scales:
        raise InputError(f"{len(temperatures)} temperatures for the {scales} scales of {config.name}")
    lowest, highest = TEMPERATURES
    if not all(isinstance(t, Real) and not isinstance(t, bool) and lowest <= t <= highest for t in temperatures):
        raise InputError(f"temperature must be a number in {lowest}..{highest}, not {shown(temperature)}")
    if joint and config.branches > 1 and not ORDERS[config.order].folded:
        raise InputError(
            f"joint sampling needs all branches of a position at once; {config.name} is {config.order} and predicts "
            "them one after the other"
        )
    return [float(t) for t in temperatures]


def check_seed(seed: Any) -> int:
    """A seed: any integer of at most 4096 bits, positive or negative; `InputError` for anything else."""
    if not isinstance(seed, Integral) or isinstance(seed, bool) or int(seed).bit_length() > SEED_BITS:
        raise InputError(f"a seed must be an integer of at most {SEED_BITS} bits, not {shown(seed)}")
    return int(seed)


def image_seed(seed: int, index: int) -> int:
    """Seed of one image, which depends only on the run's seed and the image's index (63 bits)."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{index}".encode()).digest()[:8], "big") >> 1


def uniforms(seed: int, indices: list[int], branches: int, length: int) -> Tensor:
    """One uniform number per image, branch and token: float64 (B, P, L) in [0, 1), on the CPU.

    Drawn on the CPU image by image, so that an image is the same on any device, in any batch and order.
    """
    generator = torch.Generator()
    rows = []
    for index in indices:
        generator.manual_seed(image_seed(seed, index))
        rows.append(torch.rand(branches, length, generator=generator, dtype=torch.float64))
    return torch.stack(rows)


def draw(logits: Tensor, u: Tensor, top_k: int, top_p: float) -> Tensor:
    """Sample by inverting the distribution function over sorted tokens.

    Args:
        logits: float (..., V).
        u: uniform numbers (...) in [0, 1).
        top_k: tokens kept, 0 for all.
        top_p: the least likely tokens whose summed probability stays at or below 1 - top_p are removed; the most
            likely one is always kept. 0 or 1: none is removed.

    Returns:
        int64 (...), one token each.
    """
    tokens, distribution = _distribution(logits, top_k, top_p)
    return tokens.gather(-1, _place(distribution, u))[..., 0]


def draw_joint(logits: Tensor, u: Tensor, top_k: int, top_p: float) -> Tensor:
    """Sample the tokens of all branches of a position as one draw from the product of their distributions.

    Top-k and top-p apply to each branch separately, as in `draw`. The product adds no dependence: pairs have the same
    distribution as with one draw per branch, only the random numbers are used differently. The V x V pairs are never
    formed: with pairs sorted by the first branch and then by the second, the pair at `u` has the first token at `u`,
    and its second token is at the position of `u` within the probability of the first.

    Args:
        logits: float (..., branches, V).
        u: uniform numbers (...), one per position.
        top_k, top_p: as for `draw`.

    Returns:
        int64 (..., branches), one token per branch.
    """
    drawn, u = [], u.double().to(logits.device)
    for branch in range(logits.shape[-2]):
        tokens, distribution = _distribution(logits[..., branch, :], top_k, top_p)
        choice = _place(distribution, u)
        drawn.append(tokens.gather(-1, choice)[..., 0])
        # Where u lies within the probability of its token: again uniform in [0, 1)
        start = F.pad(distribution, (1, 0)).gather(-1, choice)[..., 0]
        stop, total = distribution.gather(-1, choice)[..., 0], distribution[..., -1]
        u = ((u * total - start) / (stop - start)).clamp(0, LARGEST_UNIFORM)
    return torch.stack(drawn, dim=-1)


def _distribution(logits: Tensor, top_k: int, top_p: float) -> tuple[Tensor, Tensor]:
    """The tokens kept, most likely first, and their cumulative probabilities: int64, float64 (..., k)."""
    size = logits.shape[-1]
    values, tokens = logits.topk(min(top_k or size, size), dim=-1)  # sorted, so top-p needs no further sort
    probabilities = values.double().softmax(-1)
    if 0 < top_p < 1:
        # Sum of each token and all less likely ones
        tail = probabilities.flip(-1).cumsum(-1).flip(-1)
        removed = tail <= 1 - top_p
        removed[..., 0] = False
        probabilities = probabilities.masked_fill(removed, 0)
    return tokens, probabilities.cumsum(-1)


def _place(distribution: Tensor, u: Tensor) -> Tensor:
    """Index of the token that `u` (...) falls on: int64 (..., 1)."""
    at = u.to(distribution)[..., None] * distribution[..., -1:]
    return torch.searchsorted(distribution, at, right=True).clamp(max=distribution.shape[-1] - 1)
