"""Run a graph of tasks, each after the tasks that it needs.

The one place that decides what may start and what a failure stops. Where tasks run is up to a `Way`: worker processes
(`workers`), this process together with those of torchrun (`together`), or a cluster (`cluster`).
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from imagefolder.errors import InputError, reason
from imagefolder.training.sanity import TrainingFailed

Item = TypeVar("Item")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Task:
    """`function(*arguments)`, after the tasks named in `after`; importable and picklable.

    `alone`: with no other task beside it, once all tasks that are not `alone` have ended.
    """

    name: str
    function: Callable[..., None]
    arguments: tuple[Any, ...]
    after: tuple[str, ...] = ()
    alone: bool = False


class Way(Protocol):
    """Where tasks run."""

    @property
    def has_room(self) -> bool:
        """Whether another task may start now."""
        ...

    def start(self, task: Task) -> None:
        """Start a task whose needs are done."""
        ...

    def ended(self) -> Iterable[tuple[str, str | None]]:
        """Wait until at least one started task has ended; names, and why they failed (None: they did not)."""
        ...

    def finish(self) -> Mapping[str, str]:
        """Called once everything has been started and has ended; failures that are known only now, by name."""
        ...

    def abort(self) -> None:
        """Called instead of `finish` when an exception ends the run."""
        ...


class Here(Way, Protocol):
    """Where tasks run on this machine."""

    @property
    def at_once(self) -> int:
        """How many tasks run at the same time."""
        ...

    def map(self, function: Callable[[Item], Found], items: Sequence[Item]) -> list[Found]:
        """`function` of all items, importable and picklable, where tasks would run; before any task is started.

        Raises:
            InputError: a worker process died.
        """
        ...


def execute(tasks: Sequence[Task], way: Way) -> dict[str, str]:
    """Run all tasks, those listed first as early as possible. A failed task stops only those that need it.

    Returns:
        The tasks that failed or could not start, by name, each with the reason.
    """
    failed: dict[str, str] = {}
    done: set[str] = set()
    waiting, running = list(tasks), 0
    try:
        while waiting or running:
            others = any(not task.alone for task in waiting)
            for task in list(waiting):
                blocked = why_blocked(task, failed)
                if blocked is not None:
                    failed[task.name] = blocked
                    waiting.remove(task)
                elif done.issuperset(task.after) and way.has_room and not (task.alone and (running or others)):
                    way.start(task)
                    waiting.remove(task)
                    running += 1
            for name, why in way.ended() if running else ():
                running -= 1
                if why is None:
                    done.add(name)
                else:
                    failed[name] = why
        return consequences(tasks, failed | dict(way.finish()))
    except BaseException:
        way.abort()
        raise


def consequences(tasks: Iterable[Task], failed: Mapping[str, str]) -> dict[str, str]:
    """`failed`, and every task that therefore cannot start; each task is listed after what it needs."""
    reasons = dict(failed)
    for task in tasks:
        blocked = why_blocked(task, reasons)
        if blocked is not None and task.name not in reasons:
            reasons[task.name] = blocked
    return reasons


def why_blocked(task: Task, failed: Mapping[str, str]) -> str | None:
    """Why a task cannot start: the first of its needs that failed; None: nothing stops it."""
    need = next((name for name in task.after if name in failed), None)
    return None if need is None else f"{need} failed: {failed[need]}"


def attempt(task: Task) -> str | None:
    """Run a task; None, or one line on what went wrong. The traceback of an unexpected error goes to stderr."""
    try:
        task.function(*task.arguments)
    except (InputError, TrainingFailed, OSError) as error:
        return reason(error)
    except Exception as error:
        if is_worker_death(error):
            return f"a process that reads images has died: {reason(error)}; the same command continues"
        traceback.print_exc()
        return f"{type(error).__name__}: {reason(error)}"
    return None


def is_worker_death(error: Exception) -> bool:
    """Whether a data loading process has died: torch then raises a RuntimeError at any point of its parent."""
    return isinstance(error, RuntimeError) and "DataLoader worker" in str(error)
