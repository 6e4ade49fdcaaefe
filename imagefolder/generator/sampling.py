"""Drawing tokens: per-image random numbers, top-k, top-p, jointly or branch by branch (architecture section 2)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from imagefolder.config import GeneratorConfig
from imagefolder.errors import InputError

PAIRS_AT_ONCE = 2**22  # of joint sampling; each takes about 80 bytes of working memory


def check_sampling(
    config: GeneratorConfig,
    guidance: float,
    top_k: int,
    top_p: float,
    temperature: float | Sequence[float],
    joint: bool,
) -> list[float]:
    """Temperature of every scale; `InputError` if a sampling setting is out of range or does not suit the model."""
    if not 0 < top_p <= 1 or top_k < 0 or not 0 <= guidance < math.inf:
        raise InputError(f"need 0 < top_p <= 1, top_k >= 0, guidance >= 0; got {top_p}, {top_k}, {guidance}")
    scales = len(config.scales)
    temperatures = list(temperature) if isinstance(temperature, Sequence) else [temperature] * scales
    if len(temperatures) != scales:
        raise InputError(f"{len(temperatures)} temperatures for the {scales} scales of {config.name}")
    if not all(0 < t < math.inf for t in temperatures):
        raise InputError(f"temperature must be greater than 0 and finite, not {temperature}")
    if joint and config.branches > 2:
        raise InputError(f"joint sampling is defined for two branches; {config.name} has {config.branches}")
    if joint and config.branches == 2 and config.order == "unfolded":
        raise InputError(
            f"joint sampling needs both tokens of a position at once; {config.name} is unfolded, its second branch is "
            "predicted from the first"
        )
    return temperatures


def image_seed(seed: int, index: int) -> int:
    """Seed of one image, a function of the run's seed and the image's index alone (63 bits)."""
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
        u: uniform numbers (...).
        top_k: tokens kept, 0 for all.
        top_p: the least likely tokens whose summed probability stays at or below 1 - top_p are removed; the most
            likely one is always kept.

    Returns:
        int64 (...), one token each.
    """
    size = logits.shape[-1]
    values, tokens = logits.topk(min(top_k or size, size), dim=-1)  # sorted, so top-p needs no further sort
    probabilities = values.double().softmax(-1)
    if top_p < 1:
        # Sum of each token and all less likely ones
        tail = probabilities.flip(-1).cumsum(-1).flip(-1)
        removed = tail <= 1 - top_p
        removed[..., 0] = False
        probabilities = probabilities.masked_fill(removed, 0)
    distribution = probabilities.cumsum(-1)
    at = u.to(distribution)[..., None] * distribution[..., -1:]
    choice = torch.searchsorted(distribution, at, right=True).clamp(max=values.shape[-1] - 1)
    return tokens.gather(-1, choice)[..., 0]


def draw_joint(logits: Tensor, u: Tensor, top_k: int, top_p: float) -> Tensor:
    """Sample the tokens of two branches as one draw: `draw` on the V x V pairs of the product of their distributions.

    The product adds no dependence: without cuts the pairs are distributed as with two separate draws. What differs is
    the cuts: the `top_k` most likely pairs are kept, then the nucleus of these. So an unlikely token survives with
    likely partners only, and far fewer combinations are left than the top_k x top_k of separate draws.

    The pair of the i-th and the j-th most likely token is no more likely than i * j pairs (itself included), so only
    those with i * j <= top_k are looked at: about top_k * ln(top_k) instead of V x V. `top_k` 0 keeps all V x V pairs,
    which are then sorted for every position: slow at large V (4096: seconds per position on a CPU). Positions are
    processed `PAIRS_AT_ONCE` pairs at a time, or one by one: at most 80 bytes x V x V of memory (4096: 1.3 GB).

    Args:
        logits: float32 (..., 2, V).
        u: uniform numbers (...), one per position.
        top_k: pairs kept, 0 for all.
        top_p: nucleus probability of the pairs kept, as in `draw`.

    Returns:
        int64 (..., 2), one token per branch.
    """
    size = logits.shape[-1]
    kept = min(top_k or size**2, size**2)
    values, tokens = logits.flatten(0, -3).topk(min(kept, size), dim=-1)  # each (positions, 2, candidates)
    ranks = torch.arange(1, values.shape[-1] + 1, device=values.device)
    first, second = (torch.outer(ranks, ranks) <= kept).nonzero(as_tuple=True)
    numbers, drawn, step = u.flatten(), [], max(PAIRS_AT_ONCE // len(first), 1)
    for at in range(0, len(values), step):
        a, b = values[at : at + step].double().unbind(1)
        choice = draw(a[:, first] + b[:, second], numbers[at : at + step], kept, top_p)
        chosen = torch.stack([first[choice], second[choice]], dim=1)
        drawn.append(tokens[at : at + step].gather(-1, chosen[..., None])[..., 0])
    return torch.cat(drawn).view(*u.shape, 2)
