"""The training loop shared by both models: order of data, learning rate, EMA, logs, saving and resuming.

The data order and the learning rate are functions of the step, and everything random in a step is seeded by (seed,
step): a training continued from its last saved state takes the same steps as one never stopped. What decides the
objective (dropped classes and scales, perturbed codes) is drawn for the whole batch of a step and then divided, so that
any number of processes and of pieces (gradient accumulation) trains the same; noise inside the networks (stochastic
depth, augmentation of what a discriminator sees) is each piece's own, seeded by (seed, step, process, piece).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import Dataset

from imagefolder.config import Execution, TrainingConfig, config_hash, to_dict
from imagefolder.data.order import Shard, pieces_per_process, training_batches
from imagefolder.distributed import (
    average_gradients,
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
from imagefolder.interruption import Stopped, stop_requested
from imagefolder.numerics import any_seed
from imagefolder.progress import Phase
from imagefolder.training.curve import Curve
from imagefolder.training.sanity import require_finite_losses, require_finite_weights, tell_of_zeros
from imagefolder.training.state import BEST, PREVIOUS, STATE, StateFile, remove_leftovers

LOG_EVERY = 20
SEEDS_PER_STEP = 1_009  # one for each process, the last for what all draw alike
NOISE_OF_A_PIECE = 1_000_000_007
DEFAULT_EXECUTION = Execution()


Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Step:
    """A step of a training: `number`, from 0, in `pieces` pieces in this process.

    `generator` (on the CPU, alike in all processes) is for what all must draw alike; `noise_seed` seeds this process's
    own noise.
    """

    number: int
    pieces: int
    accelerator: Accelerator
    generator: torch.Generator
    noise_seed: int = 0

    def seed_noise(self, piece: int) -> None:
        """Have torch draw the noise of a piece, the same one whenever it is asked for."""
        torch.manual_seed(self.noise_seed + piece * NOISE_OF_A_PIECE)

    def accumulating(self, model: nn.Module, piece: int) -> AbstractContextManager:
        """Context that delays DDP's exchange of gradients to the last piece."""
        return nullcontext() if piece == self.pieces - 1 else self.accelerator.no_sync(model)


class Task:
    """What is trained. Subclasses set the attributes and implement `step`.

    model: trained, averaged and saved. modules: further modules with state (discriminator). frozen: modules that only
    have to be on the device. optimizers: the model's first, in the order of `learning_rates`. settings: what besides
    the `TrainingConfig` decides the outcome, as JSON types.
    """

    model: nn.Module
    training: TrainingConfig
    frozen: list[nn.Module]
    modules: dict[str, nn.Module]
    optimizers: list[torch.optim.Optimizer]
    settings: dict[str, Any]

    def learning_rates(self, step: int) -> dict[str, float]:
        """Learning rate of every optimiser, in their order, at a step."""
        return {"learning_rate": self.training.learning_rate * learning_rate_share(step, self.training)}

    def step(self, pieces: list[Batch], step: Step) -> dict[str, Tensor]:
        """Losses, backward pass and optimiser step on this process's part of a batch, worked through piece by piece.

        All pieces are equally large, and consecutive in the order of the batch. The losses are scalars whose mean over
        the processes is that over the samples of the batch.
        """
        raise AssertionError("abstract")


def adamw(parameters: Iterable[Any], config: TrainingConfig, rate: float, weight_decay: float) -> torch.optim.AdamW:
    """Fused AdamW."""
    return torch.optim.AdamW(parameters, lr=rate, betas=config.betas, weight_decay=weight_decay, fused=True)


