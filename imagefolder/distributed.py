"""The processes of one training or evaluation: who this one is, and what they add up to."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


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
