"""Batches from worker processes: how many processes, room for their sockets, and errors that arrive unwrapped."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from imagefolder.data.images import BatchSource, Key
from imagefolder.errors import InputError, reason

MOST_WORKERS = 16
LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107  # bytes of the path of a Unix socket
SOCKET = "/pymp-12345678/listener-12345678"  # appended by multiprocessing to the folder for temporary files


def usable_cpus() -> int:
    """Number of CPUs this process may use, at least 1."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def image_workers() -> int:
    """Number of worker processes that decode images.

    Raises:
        InputError: there is no room for their sockets, see `require_room_for_sockets`.
    """
    require_room_for_sockets()
    return min(usable_cpus(), MOST_WORKERS)


def require_room_for_sockets() -> None:
    """Worker processes pass tensors through sockets in the folder for temporary files, and hang if they cannot.

    Raises:
        InputError: there is no such folder, or its path is too long for a socket.
    """
    remedy = "set TMPDIR to a short path such as /tmp"
    try:
        folder = tempfile.gettempdir()
    except OSError as error:
        raise InputError(f"there is no folder for temporary files ({reason(error)}); {remedy}") from None
    length, most = len(os.fsencode(folder)), LONGEST_SOCKET - len(SOCKET)
    if length > most:
        raise InputError(
            f"TMPDIR: the path of the folder for temporary files, {folder}, has {length} bytes, but the sockets of "
            f"worker processes there allow {most}; {remedy}"
        )


class Batches(DataLoader):
    """A loader of the batches that `source.__getitems__` fetches for lists of keys, in `source.workers` processes.

    An `InputError` in a worker, which torch would wrap into its traceback, is raised here as it was raised there.
    """

    def __init__(self, source: BatchSource, keys: Iterable[list[Key]], *, pin_memory: bool = False) -> None:
        if source.workers:
            require_room_for_sockets()
        super().__init__(
            _ErrorsAsItems(source),
            batch_sampler=keys,
            collate_fn=_as_fetched,
            num_workers=source.workers,
            pin_memory=pin_memory,
            worker_init_fn=partial(_end_without, os.getpid()) if source.workers else None,
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:  # pyright: ignore[reportIncompatibleMethodOverride] (torch's is private)
        return _raising(super().__iter__())  # not a generator itself: workers start, and a seed is drawn, at once


def _end_without(parent: int, _worker: int) -> None:
    """End a worker whose parent is already dead; torch checks that only from the worker's first batch on."""
    if os.getppid() != parent:
        os._exit(1)


class _ErrorsAsItems(Dataset):
    """A source whose batches may be the error they ended with."""

    def __init__(self, source: BatchSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, keys: list[Key]) -> tuple[Tensor, Tensor] | InputError:
        try:
            return self.source.__getitems__(keys)
        except InputError as error:
            return error


def _raising(batches: Iterator[tuple[Tensor, Tensor] | InputError]) -> Iterator[tuple[Tensor, Tensor]]:
    try:
        for batch in batches:
            if isinstance(batch, InputError):
                try:
                    raise batch
                finally:  # the error refers to this frame: in a cycle with it, the workers would take 5 s to end
                    del batch, batches
            yield batch
    except (ConnectionError, EOFError, FileNotFoundError) as error:  # its socket is closed or gone
        raise InputError(
            f"a process that reads images died (killed, or out of memory?): {reason(error)}; the same command continues"
        ) from error


def _as_fetched(batch: Any) -> Any:
    return batch