def learning_rate_share(step: int, config: TrainingConfig) -> float:
    """Learning rate of a step as a share of its peak: linear warm-up, then cosine or flat-then-linear decay.

    The cosine is that of the whole training, of which the warm-up covers the beginning; the linear decay begins after
    a twentieth of what the warm-up leaves.
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


def averaging(model: nn.Module, config: TrainingConfig) -> ModelEmaV3:
    """Averaged weights, whose decay is the same from the first step on."""
    return ModelEmaV3(model, decay=config.ema)


def fit(
    task: Task,
    images: Dataset,
    folder: Path,
    seed: int,
    title: str,
    execution: Execution = DEFAULT_EXECUTION,
    evaluate: Callable[[nn.Module], float] | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Train, continuing from the state saved in `folder` if there is one.

    Every one of the processes joined by `imagefolder.distributed.join_processes` calls this with the same arguments and
    takes its share of every batch; the main one writes. Another number of processes may continue a training.

    Args:
        images: what `training_batches` takes: fetched by (epoch, index), with `workers`.
        folder: receives `state.pt` and `best.pt` while training, `curve.jsonl` and tensorboard files. All processes
            see it.
        title: shown before the progress.
        evaluate: called by all processes with the model in eval mode, averaged or raw as `config.select_by` says, every
            `config.evaluate_every` steps and at the end; lower is better, and that of the main process counts.

    Returns:
        The averaged (EMA) model in eval mode, where `evaluate` was lowest (first if equal) or of the last step, and
        {"seconds", "losses" of the last steps, "peak_memory_mib", "selected_step", "selected_value" (None without
        `evaluate`)}.

    Raises:
        InputError: a precision this machine lacks, a batch that does not divide, a state of other settings.
        Stopped: `interruption.request_stop` was called in one of the processes; the state is saved.
        TrainingFailed: a loss, evaluation or weight is not finite.
    """
    config = task.training
    accelerator = _accelerator(config)
    folder.mkdir(parents=True, exist_ok=True)
    for module in (task.model, *task.modules.values(), *task.frozen):
        module.to(accelerator.device)
    if execution.activation_checkpointing:
        task.model.set_grad_checkpointing()
    ema = averaging(task.model, config)
    averaged, model = ema.module, task.model
    if execution.compile:
        for layer in model.layers:
            layer.compile(dynamic=False)

    settings = _hash(task, images, seed)
    state_file, best_file = StateFile(folder / STATE, settings, PREVIOUS), StateFile(folder / BEST, settings)
    state, best = state_file.read(), best_file.read()
    seen = gather_objects(tuple(saved and saved["step"] for saved in (state, best)))
    if len(set(seen)) > 1:  # a shared disk that shows them different files
        raise InputError(f"{folder}: the processes see different saved states (steps {seen}); start them again")
    start, seconds = _restore(state, task, averaged)
    task.model = accelerator.prepare(model)
    task.optimizers = [accelerator.prepare(optimizer) for optimizer in task.optimizers]
    if state is not None and accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(state["scaler"])
    chosen = (math.inf, 0) if best is None else (best["value"], best["step"])
    del state, best
    barrier()  # before the main process removes or replaces what another still reads
    remove_leftovers(folder)

    clock = time.monotonic()
    reset_peak_memory()
    stop = _StopAgreement(accelerator.device)
    logged: dict[str, float] = {}
    runner = _Runner(task, images, seed, start, execution, accelerator)
    with Curve(folder, start) as curve, Phase(title, config.steps, start) as phase:
        for done in range(start + 1, config.steps + 1):
            losses = runner.step(done - 1)
            ema.update(model)
            last = done == config.steps
            saving = done % config.checkpoint_every == 0 and not last
            evaluating = evaluate is not None and (
                last or (config.evaluate_every > 0 and done % config.evaluate_every == 0)
            )
            writing = saving or evaluating or last or done % LOG_EVERY == 0
            stopping = not last and stop.agreed()
            if writing or stopping:
                first, logged = not logged, _over_processes(losses)
                require_finite_losses(logged, done - 1, folder)
                if first and is_main():
                    tell_of_zeros(title, logged, done)
            if saving or stopping or evaluating or last:
                require_finite_weights(_state(task, model, averaged, accelerator, done, 0.0), folder)
            phase.update(done, logged)
            if writing:
                values = dict(logged)
                if evaluating:
                    with torch.no_grad():
                        judged = averaged if config.select_by == "averaged" else model
                        value = _of_main(evaluate(judged.eval()), accelerator.device)
                    values["evaluation"] = value
                    require_finite_losses({"evaluation": value}, done - 1, folder)
                    if value < chosen[0]:
                        chosen = value, done
                        if is_main():
                            best_file.write({"value": value, "step": done, "averaged": averaged.state_dict()})
                curve.add(done, values, task.learning_rates(done - 1))
            if (saving or stopping) and is_main():
                curve.flush()
                passed = seconds + time.monotonic() - clock
                state_file.write(_state(task, model, averaged, accelerator, done, passed))
            if stopping:
                barrier()  # a launcher may end the other processes as soon as one has ended
                raise Stopped(f"{title}: stopped at step {done} of {config.steps}; the same command continues")
    barrier()
    if evaluate is not None:
        averaged.load_state_dict(best_file.read()["averaged"])
    task.model = model
    seconds += time.monotonic() - clock
    return averaged.eval(), {
        "seconds": seconds,
        "losses": logged,
        "peak_memory_mib": peak_memory_mib(),
        "selected_step": config.steps if evaluate is None else chosen[1],
        "selected_value": None if evaluate is None else chosen[0],
    }


