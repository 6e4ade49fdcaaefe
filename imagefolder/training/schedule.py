"""Learning rates as functions of the step."""

from __future__ import annotations

import math
from dataclasses import replace

from imagefolder.config import LossConfig, TrainingConfig


def learning_rate_share(step: int, config: TrainingConfig) -> float:
    """Learning rate of a step as a share of its peak: linear warm-up, then cosine or flat-then-linear decay.

    The cosine spans the whole training, its beginning hidden by the warm-up; the linear decay begins after a twentieth
    of the steps that follow the warm-up.
    """
    step -= step % config.epoch_steps
    warmup = round(config.warmup * config.steps)
    if step < warmup:
        return config.initial_rate + (1 - config.initial_rate) * step / warmup
    if config.schedule == "cosine":
        left = (1 + math.cos(math.pi * step / config.steps)) / 2
    else:
        left = min(1.0, (1 - (step - warmup) / max(config.steps - 1 - warmup, 1)) / 0.95)
    return config.final_rate + (1 - config.final_rate) * left


def adversarial_step(training: TrainingConfig, loss: LossConfig) -> int:
    """The first step with an adversarial term."""
    return round(loss.adversarial_start * training.steps)


def discriminator_rate(step: int, training: TrainingConfig, loss: LossConfig) -> float:
    """Learning rate of the discriminator: its own warm-up and cosine, from the first step with an adversarial term."""
    start = adversarial_step(training, loss)
    schedule = replace(
        training,
        steps=max(training.steps - start, 1),
        schedule="cosine",
        warmup=loss.discriminator_warmup,
        initial_rate=loss.discriminator_initial_rate,
        final_rate=loss.discriminator_final_rate,
    )
    return loss.discriminator_rate * learning_rate_share(max(step - start, 0), schedule)
