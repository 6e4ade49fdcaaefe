"""The training loop shared by both models: order of data, learning rates, EMA, logging, saving and resuming.

The order of data and the learning rates are functions of the step, and everything random in a step is seeded by (seed,
step): a training resumed from its last saved state takes the same steps as an uninterrupted one. Whatever decides the
objective (dropped classes and scales, perturbed codes) is drawn for the whole batch of a step and then split, so that
any number of processes and pieces (gradient accumulation) trains the same. Noise inside the networks (stochastic depth,
augmentation of the discriminator's input) differs between pieces, seeded by (seed, step, process, piece).
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from imagefolder.checkpoints.native import save_checkpoint
from imagefolder.config import Execution, TrainingConfig, config_hash, to_dict
from imagefolder.data.images import BatchSource
from imagefolder.data.order import BatchPart, pieces_per_process, training_batches
from imagefolder.distributed import (
    barrier,
    gather_objects,
    is_main,
    mean_over_processes,
    rank,
    started_processes,
    sum_over_processes,
    world_size,
)
from imagefolder.environment import peak_memory_mib, reset_peak_memory
from imagefolder.errors import InputError
from imagefolder.files import remove_half_written
from imagefolder.interruption import Stopped, stop_requested
from imagefolder.numerics import any_seed
from imagefolder.progress import Phase
from imagefolder.training.averages import Averages
from imagefolder.training.curve import Curve, Preview, Watch
from imagefolder.training.sanity import report_zero_losses, require_finite_losses, require_finite_weights
from imagefolder.training.state import BEST, PREVIOUS, STATE, StateFile, remove_state
from imagefolder.training.task import Step, TrainingTask

LOG_EVERY = 20
SEEDS_PER_STEP = 1_009  # one per process, the last for draws that all processes share
DEFAULT_EXECUTION = Execution()


def finish(
    task: TrainingTask,
    folder: Path,
    averaged: nn.Module,
    summary: dict[str, Any],
    further: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write the averaged weights as a checkpoint, and remove the saved states.

    The summary, further values and `settings["about"]` are stored with it; of equal names, the last one counts.
    """
    if is_main():
        save_checkpoint(folder, averaged, task.config, **{**further, **summary, **task.settings["about"]})
    remove_state(folder)
    barrier()