def mean_over_pieces(losses: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Each loss averaged over equally large pieces."""
    return {name: torch.stack([piece[name] for piece in losses]).mean(0) for name in losses[0]}


def update(
    optimizer: torch.optim.Optimizer,
    parameters: Iterable[Tensor],
    clip: float,
    accelerator: Accelerator,
    average: bool = False,
) -> None:
    """Optional clipping, update, gradients cleared: after the backward passes of all pieces.

    `average`: the parameters are of a module that DDP does not wrap, whose gradients are averaged here.
    """
    parameters = list(parameters)
    if average:
        average_gradients(parameters)
    if clip:
        accelerator.clip_grad_norm_(parameters, clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


class _Runner:
    """Takes one step after the other, each in as many pieces as the largest piece of a process demands."""

    def __init__(
        self,
        task: Task,
        images: Dataset,
        seed: int,
        start: int,
        execution: Execution,
        accelerator: Accelerator,
    ) -> None:
        config = task.training
        self.task, self.seed, self.accelerator = task, seed, accelerator
        self.pieces = pieces_per_process(config.batch_size, world_size(), execution.micro_batch)
        shard = Shard(rank(), world_size(), self.pieces)
        self.batches = iter(training_batches(images, config.batch_size, seed, start, config.steps, shard))
        self.generator = torch.Generator()

    def step(self, number: int) -> dict[str, Tensor]:
        """The losses of a step in this process."""
        first = any_seed((self.seed * 1_000_003 + number) * SEEDS_PER_STEP)
        step = Step(number, self.pieces, self.accelerator, self.generator, first + rank())
        self.generator.manual_seed(first + SEEDS_PER_STEP - 1)
        rates = self.task.learning_rates(number).values()
        for optimizer, rate in zip(self.task.optimizers, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate
        self.task.model.train()
        device = self.accelerator.device
        batches = (next(self.batches) for _ in range(self.pieces))
        pieces = [tuple(tensor.to(device, non_blocking=True) for tensor in batch) for batch in batches]
        return self.task.step(pieces, step)


class _StopAgreement:
    """Whether any of the processes was asked to stop. With several, known a step later: so nobody waits for a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.before = device, None

    def agreed(self) -> bool:
        """Called by all processes after every step; the same answer in all."""
        if world_size() == 1:
            return stop_requested()
        before = self.before
        self.before = sum_over_processes(torch.full((), float(stop_requested()), device=self.device))
        return before is not None and bool(before > 0)


def _accelerator(config: TrainingConfig) -> Accelerator:
    if config.precision == "fp16" and not torch.cuda.is_available():
        raise InputError("precision fp16 needs a GPU; choose bf16 or no")
    AcceleratorState._reset_state()  # else the precision of an earlier training in this process would stay
    # Some weights take no part in some configurations, as a phi that no scale uses
    options = DistributedDataParallelKwargs(find_unused_parameters=True)
    cpu = not torch.cuda.is_available()  # accelerate would leave processes without GPUs alone
    try:
        accelerator = Accelerator(mixed_precision=config.precision, cpu=cpu, kwargs_handlers=[options])
    except ValueError as error:
        raise InputError(f"precision {config.precision} does not work on this machine ({error})") from None
    started = started_processes()
    if not accelerator.num_processes == world_size() == started:
        raise InputError(
            f"WORLD_SIZE says {started} processes, but this one works with {world_size()}; start all by torchrun or "
            "Slurm, with RANK, LOCAL_RANK, MASTER_ADDR and MASTER_PORT set"
        )
    return accelerator


def _hash(task: Task, images: Dataset, seed: int) -> str:
    training = to_dict(task.training)
    return config_hash({"task": task.settings, "training": training, "images": len(images), "seed": seed})


def _over_processes(losses: dict[str, Tensor]) -> dict[str, float]:
    means = mean_over_processes(torch.stack([value.detach().float() for value in losses.values()]))
    return dict(zip(losses, means.tolist(), strict=True))


def _of_main(value: float, device: torch.device) -> float:
    """The main process's value, in all of them."""
    return float(sum_over_processes(torch.tensor(value if is_main() else 0.0, dtype=torch.float64, device=device)))


def _state(
    task: Task, model: nn.Module, averaged: nn.Module, accelerator: Accelerator, step: int, seconds: float
) -> dict[str, Any]:
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


def _restore(state: dict[str, Any] | None, task: Task, averaged: nn.Module) -> tuple[int, float]:
    if state is None:
        return 0, 0.0
    task.model.load_state_dict(state["model"])
    averaged.load_state_dict(state["averaged"])
    for name, module in task.modules.items():
        module.load_state_dict(state["modules"][name])
    for optimizer, saved in zip(task.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state["step"], state["seconds"]
