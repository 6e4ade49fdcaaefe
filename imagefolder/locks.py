"""One builder at a time: runs that need the same thing wait for the one that builds it, and then use its result."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from imagefolder.distributed import barrier, gather_objects, is_main
from imagefolder.errors import InputError, reason
from imagefolder.interruption import Stopped, stop_requested
from imagefolder.progress import console

ASK_SECONDS = 0.2
# Newer versions can fall back to a marker file, which nobody removes if its owner is killed
_NO_MARKERS = {"fallback_to_soft": False} if "fallback_to_soft" in signature(FileLock).parameters else {}


def file_lock(file: Path, **options: Any) -> FileLock:
    """A lock that the system releases when its owner ends. Where there are no such locks, acquiring it fails.

    Args:
        options: of `FileLock`, such as the `mode` of the file.
    """
    return FileLock(file, **_NO_MARKERS, **options)


@contextmanager
def building(file: Path, what: str) -> Iterator[None]:
    """Hold the lock `file`: be the only run, on any machine that sees it, that builds, replaces or removes `what`.

    All processes of a run enter together. If another run holds the lock, rank 0 prints that and all wait; check again
    afterwards whether anything is left to build. The lock of a killed run is free.

    Raises:
        InputError: the lock's file cannot be created.
        Stopped: one of the processes was asked to stop while waiting.
    """
    lock, waits = file_lock(file), False
    try:
        while True:
            answer = _acquire(lock, file) if is_main() else None
            answers, stops = zip(*gather_objects((answer, stop_requested())), strict=True)
            if isinstance(answers[0], str):
                raise InputError(answers[0])
            if answers[0]:
                break
            if any(stops):
                raise Stopped(f"{what}: stopped while waiting for another run; the same command continues")
            if not waits and is_main():
                console.print(f"{what}: another run is at work on this; waiting until it has finished ({file})")
            waits = True
            time.sleep(ASK_SECONDS)
        yield
        barrier()  # from here on another run may remove it, so no process may still be reading
    finally:
        lock.release()


def is_held(file: Path) -> bool:
    """Whether any process holds the lock `file` now; False if that cannot be told.

    The lock is taken as a shared one and let go at once. A builder that asks for it in that very moment waits for
    `ASK_SECONDS`.
    """
    import fcntl  # not on Windows

    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)
    return False


def _acquire(lock: FileLock, file: Path) -> bool | str:
    """Whether this process has acquired the lock, or why that is impossible."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        return False
    except (OSError, NotImplementedError) as error:
        return f"{file}: cannot be locked ({reason(error)}); choose an output folder that can be written and locked"
    return True
