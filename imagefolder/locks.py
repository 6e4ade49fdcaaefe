"""One builder at a time: runs that need the same thing wait for the one that builds it, and then use its result."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from imagefolder.distributed import gather_objects, is_main
from imagefolder.errors import InputError, reason
from imagefolder.training.progress import console

ASK_SECONDS = 0.2


@contextmanager
def building(file: Path, what: str) -> Iterator[None]:
    """Hold the lock `file`: be the only run, on any machine that sees it, that builds, replaces or removes `what`.

    All processes of a run enter together. Where another run is at work, this one says so and waits: look again
    afterwards whether anything is left to build. A lock whose owner was killed is free.

    Raises:
        InputError: the lock's file cannot be made.
    """
    lock = FileLock(file)
    waits = False
    while True:
        answer = _acquire(lock, file) if is_main() else None
        answer = gather_objects(answer)[0]
        if isinstance(answer, str):
            raise InputError(answer)
        if answer:
            break
        if not waits and is_main():
            console.print(f"{what}: another run is at work on this; waiting until it has finished")
        waits = True
        time.sleep(ASK_SECONDS)
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, file: Path) -> bool | str:
    """Whether this process has the lock now, or why it cannot be had."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        return False
    except (OSError, NotImplementedError) as error:
        return f"{file}: cannot be locked ({reason(error)}); choose an output folder that can be written and locked"
    return True
