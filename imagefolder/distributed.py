"""The processes of one training or evaluation: which one this is, and sums over all of them.

A batch is spread over W processes sample by sample: sample i of process r is sample r + i * W of the whole batch.
torch is imported only where several processes work together.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from imagefolder.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


def join_processes() -> None:
    """Join the processes started by torchrun or Slurm (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT).

    The backend is NCCL with one GPU per process, else Gloo. Does nothing if there is only this process, or if it has
    joined already.

    Raises:
        InputError: WORLD_SIZE is above 1, but the other variables are not set.
    """
    if started_processes() > 1:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())  # by default accelerate does not join processes without GPUs


def started_processes() -> int:
    """The number of processes in WORLD_SIZE; `InputError` if the other variables are missing (it is a leftover)."""
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"WORLD_SIZE={text} is not a number of processes; unset it")
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if int(text) > 1 and missing:
        raise InputError(
            f"WORLD_SIZE={text} means several processes, but {', '.join(missing)} is not set: unset WORLD_SIZE, or "
            "start all processes by torchrun or Slurm"
        )
    return int(text)


def is_distributed() -> bool:
    """Whether several processes work together."""
    if "torch" not in sys.modules:  # which joining them imports
        return False
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Number of this process, 0..world_size()-1."""
    if not is_distributed():
        return 0
    import torch.distributed as dist

    return dist.get_rank()


def world_size() -> int:
    """Number of processes."""
    if not is_distributed():
        return 1
    import torch.distributed as dist

    return dist.get_world_size()


def is_main() -> bool:
    """Whether this is rank 0, which writes files and prints."""
    return rank() == 0


def barrier() -> None:
    """Wait for all processes."""
    if is_distributed():
        import torch.distributed as dist

        dist.barrier()


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum of the processes' tensors, in all of them; in place."""
    if is_distributed():
        import torch.distributed as dist

        dist.all_reduce(value)
    return value


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of the processes' float tensors, in all of them; in place, without gradient."""
    return sum_over_processes(value).div_(world_size()) if is_distributed() else value


def mean_with_gradient(value: Tensor) -> Tensor:
    """The mean of the processes' float tensors, through which gradients flow.

    With gradients averaged over processes (DDP), losses computed from it train as one process on the whole batch does.
    """
    return _differentiable_mean()(value) if is_distributed() else value


@functools.cache
def _differentiable_mean() -> Callable[[Tensor], Tensor]:
    import torch

    class Mean(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: Tensor) -> Tensor:
            return mean_over_processes(value.clone(memory_format=torch.contiguous_format))

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return mean_over_processes(gradient.clone(memory_format=torch.contiguous_format))

    return Mean.apply


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Average the gradients of a module that DDP does not wrap over the processes, in one message."""
    if not is_distributed():
        return
    import torch

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
    import torch.distributed as dist

    gathered: list[T] = [value] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def of_main(value: T) -> T:
    """Rank 0's picklable value, in all processes: what one sees on a shared disk, another may not see yet."""
    return gather_objects(value)[0]


def my_part(number: int) -> range:
    """This process's contiguous part of 0..number-1; the parts of all processes in order are the whole."""
    return range(number * rank() // world_size(), number * (rank() + 1) // world_size())
