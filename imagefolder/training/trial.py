"""What a step of a training takes on this machine, in seconds and memory, without training anything."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from imagefolder.config import Execution
from imagefolder.data.images import BatchSource
from imagefolder.data.order import BatchPart, pieces_per_process, training_batches
from imagefolder.distributed import gather_objects, rank, world_size
from imagefolder.environment import peak_memory_mib, reset_peak_memory, synchronize
from imagefolder.memory import SHARE, free_memory
from imagefolder.training.loop import DEFAULT_EXECUTION, accelerator_for, prepare
from imagefolder.training.task import Batch, Step, TrainingTask

FIRST, GROWTH = 2, 4  # images of the first batch, and by how much the next one is larger
SHARE_OF_WORK = 0.008  # of the predicted time that a measurement may take
MOST_SECONDS = 3.0  # that it may take after its first call, unless a single batch takes longer
LEAST_TIMES, MOST_TIMES = 3, 10


@dataclass(frozen=True)
class Measured:
    """What one batch takes."""

    seconds: float
    memory: float
    """peak in bytes: of the process or, with a GPU, allocated there"""


def measure(run: Callable[[int], object], whole: int, times: float, device: torch.device) -> Measured:
    """What `run(whole)` takes, which is going to be called `times` times: `run(n)` works on a batch of n images.

    Small batches come first. If a whole one would take too long to try, or more memory than is free, time and memory
    are extrapolated from the two largest batches tried. Each is tried a few times, and the fastest counts: other work
    on the machine only makes it slower. All processes that work together call this at once, and take the same
    decisions.
    """
    size = min(FIRST, whole)
    cold = _seconds(run, size, device)  # the first call also sets up kernels and memory
    base, found, smaller, began = memory_in_use(), [], (0, 0.0), time.monotonic()
    while True:
        found.append(cold if cold > 10 * MOST_SECONDS else _seconds(run, size, device))
        fastest, peak = min(found), peak_memory_mib() * 2**20
        activations, growth = max(peak - base, 0.0), min(GROWTH, whole / size)
        fits = activations * growth < SHARE * (free_memory(device) + activations)
        spent, all_fit = max(gather_objects(time.monotonic() - began)), all(gather_objects(fits))
        if growth > 1 and all_fit and growth * fastest < MOST_SECONDS:
            size, found, smaller = round(size * growth), [], (size, fastest)
            continue
        allowed = min(MOST_SECONDS, SHARE_OF_WORK * fastest * whole / size * times)
        enough = len(found) >= LEAST_TIMES or fastest > MOST_SECONDS / LEAST_TIMES
        if (enough and spent > allowed) or len(found) == MOST_TIMES:
            slope = max((fastest - smaller[1]) / (size - smaller[0]), 0.0)
            return Measured(fastest + slope * (whole - size), peak + activations * (whole / size - 1))


def memory_in_use() -> float:
    """Bytes in use: of the process or, with a GPU, allocated there; restarts the measurement of the peak."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc keeps freed memory for itself
    reset_peak_memory()
    return peak_memory_mib() * 2**20


def _seconds(run: Callable[[int], object], size: int, device: torch.device) -> float:
    """Of one call, in the slowest process."""
    clock = time.monotonic()
    run(size)
    synchronize(device)
    return max(gather_objects(time.monotonic() - clock))


class Trial:
    """Steps of a training on batches of any size. They change the task's model, but write nothing."""

    def __init__(self, task: TrainingTask, execution: Execution = DEFAULT_EXECUTION) -> None:
        self.task, self.micro_batch = task, execution.micro_batch
        self.accelerator = accelerator_for(task.training)
        for module in (task.model, *task.modules.values(), *task.frozen):
            module.to(self.accelerator.device)
        self.averages = prepare(task.model, task.training, execution)
        task.model = self.accelerator.prepare(task.model).train()
        task.optimizers = [self.accelerator.prepare(optimizer) for optimizer in task.optimizers]

    def measure(self, batch: Batch, number: int, times: int) -> Measured:
        """What the step `number`, counted from 0, and the `times` - 1 after it take each in this process.

        `batch`: a few images or tokens, and labels, of which batches are made by repeating them.
        """
        device, generator = self.accelerator.device, torch.Generator()
        inputs, labels = (part.to(device) for part in batch)

        def run(size: int) -> None:
            pieces = -(-size // self.micro_batch) if self.micro_batch else 1
            chosen = torch.arange(size - size % pieces, device=device) % len(labels)
            parts = list(zip(inputs[chosen].chunk(pieces), labels[chosen].chunk(pieces), strict=True))
            self._step(parts, number, generator)

        return measure(run, self.task.training.batch_size // world_size(), times, device)

    def steps(self, source: BatchSource, number: int, most: int) -> Callable[[], None]:
        """A function that takes the step `number`, counted from 0, whenever it is called, at most `most` times.

        Every call takes the next whole batch of `source`, in the order of a training, and moves it to the device.
        """
        batch_size, generator = self.task.training.batch_size, torch.Generator()
        count = pieces_per_process(batch_size, world_size(), self.micro_batch)
        part = BatchPart(rank(), world_size(), count)
        batches = iter(training_batches(source, batch_size, 0, 0, most, part=part))
        place = {"device": self.accelerator.device, "non_blocking": True}

        def step() -> None:
            pieces = itertools.islice(batches, count)
            self._step([(inputs.to(**place), labels.to(**place)) for inputs, labels in pieces], number, generator)

        return step

    def _step(self, pieces: list[Batch], number: int, generator: torch.Generator) -> None:
        self.task.step(pieces, Step(number, len(pieces), self.accelerator, generator))
        self.averages.update()
