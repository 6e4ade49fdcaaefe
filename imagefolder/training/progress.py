"""Showing long work: a bar on a terminal, a plain line every few seconds elsewhere (logs, CI)."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_SECONDS = 10.0

console = Console(stderr=False, highlight=False, soft_wrap=True)


class Phase:
    """One phase of the work, e.g. Phase("table2 [1/4] ImageFolder: tokenizer", 400), used as a context manager."""

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total = title, total
        self.started = self.printed = time.monotonic()
        self.first: int | None = None
        self._bar: Progress | None = None

    def __enter__(self) -> Phase:
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[values]}"), console=console)
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, values="")
        else:
            console.print(f"{self.title}: started")
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None:
            console.print(f"{self.title}: done in {time.monotonic() - self.started:.0f} s")

    def update(self, done: int, values: Mapping[str, float] | None = None) -> None:
        """Report that `done` of `total` are done, with the latest values (losses)."""
        self.first = done if self.first is None else self.first
        text = "  ".join(f"{name} {value:.3g}" for name, value in (values or {}).items())
        if self._bar is not None:
            self._bar.update(self._task, completed=done, values=text)
            return
        now = time.monotonic()
        if now - self.printed >= PLAIN_SECONDS and done > self.first:
            self.printed = now
            left = (now - self.started) / (done - self.first) * (self.total - done)
            console.print(f"{self.title}: {done}/{self.total}, {left:.0f} s left  {text}")
