"""Losses and weights that are not finite stop a training; losses that train nothing are reported."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from imagefolder.numerics import not_finite
from imagefolder.progress import console


class TrainingFailed(RuntimeError):
    """Training cannot continue because a loss or weight is not finite; the last saved state is kept."""


def require_finite_losses(losses: dict[str, float], step: int, folder: Path) -> None:
    """Raises `TrainingFailed`, naming the losses of this step that are not finite."""
    bad = [name for name, value in losses.items() if not math.isfinite(value)]
    if bad:
        raise TrainingFailed(f"{folder}: {', '.join(bad)} not finite at step {step}; lower the learning rate")


def require_finite_weights(state: dict[str, Any], folder: Path) -> None:
    """Raises `TrainingFailed`, naming weights of a training state that are not finite.

    A NaN of the last update does not show in any loss yet; saved, it would replace the last good state.
    """
    if bad := not_finite(state):
        raise TrainingFailed(
            f"{folder}: {bad[0]} and {len(bad) - 1} more not finite after step {state['step']}; that state is not "
            "saved, and the same command resumes from the one before; if it happens again, lower the learning rate"
        )


def report_zero_losses(title: str, losses: dict[str, float], step: int) -> None:
    """A loss of exactly zero trains nothing, for example a contrastive one on a single sample."""
    zeros = [name for name, value in losses.items() if value == 0 and name != "accuracy"]
    if zeros:
        console.print(f"{title}: {', '.join(zeros)} exactly 0 after step {step}: nothing is learned from that")
