"""One step of a task, as the training loop takes it."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor

from imagefolder.training.task import Batch, Step, TrainingTask


def take_step(
    task: TrainingTask, *pieces: Batch, number: int = 0, seed: int = 0, accelerator: Accelerator | None = None
) -> dict[str, Tensor]:
    """Losses of step `number` on a batch in pieces; `seed`: of the draws that decide the objective."""
    generator = torch.Generator().manual_seed(seed)
    task.model.train()
    return task.step(list(pieces), Step(number, len(pieces), accelerator or Accelerator(), generator))
