"""Run tasks in this process, one after the other, which saves the seconds that worker processes take to start."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from reproductions.executor import Found, Item, Task, attempt


class InTurn:
    """A `reproductions.executor.Here`."""

    at_once = 1

    def __init__(self) -> None:
        self._ended: list[tuple[str, str | None]] = []

    @property
    def has_room(self) -> bool:
        return not self._ended

    def map(self, function: Callable[[Item], Found], items: Sequence[Item]) -> list[Found]:
        return [function(item) for item in items]

    def start(self, task: Task) -> None:
        self._ended.append((task.name, attempt(task)))

    def ended(self) -> Iterator[tuple[str, str | None]]:
        while self._ended:
            yield self._ended.pop()

    def finish(self) -> dict[str, str]:
        return {}

    def abort(self) -> None:
        """Nothing runs elsewhere."""
