"""Tasks in this process, one after the other, together with the other processes of torchrun."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch.distributed as dist

from imagefolder.environment import tune_allocator
from imagefolder.errors import InputError, reason
from imagefolder.training.sanity import TrainingFailed
from reproductions.executor import Found, Item, Task, is_worker_death


class Together:
    """All processes run the same tasks in the same order.

    A failure ends the run: the other processes would wait for this one forever.

    Raises:
        InputError: another process has ended, or a training cannot continue.
    """

    at_once = 1

    def __init__(self) -> None:
        tune_allocator()
        self._ended: list[str] = []

    @property
    def has_room(self) -> bool:
        return not self._ended

    def map(self, function: Callable[[Item], Found], items: Sequence[Item]) -> list[Found]:
        return [function(item) for item in items]

    def start(self, task: Task) -> None:
        try:
            task.function(*task.arguments)
        except RuntimeError as error:
            if isinstance(error, TrainingFailed) or is_worker_death(error):
                raise InputError(f"{task.name}: {reason(error)}") from error
            if not isinstance(error, dist.DistError) and "gloo" not in str(error):
                raise
            raise InputError(
                f"{task.name}: another of the processes has ended or cannot be reached ({reason(error)}); its "
                "output shows why, and the same command continues"
            ) from error
        self._ended.append(task.name)

    def ended(self) -> Iterator[tuple[str, str | None]]:
        while self._ended:
            yield self._ended.pop(), None

    def finish(self) -> dict[str, str]:
        return {}

    def abort(self) -> None:
        """Nothing runs elsewhere."""
