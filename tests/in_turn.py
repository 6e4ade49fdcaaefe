"""Run tasks in this process, one after the other, which saves the seconds that worker processes take to start."""

from __future__ import annotations

from collections.abc import Iterator

from reproductions.executor import Task, attempt


class InTurn:
    """A `reproductions.executor.Way`."""

    def __init__(self) -> None:
        self._ended: list[tuple[str, str | None]] = []

    @property
    def has_room(self) -> bool:
        return not self._ended

    def start(self, task: Task) -> None:
        self._ended.append((task.name, attempt(task)))

    def ended(self) -> Iterator[tuple[str, str | None]]:
        while self._ended:
            yield self._ended.pop()

    def finish(self) -> dict[str, str]:
        return {}

    def abort(self) -> None:
        """Nothing runs elsewhere."""
