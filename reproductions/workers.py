"""Tasks in worker processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from imagefolder.errors import InputError
from imagefolder.progress import display, send_to
from reproductions.executor import Found, Item, Task, attempt

DIED = "a worker process died (killed, out of memory?); the same command continues"


class Workers:
    """At most `number` tasks at once, each with `threads` CPU threads (None: torch's default)."""

    def __init__(self, number: int, threads: int | None) -> None:
        self.at_once, self._threads = number, threads
        # A fork of this process is unsafe once torch has started threads. One that has imported everything and does
        # nothing else forks workers at once; new processes need seconds of a core each for the same imports.
        self._context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
        self._context.set_forkserver_preload(["reproductions.stages"])
        self._events = self._context.SimpleQueue()
        threading.Thread(target=_show, args=(self._events,), daemon=True).start()
        self._pool = self._new_pool()
        self._running: dict[Future[str | None], str] = {}
        self._dead: list[str] = []

    @property
    def has_room(self) -> bool:
        return len(self._running) < self.at_once

    def map(self, function: Callable[[Item], Found], items: Sequence[Item]) -> list[Found]:
        try:
            return list(self._pool.map(function, items))
        except BrokenProcessPool:
            self._replace_pool()
            raise InputError(DIED) from None

    def start(self, task: Task) -> None:
        try:
            future = self._pool.submit(attempt, task)
        except BrokenProcessPool:
            self._replace_pool()
            future = self._pool.submit(attempt, task)
        self._running[future] = task.name

    def ended(self) -> Iterator[tuple[str, str | None]]:
        if not self._dead:
            done = wait(self._running, return_when=FIRST_COMPLETED).done
            if any(isinstance(future.exception(), BrokenProcessPool) for future in done):
                self._replace_pool()
            for future in done & self._running.keys():
                yield self._running.pop(future), future.result()
        while self._dead:
            yield self._dead.pop(), DIED

    def finish(self) -> dict[str, str]:
        self._close()
        return {}

    def abort(self) -> None:
        for process in multiprocessing.active_children():
            process.terminate()
        self._close()

    def _replace_pool(self) -> None:
        """A dead worker takes all running tasks with it, whichever of them was to blame."""
        for future in list(self._running):
            if not future.done() or isinstance(future.exception(), BrokenProcessPool):
                self._dead.append(self._running.pop(future))
        self._pool.shutdown(wait=False)
        self._pool = self._new_pool()

    def _new_pool(self) -> ProcessPoolExecutor:
        arguments = (self._events, self._threads, dict(os.environ))
        return ProcessPoolExecutor(self.at_once, self._context, initializer=_start_worker, initargs=arguments)

    def _close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        deadline = time.monotonic() + 1
        while not self._events.empty() and time.monotonic() < deadline:
            time.sleep(0.01)
        display.close()


def _start_worker(events: Any, threads: int | None, variables: dict[str, str]) -> None:
    from imagefolder.environment import tune_allocator, use_threads

    os.environ.clear()  # the process that this one was forked from may be older than changes of the parent's
    os.environ.update(variables)
    tune_allocator()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    threading.Thread(target=_end_with_parent, daemon=True).start()
    send_to(events.put)
    if threads is not None:
        use_threads(threads)


def _end_with_parent() -> None:
    """Leave no worker behind, however the parent ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _show(events: Any) -> None:
    while True:
        display.handle(events.get())
