"""Loss curves of seeds that differ by noise."""

from __future__ import annotations

import math
import random
from typing import Any

STEPS = 400


def identity(rate: float = 0.003, steps: int = STEPS, seed: int = 0) -> dict[str, Any]:
    return {"tokenizer": {"width": 64}, "training": {"steps": steps, "learning_rate": rate}, "seed": seed}


def loss(step: int, seed: int, factor: float = 1.0) -> float:
    """A falling loss with noise of 5 % that depends on seed and step."""
    return factor * (0.02 + math.exp(-step / 80)) * math.exp(random.Random(f"{seed} {step}").gauss(0, 0.05))


def curve(seed: int, factor: float = 1.0, steps: int = STEPS) -> list[dict[str, float]]:
    return [
        {"step": step, "reconstruction": loss(step, seed, factor), "semantic": 3 * loss(step, seed + 99)}
        for step in range(20, steps + 1, 20)
    ]
