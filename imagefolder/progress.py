"""Progress of long work: bars on a terminal, a plain line every few seconds elsewhere (logs, CI).

A `Phase` emits events. By default the display of this process shows them; a worker process sends them to its parent's
display, so that several workers share one terminal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from imagefolder.distributed import is_main
from imagefolder.errors import one_line

PLAIN_SECONDS = 10.0


class _Console(Console):
    """Shows names as they are: brackets are not markup, and control characters are escaped."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str("\n".join(map(one_line, text.split("\n"))), **options)


console = _Console(highlight=False, soft_wrap=True, markup=False, emoji=False)


@dataclass(frozen=True)
class Event:
    """`done` of `total` of the phase `title`; `ended` closes it: True if it finished, False after an error."""

    title: str
    done: int
    total: int
    values: dict[str, float] = field(default_factory=dict)
    ended: bool | None = None


class Display:
    """Shows the events of any number of concurrent phases."""

    def __init__(self) -> None:
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._plain: dict[str, tuple[float, float, int]] = {}  # started, last printed, first count

    def handle(self, event: Event) -> None:
        """Show one event."""
        text = "  ".join(f"{name} {value:.3g}" for name, value in event.values.items())
        if console.is_terminal:
            self._show_bar(event, text)
        else:
            self._show_line(event, text)

    def _show_bar(self, event: Event, text: str) -> None:
        if self._bars is None:
            title = TextColumn("{task.description}", markup=False)
            columns = (title, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            left = (TimeRemainingColumn(), TextColumn("{task.fields[values]}", markup=False))
            self._bars = Progress(*columns, *left, console=console)
            self._bars.start()
        if event.title not in self._tasks:
            options = {"total": event.total, "completed": event.done, "values": ""}
            self._tasks[event.title] = self._bars.add_task(event.title, **options)
        task = self._tasks[event.title]
        self._bars.update(task, completed=event.done, values=text)
        if event.ended is not None:
            elapsed = self._bars.tasks[self._bars.task_ids.index(task)].elapsed or 0
            self._bars.remove_task(self._tasks.pop(event.title))
            console.print(_ending(event, elapsed))
            if not self._tasks:
                self._bars.stop()
                self._bars = None

    def _show_line(self, event: Event, text: str) -> None:
        now = time.monotonic()
        if event.title not in self._plain:
            self._plain[event.title] = (now, now, event.done)
            console.print(f"{event.title}: started")
        started, printed, first = self._plain[event.title]
        if event.ended is not None:
            del self._plain[event.title]
            if not event.ended or now - started >= 1:  # a very short phase needs only its first line
                console.print(_ending(event, now - started))
        elif now - printed >= PLAIN_SECONDS and event.done > first:
            self._plain[event.title] = (started, now, first)
            left = (now - started) / (event.done - first) * (event.total - event.done)
            console.print(f"{event.title}: {event.done}/{event.total}, {left:.0f} s left  {text}")

    def close(self) -> None:
        """Remove the bars from the terminal (after an error or interrupt)."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


def _ending(event: Event, seconds: float) -> str:
    return f"{event.title}: {'done in' if event.ended else 'stopped after'} {seconds:.0f} s"


display = Display()
_sink: Callable[[Event], None] = display.handle


def send_to(sink: Callable[[Event], None]) -> None:
    """Send the events of this process to `sink` instead of its own display."""
    global _sink
    _sink = sink


@contextmanager
def silence() -> Iterator[None]:
    """Show no phases of this process."""
    before = _sink
    send_to(lambda event: None)
    try:
        yield
    finally:
        send_to(before)


class Phase:
    """One phase of the work, e.g. Phase("imagefolder: tokenizer", 400), used as a context manager.

    `start`: how much an earlier run, which this one resumes, has done. Of several processes, only rank 0 reports.
    """

    def __init__(self, title: str, total: int, start: int = 0) -> None:
        self.title, self.total, self.done, self.sent = one_line(title), total, start, 0.0

    def __enter__(self) -> Phase:
        self._send(Event(self.title, self.done, self.total))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._send(Event(self.title, self.total if kind is None else self.done, self.total, ended=kind is None))

    def update(self, done: int, values: Mapping[str, float] | None = None) -> None:
        """Report that `done` of `total` are done, with the latest values (losses)."""
        self.done, now = done, time.monotonic()
        if now - self.sent > 0.2:  # more often is not readable
            self.sent = now
            self._send(Event(self.title, done, self.total, dict(values or {})))

    def _send(self, event: Event) -> None:
        if is_main():
            _sink(event)
