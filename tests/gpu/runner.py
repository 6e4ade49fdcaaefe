"""Runs items one after the other in a process of their own, so that nothing that one does can stop the others.

A process keeps its models between items. It is replaced after an item that failed, as an error on the GPU may spoil
all that follows, that ended the process, or that took too long and was killed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from imagefolder.errors import InputError
from tests.gpu.item import Item, Result
from tests.gpu.worker import work

START_SECONDS = 120.0  # for a process to import everything and to find its device
LEAST_SHARE = 0.5  # of an item's seconds that must be left for it to start

Report = Callable[[Item, Result], None]


def run_items(
    items: Sequence[Item], device: str, output: Path, seconds: float, machine: dict[str, Any], report: Report
) -> None:
    """Run the items in order within `seconds`; every one is reported, also those that there is no time for.

    Args:
        device: "cuda" or "cpu".
        output: receives the records and `gpu/log.txt`, to which everything prints.
        machine: receives what `environment.describe` says there.
        report: called after every item.

    Raises:
        InputError: the device is not there.
    """
    deadline, worker = time.monotonic() + seconds, None
    try:
        for item in items:
            left = deadline - time.monotonic()
            if left < LEAST_SHARE * item.seconds:
                report(item, Result("not run", reason="no time left"))
                continue
            if worker is None:
                worker = Worker(device, output)
                machine.update(worker.started(min(left, START_SECONDS)))
                left = deadline - time.monotonic()
            result = worker.run(item, min(item.seconds, left))
            if result.verdict == "failed":
                worker.kill()
                worker = None
            report(item, result)
    finally:
        if worker is not None:
            worker.kill()


class Worker:
    """A process that runs items on request (`worker.work`)."""

    def __init__(self, device: str, output: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=work, args=(other, device, output))
        self.process.start()
        other.close()

    def started(self, seconds: float) -> dict[str, Any]:
        """What it says of the machine. Raises InputError if it has no such device, or does not start."""
        try:
            answer = _received(self.connection, seconds) or f"did not start within {seconds:.0f} s; see log.txt"
        except EOFError:
            answer = f"did not start ({self._end()}); see log.txt"
        if not isinstance(answer, dict):
            raise InputError(f"the process of the items: {answer}")
        return answer

    def run(self, item: Item, seconds: float) -> Result:
        """What becomes of an item within `seconds`."""
        clock = time.monotonic()
        try:
            self.connection.send((item, seconds))
            result = _received(self.connection, seconds)
        except (EOFError, OSError):
            return Result("failed", reason=f"its process died: {self._end()}", seconds=time.monotonic() - clock)
        return result or Result("failed", reason=f"ended after {seconds:.0f} s", seconds=seconds)

    def _end(self) -> str:
        """How the process ended by itself."""
        self.process.join()
        code = self.process.exitcode or 0
        return f"exit code {code}" if code >= 0 else signal.Signals(-code).name

    def kill(self) -> None:
        """End the process, and those that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid or 0, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self.connection.close()


def _received(connection: Connection, seconds: float) -> Any:
    """The next answer; None if there is none in time."""
    return connection.recv() if connection.poll(max(seconds, 0.0)) else None
