"""The training loop shared by both models: order of data, learning rate, EMA, logs, saving and resuming.

Everything random in a step is seeded by (seed, step), and the data order and learning rate are functions of the step,
so a run continued from its last saved state takes the same steps as one never stopped.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from imagefolder.config import TrainingConfig
from imagefolder.environment import peak_memory_mib, reset_peak_memory
from imagefolder.files import write_atomically
from imagefolder.training.progress import Phase

STATE, CURVE = "state.pt", "curve.jsonl"
LOG_EVERY = 20


class TrainingFailed(RuntimeError):
    """Training cannot go on (a loss is not finite); the last saved state is kept."""


class Task:
    """What is trained. Subclasses set the attributes and implement `step`.

    model: trained, averaged and saved. modules: further modules with state (discriminator). frozen: modules that only
    have to be on the device. optimizers: the loop sets their learning rates, from `param_group["peak"]`.
    """

    model: nn.Module
    frozen: list[nn.Module]
    modules: dict[str, nn.Module]
    optimizers: list[torch.optim.Optimizer]

    def step(self, batch: tuple[Tensor, Tensor], progress: float, accelerator: Accelerator) -> dict[str, Tensor]:
        """Losses, backward and optimiser step on one batch; `progress` is the share of the training done, 0..1."""
        raise AssertionError("abstract")


def adamw(parameters: Iterable[Any], config: TrainingConfig, rate: float, weight_decay: float) -> torch.optim.AdamW:
    """Fused AdamW whose peak learning rate is kept in its groups."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=config.betas, weight_decay=weight_decay, fused=True)
    for group in optimizer.param_groups:
        group["peak"] = rate
    return optimizer


def learning_rate_share(step: int, config: TrainingConfig) -> float:
    """Learning rate of a step as a share of its peak: linear warm-up, then cosine or flat-then-linear decay."""
    warmup = config.warmup * config.steps
    if step < warmup:
        return config.initial_rate + (1 - config.initial_rate) * step / warmup
    done = (step - warmup) / max(config.steps - 1 - warmup, 1)
    left = (1 + math.cos(math.pi * done)) / 2 if config.schedule == "cosine" else min(1.0, (1 - done) / 0.95)
    return config.final_rate + (1 - config.final_rate) * left


def fit(
    task: Task,
    config: TrainingConfig,
    batches: Callable[[int, int], Iterable[tuple[Tensor, Tensor]]],
    folder: Path,
    seed: int,
    title: str,
) -> tuple[nn.Module, dict[str, Any]]:
    """Train, continuing from the state saved in `folder` if there is one.

    Args:
        batches: (start, stop) -> the batches of these steps.
        folder: receives `state.pt` while training, `curve.jsonl` and tensorboard files.
        title: shown before the progress.

    Returns:
        The averaged (EMA) model, and {"seconds", "losses" of the last steps, "peak_memory_mib"}.

    Raises:
        TrainingFailed: a loss is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    AcceleratorState._reset_state()  # else the precision of an earlier training in this process would stay
    accelerator = Accelerator(mixed_precision=config.precision)
    for module in (task.model, *task.modules.values(), *task.frozen):
        module.to(accelerator.device)
    ema = ModelEmaV3(task.model, decay=config.ema, use_warmup=True)
    averaged, model = ema.module, task.model
    start, seconds = _restore(folder / STATE, task, averaged)
    task.model = accelerator.prepare(task.model)
    _trim_curve(folder / CURVE, start)
    clock = time.monotonic()
    reset_peak_memory()
    logged: dict[str, float] = {}
    with (
        SummaryWriter(str(folder / "tensorboard"), purge_step=start) as writer,
        (folder / CURVE).open("a") as curve,
        Phase(title, config.steps, start) as phase,
    ):
        for step, batch in enumerate(batches(start, config.steps), start):
            torch.manual_seed((seed * 1_000_003 + step) * 1_009 + accelerator.process_index)
            share = learning_rate_share(step, config)
            for optimizer in task.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * share
            moved = tuple(t.to(accelerator.device, non_blocking=True) for t in batch)
            task.model.train()
            losses = task.step(moved, step / config.steps, accelerator)
            ema.update(model, step=step)
            done = step + 1
            saving = done % config.checkpoint_every == 0 and done < config.steps
            if saving or done % LOG_EVERY == 0 or done == config.steps:
                logged = {name: float(value) for name, value in losses.items()}
                _check_finite(logged, step, folder)
                curve.write(json.dumps({"step": done, **logged}) + "\n")
                for name, value in {**logged, "learning_rate_share": share}.items():
                    writer.add_scalar(name, value, done)
                phase.update(done, logged)
            if saving and accelerator.is_main_process:
                curve.flush()
                _save(folder / STATE, task, model, averaged, done, seconds + time.monotonic() - clock)
    task.model = model
    seconds += time.monotonic() - clock
    return averaged.eval(), {"seconds": seconds, "losses": logged, "peak_memory_mib": peak_memory_mib()}


def optimizer_step(
    loss: Tensor, optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor], clip: float, accelerator: Accelerator
) -> None:
    """Backward, optional clipping, update, gradients cleared."""
    accelerator.backward(loss)
    if clip:
        accelerator.clip_grad_norm_(parameters, clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _check_finite(losses: dict[str, float], step: int, folder: Path) -> None:
    bad = [name for name, value in losses.items() if not math.isfinite(value)]
    if bad:
        raise TrainingFailed(f"{folder}: {', '.join(bad)} not finite at step {step}; lower the learning rate")


def _save(path: Path, task: Task, model: nn.Module, averaged: nn.Module, step: int, seconds: float) -> None:
    state = {
        "step": step,
        "seconds": seconds,
        "model": model.state_dict(),
        "averaged": averaged.state_dict(),
        "modules": {name: module.state_dict() for name, module in task.modules.items()},
        "optimizers": [optimizer.state_dict() for optimizer in task.optimizers],
    }
    write_atomically(path, lambda temporary: torch.save(state, temporary))


def _restore(path: Path, task: Task, averaged: nn.Module) -> tuple[int, float]:
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, map_location="cpu", weights_only=True)
    task.model.load_state_dict(state["model"])
    averaged.load_state_dict(state["averaged"])
    for name, module in task.modules.items():
        module.load_state_dict(state["modules"][name])
    for optimizer, saved in zip(task.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state["step"], state["seconds"]


def _trim_curve(path: Path, start: int) -> None:
    """Drop curve points after the step training continues from, and a line cut short when it was stopped."""
    if path.exists():
        lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("}\n")]
        kept = [line for line in lines if json.loads(line)["step"] <= start]
        write_atomically(path, lambda temporary: temporary.write_text("".join(kept)))
