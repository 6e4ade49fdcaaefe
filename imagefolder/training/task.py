"""What the training loop asks of a model's training: a `TrainingTask` takes a `Step` on a batch, piece by piece."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from imagefolder.config import GeneratorConfig, TokenizerConfig, TrainingConfig
from imagefolder.distributed import average_gradients
from imagefolder.training.schedule import learning_rate_share

NOISE_OF_A_PIECE = 1_000_000_007

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Step:
    """One step of a training: `number`, counted from 0, in `pieces` pieces in this process (gradient accumulation).

    `generator` (on the CPU, in the same state in all processes) is for draws that all processes share; `noise_seed`
    seeds this process's own noise.
    """

    number: int
    pieces: int
    accelerator: Accelerator
    generator: torch.Generator
    noise_seed: int = 0

    def seed_noise(self, piece: int) -> None:
        """Seed torch for the noise of a piece, with the same seed on every call."""
        # Without a GPU, `torch.manual_seed` would note at every call to seed one later, with a traceback
        on_cpu = self.accelerator.device.type == "cpu"
        (torch.default_generator if on_cpu else torch).manual_seed(self.noise_seed + piece * NOISE_OF_A_PIECE)

    def accumulating(self, model: nn.Module, piece: int) -> AbstractContextManager:
        """Context that delays DDP's exchange of gradients to the last piece."""
        return nullcontext() if piece == self.pieces - 1 else self.accelerator.no_sync(model)


class TrainingTask:
    """The training of one model. Subclasses set the attributes and implement `step`."""

    model: nn.Module
    """trained, averaged and saved"""
    config: TokenizerConfig | GeneratorConfig
    """of the model"""
    training: TrainingConfig
    frozen: list[nn.Module]
    """modules that are only moved to the device"""
    modules: dict[str, nn.Module]
    """further modules with state (discriminator)"""
    optimizers: list[Optimizer]
    """the model's first, in the order of `learning_rates`"""
    settings: dict[str, Any]
    """what decides the outcome besides `training`, as JSON types"""

    def learning_rates(self, step: int) -> dict[str, float]:
        """Learning rates of all optimizers, in their order, at a step."""
        return {"learning_rate": self.training.learning_rate * learning_rate_share(step, self.training)}

    def step(self, pieces: list[Batch], step: Step) -> dict[str, Tensor]:
        """Losses, backward pass and optimizer step on this process's part of a batch, piece by piece.

        All pieces have the same size and follow the order of the batch. Returns scalar losses, whose mean over the
        processes is that over the samples of the batch.
        """
        raise NotImplementedError


def adamw(parameters: Iterable[Any], config: TrainingConfig, *, rate: float, weight_decay: float) -> Optimizer:
    """Fused AdamW."""
    return AdamW(parameters, lr=rate, betas=config.betas, weight_decay=weight_decay, fused=True)


def update(optimizer: Optimizer, accelerator: Accelerator, *, clip: float, average: bool = False) -> None:
    """After the backward passes of all pieces: clip gradients (0: no), take an optimizer step, clear gradients.

    `average`: the parameters belong to a module that DDP does not wrap; average their gradients over the processes.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if average:
        average_gradients(parameters)
    if clip:
        # As `accelerator.clip_grad_norm_` does, which on a CPU takes one gradient after the other
        accelerator.unscale_gradients(optimizer)
        nn.utils.clip_grad_norm_(parameters, clip, foreach=True)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def mean_over_pieces(losses: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Each loss averaged over pieces of equal size."""
    if len(losses) == 1:
        return losses[0]
    return {name: torch.stack([piece[name] for piece in losses]).mean(0) for name in losses[0]}