def fit(
    task: TrainingTask,
    images: BatchSource,
    folder: Path,
    *,
    seed: int,
    title: str,
    execution: Execution = DEFAULT_EXECUTION,
    evaluate: Callable[[nn.Module], float] | None = None,
    watch: Watch | None = None,
    preview: Preview | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Train a model, resuming from the state saved in `folder` if there is one.

    All processes joined by `imagefolder.distributed.join_processes` call this with the same arguments; each works on
    its share of every batch, and rank 0 writes. A training may be resumed with another number of processes.

    Args:
        folder: receives `state.pt` and `best.pt` while training, `curve.jsonl` and the logger's files. All
            processes see it.
        title: shown with the progress.
        evaluate: called by all processes with the model in eval mode, averaged or raw as `config.select_by` says, every
            `config.evaluate_every` steps and at the end; lower is better, and the value of rank 0 counts.
        watch: called by rank 0 with every point of `curve.jsonl`.
        preview: further values for the curve.

    Returns:
        The averaged (EMA) model in eval mode, of the last step or, with `evaluate`, of the step with the lowest value
        (the first of equals), and {"seconds" (without previews), "losses" of the last step, "peak_memory_mib" (with
        them), "selected_step", "selected_value" (None without `evaluate`)}.

    Raises:
        InputError: a precision this machine lacks, a batch that does not divide, a saved state of other settings.
        Stopped: `interruption.request_stop` was called in one of the processes; the state is saved.
        TrainingFailed: a loss, evaluation or weight is not finite.
    """
    config, model = task.training, task.model
    accelerator = accelerator_for(config)
    folder.mkdir(parents=True, exist_ok=True)
    for module in (model, *task.modules.values(), *task.frozen):
        module.to(accelerator.device)
    averages = prepare(model, config, execution)
    averaged = averages.module

    settings = _hash(task, images, seed)
    state_file = StateFile(folder / STATE, settings, PREVIOUS)
    state, best = state_file.read(), _Best(StateFile(folder / BEST, settings))
    seen = gather_objects((state and state["step"], best.step))
    if len(set(seen)) > 1:  # a shared disk that shows them different files
        raise InputError(f"{folder}: the processes see different saved states (steps {seen}); start them again")
    start, seconds = _restore(state, task, averaged)
    task.model = accelerator.prepare(model)
    task.optimizers = [accelerator.prepare(optimizer) for optimizer in task.optimizers]
    if state is not None and accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(state["scaler"])
    del state
    barrier()  # before rank 0 removes or replaces files that other processes are still reading
    if is_main():
        remove_half_written(folder)

    clock = time.monotonic()
    reset_peak_memory()
    stop = _StopAgreement(accelerator.device)
    logged: dict[str, float] = {}
    previewed: dict[str, float] = {}
    pieces = pieces_per_process(config.batch_size, world_size(), execution.micro_batch)
    runner = _Runner(task, images, accelerator, seed=seed, start=start, pieces=pieces)
    task.model.train()
    with Curve(folder, start, execution.logger, watch) as curve, Phase(title, config.steps, start) as phase:
        for done in range(start + 1, config.steps + 1):
            losses = runner.step(done - 1)
            averages.update()
            last = done == config.steps
            saving = done % config.checkpoint_every == 0 and not last
            due = last or (config.evaluate_every > 0 and done % config.evaluate_every == 0)
            evaluate_now = evaluate if due else None
            preview_now = preview if preview is not None and done % preview.every == 0 else None
            measuring = evaluate_now is not None or preview_now is not None
            writing = saving or last or measuring or done % LOG_EVERY == 0
            stopping = not last and stop.agreed()
            if writing or stopping:
                first, logged = not logged, _over_processes(losses)
                require_finite_losses(logged, done - 1, folder)
                if first and is_main():
                    report_zero_losses(title, logged, done)
            if saving or stopping or last or measuring:
                require_finite_weights(_state(task, model, averaged, accelerator, step=done), folder)
            if preview_now is not None:
                began = time.monotonic()
                with torch.no_grad():
                    previewed = preview_now.measure(averaged.eval())
                clock += time.monotonic() - began
            phase.update(done, {**logged, **previewed})
            if writing:
                values = {**logged, **previewed} if preview_now is not None else dict(logged)
                if evaluate_now is not None:
                    with torch.no_grad():
                        value = evaluate_now((averaged if config.select_by == "averaged" else model).eval())
                    task.model.train()
                    values["evaluation"] = value = _of_main(value, accelerator.device)
                    require_finite_losses({"evaluation": value}, done - 1, folder)
                    best.offer(value, done, averaged)
                curve.add(done, values, task.learning_rates(done - 1))
            if (saving or stopping) and is_main():
                curve.flush()
                passed = seconds + time.monotonic() - clock
                state_file.write(_state(task, model, averaged, accelerator, step=done, seconds=passed))
            if stopping:
                barrier()  # a launcher may end all other processes as soon as one has ended
                raise Stopped(f"{title}: stopped at step {done} of {config.steps}; the same command continues")
    barrier()
    if evaluate is not None:
        best.load_into(averaged)
    task.model = model
    return averaged.eval(), {
        "seconds": seconds + time.monotonic() - clock,
        "losses": logged,
        "peak_memory_mib": peak_memory_mib(),
        "selected_step": config.steps if evaluate is None else best.step,
        "selected_value": None if evaluate is None else best.value,
    }


class _Best:
    """The averaged weights with the lowest evaluation so far (the first of equals), in a file all processes see."""

    def __init__(self, file: StateFile) -> None:
        saved = file.read()
        self.file = file
        self.value, self.step = (math.inf, 0) if saved is None else (saved["value"], saved["step"])

    def offer(self, value: float, step: int, averaged: nn.Module) -> None:
        """Keep the weights of a step if they evaluate better."""
        if value < self.value:
            self.value, self.step = value, step
            if is_main():
                self.file.write({"value": value, "step": step, "averaged": averaged.state_dict()})

    def load_into(self, averaged: nn.Module) -> None:
        saved = self.file.read()
        assert saved is not None, f"{self.file.path} was written at step {self.step}"
        averaged.load_state_dict(saved["averaged"])


class _Runner:
    """Takes steps of a model in train mode, each in as many pieces as the micro-batch requires."""

    def __init__(
        self, task: TrainingTask, images: BatchSource, accelerator: Accelerator, *, seed: int, start: int, pieces: int
    ) -> None:
        config = task.training
        self.task, self.accelerator, self.seed, self.pieces = task, accelerator, seed, pieces
        part = BatchPart(rank(), world_size(), pieces)
        self.batches = iter(training_batches(images, config.batch_size, seed, start, config.steps, part=part))
        self.generator = torch.Generator()

    def step(self, number: int) -> dict[str, Tensor]:
        """Take a step; the losses are this process's."""
        first = any_seed((self.seed * 1_000_003 + number) * SEEDS_PER_STEP)
        step = Step(number, self.pieces, self.accelerator, self.generator, first + rank())
        self.generator.manual_seed(first + SEEDS_PER_STEP - 1)
        rates = self.task.learning_rates(number).values()
        for optimizer, rate in zip(self.task.optimizers, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate
        place = {"device": self.accelerator.device, "non_blocking": True}
        batches = itertools.islice(self.batches, self.pieces)
        pieces = [(images.to(**place), labels.to(**place)) for images, labels in batches]
        return self.task.step(pieces, step)


class _StopAgreement:
    """Whether any process was asked to stop. Several processes know it a step later, so that none waits for a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.before = device, None

    def agreed(self) -> bool:
        """Called by all processes after every step; all get the same answer."""
        if world_size() == 1:
            return stop_requested()
        before = self.before
        self.before = sum_over_processes(torch.full((), float(stop_requested()), device=self.device))
        return before is not None and bool(before > 0)


def prepare(model: Any, config: TrainingConfig, execution: Execution) -> Averages:
    """Apply an execution's options to a model (`Tokenizer` or `Transformer`); its averaged weights."""
    if execution.activation_checkpointing:
        model.set_grad_checkpointing()
    averages = Averages(model, config.ema)
    if execution.compile:
        for layer in model.layers:
            layer.compile(dynamic=False)
    return averages


def accelerator_for(config: TrainingConfig) -> Accelerator:
    """Precision and processes of a training; `InputError` if this machine lacks the one or lost the others."""
    if config.precision == "fp16" and not torch.cuda.is_available():
        raise InputError("precision fp16 needs a GPU; choose bf16 or no")
    AcceleratorState._reset_state()  # else the precision of an earlier training in this process would persist
    # Some configurations leave weights unused, such as a phi that no scale uses
    options = DistributedDataParallelKwargs(find_unused_parameters=True)
    cpu = not torch.cuda.is_available()  # by default accelerate does not join processes without GPUs
    try:
        accelerator = Accelerator(mixed_precision=config.precision, cpu=cpu, kwargs_handlers=[options])
    except ValueError as error:
        raise InputError(f"precision {config.precision} does not work on this machine ({error})") from None
    started = started_processes()
    if not accelerator.num_processes == world_size() == started:
        raise InputError(
            f"WORLD_SIZE is {started}, but this process is one of {world_size()}; start all processes by torchrun or "
            "Slurm, with RANK, LOCAL_RANK, MASTER_ADDR and MASTER_PORT set"
        )
    return accelerator


def _hash(task: TrainingTask, images: BatchSource, seed: int) -> str:
    training = to_dict(task.training)
    return config_hash({"task": task.settings, "training": training, "images": len(images), "seed": seed})


def _over_processes(losses: dict[str, Tensor]) -> dict[str, float]:
    means = mean_over_processes(torch.stack([value.detach().float() for value in losses.values()]))
    return dict(zip(losses, means.tolist(), strict=True))


def _of_main(value: float, device: torch.device) -> float:
    """The value of rank 0, in all processes."""
    return float(sum_over_processes(torch.tensor(value if is_main() else 0.0, dtype=torch.float64, device=device)))


def _state(
    task: TrainingTask,
    model: nn.Module,
    averaged: nn.Module,
    accelerator: Accelerator,
    *,
    step: int,
    seconds: float = 0.0,
) -> dict[str, Any]:
    """What a training is resumed from. `model`: the task's own, not wrapped by DDP."""
    return {
        "step": step,
        "seconds": seconds,
        "world": world_size(),
        "model": model.state_dict(),
        "averaged": averaged.state_dict(),
        "modules": {name: module.state_dict() for name, module in task.modules.items()},
        "optimizers": [optimizer.state_dict() for optimizer in task.optimizers],
        "scaler": None if accelerator.scaler is None else accelerator.scaler.state_dict(),
    }


def _restore(state: dict[str, Any] | None, task: TrainingTask, averaged: nn.Module) -> tuple[int, float]:
    """Load a saved state; the steps and seconds it took to get there."""
    if state is None:
        return 0, 0.0
    task.model.load_state_dict(state["model"])
    averaged.load_state_dict(state["averaged"])
    for name, module in task.modules.items():
        module.load_state_dict(state["modules"][name])
    for optimizer, saved in zip(task.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state["step"], state["seconds"]
