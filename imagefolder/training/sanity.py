"""Losses and weights that are no numbers, and losses that train nothing: never without a word."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from imagefolder.numerics import not_finite
from imagefolder.progress import console


class TrainingFailed(RuntimeError):
    """Training cannot go on (a loss or a weight is not finite); the last saved state is kept."""


def require_finite_losses(losses: dict[str, float], step: int, folder: Path) -> None:
    """Raises `TrainingFailed`, naming the losses of this step that are none."""
    bad = [name for name, value in losses.items() if not math.isfinite(value)]
    if bad:
        raise TrainingFailed(f"{folder}: {', '.join(bad)} not finite at step {step}; lower the learning rate")


def require_finite_weights(state: dict[str, Any], folder: Path) -> None:
    """Raises `TrainingFailed`, naming weights of a state, of any kind, that are none.

    A NaN of the last update shows in no loss yet; saved, it would replace the last good state.
    """
    if bad := not_finite(state):
        raise TrainingFailed(
            f"{folder}: {bad[0]} and {len(bad) - 1} more not finite after step {state['step']}; that is not saved, and "
            "the same command continues from the state before; if it comes again, lower the learning rate"
        )


def tell_of_zeros(title: str, losses: dict[str, float], step: int) -> None:
    """A loss of exactly zero trains nothing, say a contrastive one on a single sample."""
    zeros = [name for name, value in losses.items() if value == 0 and name != "accuracy"]
    if zeros:
        console.print(f"{title}: {', '.join(zeros)} exactly 0 after step {step}: nothing is learned from that")
