"""Running stages in worker processes, each as soon as what it needs is done."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from imagefolder.errors import InputError, reason
from imagefolder.progress import display, send_to
from imagefolder.training.sanity import TrainingFailed


@dataclass(frozen=True)
class Task:
    """`function(*arguments)` in a worker, after the tasks named in `after`; importable and picklable."""

    name: str
    function: Callable[..., None]
    arguments: tuple[Any, ...]
    after: tuple[str, ...] = ()


def run_tasks(tasks: list[Task], jobs: int, threads: int | None) -> dict[str, str]:
    """Run all tasks, at most `jobs` at once, each with `threads` CPU threads (None: torch's default).

    A failed task stops only those that need it.

    Returns:
        Reason by name for every task that failed or could not be started.
    """
    context = multiprocessing.get_context("spawn")  # fork is unsafe once torch has started threads
    events = context.SimpleQueue()
    threading.Thread(target=_show, args=(events,), daemon=True).start()

    def new_pool() -> ProcessPoolExecutor:
        return ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_worker, initargs=(events, threads))

    failed: dict[str, str] = {}
    done: set[str] = set()
    waiting, running = list(tasks), {}
    pool = new_pool()
    try:
        while waiting or running:
            broken = False
            for task in list(waiting):
                failed_need = next((name for name in task.after if name in failed), None)
                if failed_need is not None:
                    failed[task.name] = f"{failed_need} failed: {failed[failed_need]}"
                    waiting.remove(task)
                elif done.issuperset(task.after) and len(running) < jobs:
                    try:
                        running[pool.submit(_run, task)] = task.name
                    except BrokenProcessPool:
                        broken = True
                        break
                    waiting.remove(task)
            for future in wait(running, return_when=FIRST_COMPLETED).done if running and not broken else ():
                try:
                    reason = future.result()
                except BrokenProcessPool:
                    broken = True
                    continue
                name = running.pop(future)
                if reason is None:
                    done.add(name)
                else:
                    failed[name] = reason
            if broken:  # a dead worker takes all running tasks with it, whichever of them was to blame
                reason = "a worker process died (killed, out of memory?); the same command continues"
                failed |= dict.fromkeys(running.values(), reason)
                running.clear()
                pool.shutdown(wait=False)
                pool = new_pool()
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        deadline = time.monotonic() + 1
        while not events.empty() and time.monotonic() < deadline:
            time.sleep(0.01)
        display.close()
    return failed


def run_here(tasks: list[Task]) -> dict[str, str]:
    """Run all tasks in this process, one after the other, together with the other processes of torchrun.

    A failure ends the run: the other processes would wait for this one for ever.

    Raises:
        InputError: another process has ended, or a training cannot go on.
    """
    for task in tasks:
        try:
            task.function(*task.arguments)
        except RuntimeError as error:
            if isinstance(error, TrainingFailed) or "DataLoader worker" in str(error):
                raise InputError(f"{task.name}: {reason(error)}") from error
            if not isinstance(error, dist.DistError) and "gloo" not in str(error):
                raise
            raise InputError(
                f"{task.name}: another of the processes has ended, or cannot be reached ({reason(error)}); its own "
                "output says why, and the same command continues"
            ) from error
    return {}


def _start_worker(events: Any, threads: int | None) -> None:
    from imagefolder.environment import use_threads

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    threading.Thread(target=_end_with_parent, daemon=True).start()
    send_to(events.put)
    if threads is not None:
        use_threads(threads)


def _end_with_parent() -> None:
    """Leave no worker behind, however the parent ended."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _run(task: Task) -> str | None:
    """None, or one line on what went wrong; the traceback goes to the worker's stderr unless it is a known error."""
    try:
        task.function(*task.arguments)
    except (InputError, TrainingFailed, OSError) as error:
        return reason(error)
    except Exception as error:
        if "DataLoader worker" in str(error):  # raised wherever this process is when one dies
            return f"a process that reads images has died: {reason(error)}; the same command continues"
        traceback.print_exc()
        return f"{type(error).__name__}: {reason(error)}"
    return None


def _show(events: Any) -> None:
    while True:
        display.handle(events.get())
