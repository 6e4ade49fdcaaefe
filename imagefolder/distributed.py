"""The processes of one training or evaluation: who this one is, and what they add up to.

A batch is spread over W processes sample by sample: sample i of process r is sample r + i * W of the whole batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

from imagefolder.errors import InputError

T = TypeVar("T")


def join_processes() -> None:
    """Join the processes started by torchrun or Slurm (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT).

    NCCL with a GPU of its own for each, else Gloo. Does nothing where this process is the only one, or has joined.

    Raises:
        InputError: WORLD_SIZE says that there are several, and what else that takes is not set.
    """
    if started_processes() > 1:
        PartialState(cpu=not torch.cuda.is_available())  # accelerate would leave processes without GPUs alone


def started_processes() -> int:
    """How many processes WORLD_SIZE speaks of; `InputError` if nothing else does, as in a shell where it was left."""
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"WORLD_SIZE={text} is no number of processes; unset it")
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if int(text) > 1 and missing:
        raise InputError(
            f"WORLD_SIZE={text} speaks of several processes, but {', '.join(missing)} is not set: unset WORLD_SIZE, or "
            "start all by torchrun or Slurm"
        )
    return int(text)


def is_distributed() -> bool:
    """Whether several processes work together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Number of this process, 0..world_size()-1."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if is_distributed() else 1


def is_main() -> bool:
    """Whether this is the process that writes files and speaks."""
    return rank() == 0


def barrier() -> None:
    """Wait for all processes."""
    if is_distributed():
        dist.barrier()


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum of the processes' tensors, in all of them; in place."""
    if is_distributed():
        dist.all_reduce(value)
    return value


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of the processes' float tensors, in all of them; in place, without gradient."""
    return sum_over_processes(value).div_(world_size()) if is_distributed() else value


def mean_with_gradient(value: Tensor) -> Tensor:
    """The mean of the processes' float tensors, through which gradients flow.

    With gradients averaged over processes (DDP), losses made of it train as one process on the whole batch would.
    """
    return _Mean.apply(value) if is_distributed() else value


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return mean_over_processes(value.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return mean_over_processes(gradient.clone(memory_format=torch.contiguous_format))


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Average the gradients of a module that DDP does not wrap over the processes, in one message."""
    if not is_distributed():
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    means = mean_over_processes(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, mean in zip(gradients, means.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def own_samples(values: Tensor) -> Tensor:
    """This process's samples of the whole batch: (W * B, ...) -> (B, ...)."""
    return values[rank() :: world_size()]


def gather_objects(value: T) -> list[T]:
    """Every process's picklable value, by rank, in all of them."""
    if not is_distributed():
        return [value]
    gathered: list[T] = [value] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def my_part(number: int) -> range:
    """This process's contiguous part of 0..number-1; the parts of all processes in order are the whole."""
    return range(number * rank() // world_size(), number * (rank() + 1) // world_size())
