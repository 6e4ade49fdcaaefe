"""How far a half precision is from float32, with equal weights on one device."""

from __future__ import annotations

import torch

from imagefolder.data.images import to_uint8
from imagefolder.evaluation.pairs import psnr
from tests.gpu.item import Outcome
from tests.gpu.lab import Lab

BATCH = 64
# Random weights, whose codes lie as close to each other as chance has them: share of equal tokens, PSNR in dB
GOALS = {"bfloat16": (0.85, 45.0), "float16": (0.95, 55.0)}


def compare(lab: Lab, dtype: str) -> Outcome:
    """Equal tokens of images, equal most likely tokens given the same earlier ones, PSNR of decoded equal tokens."""
    full, half = lab.generator(torch.float32), lab.generator(getattr(torch, dtype))
    images, labels = lab.images(lab.batch(BATCH)), lab.labels(lab.batch(BATCH))
    with torch.no_grad():
        tokens = full.tokenizer.encode(images)
        encoded = equal(half.tokenizer.encode(images), tokens)
        likely = equal(half(labels, tokens).argmax(-1), full(labels, tokens).argmax(-1))
        decoded = psnr(*(to_uint8(model.tokenizer.decode(tokens)).cpu() for model in (half, full)))
    least_equal, least_psnr = GOALS[dtype]
    return Outcome(
        f"{encoded:.1%} of the tokens of images and {likely:.1%} of the most likely tokens are equal; {decoded:.1f} dB",
        goal=f"{least_equal:.0%} of the tokens, {least_psnr:.0f} dB",
        met=encoded >= least_equal and likely >= least_equal and decoded >= least_psnr,
        numbers={"encoded": encoded, "likely": likely, "psnr": decoded},
    )


def equal(tokens: torch.Tensor, others: torch.Tensor) -> float:
    """Share of equal tokens."""
    return float((tokens == others).float().mean())
