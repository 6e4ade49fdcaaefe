"""Drawing tokens: per-image random numbers, guidance, top-k, top-p (architecture section 2, sampling)."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


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
        logits: float32 (..., V).
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
