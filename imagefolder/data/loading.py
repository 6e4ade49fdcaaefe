"""Batches from worker processes: how many, where they need room, and errors that arrive as they were raised."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from imagefolder.data.images import Key
from imagefolder.errors import InputError, reason

MOST_WORKERS = 16
LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107  # bytes of a Unix socket's path
SOCKET = "/pymp-12345678/listener-12345678"  # what multiprocessing appends to the folder for temporary files


def usable_cpus() -> int:
    """Number of processors this process may use, at least 1."""
    if hasattr(os, "sched_getaffinity"):  # macOS has none
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def image_workers() -> int:
    """Number of worker processes that decode images.

    Raises:
        InputError: there is no place for their sockets.
    """
    require_room_for_sockets()
    return min(usable_cpus(), MOST_WORKERS)


def require_room_for_sockets() -> None:
    """Worker processes hand tensors over through sockets below the folder for temporary files, and hang without.

    Raises:
        InputError: its path is too long for a socket, or there is none.
    """
    remedy = "set TMPDIR to a short path such as /tmp"
    try:
        folder = tempfile.gettempdir()
    except OSError as error:
        raise InputError(f"there is no folder for temporary files ({reason(error)}); {remedy}") from None
    length, most = len(os.fsencode(folder)), LONGEST_SOCKET - len(SOCKET)
    if length > most:
        raise InputError(
            f"TMPDIR: the path of the folder for temporary files, {folder}, has {length} bytes, but worker processes "
            f"need sockets there, which allow {most}; {remedy}"
        )


class Batches(DataLoader):
    """A loader of the batches that `images.__getitems__` fetches for lists of keys, in `images.workers` processes.

    An `InputError` of a worker, which torch would wrap into its traceback, is raised here as it was raised there.
    """

    def __init__(self, images: Dataset, keys: Iterable[list[Key]], **options: Any) -> None:
        if images.workers:
            require_room_for_sockets()
            options["worker_init_fn"] = partial(_end_without, os.getpid())
        super().__init__(
            _ErrorsAsItems(images), batch_sampler=keys, collate_fn=_as_fetched, num_workers=images.workers, **options
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return _raising(super().__iter__())  # no generator itself: workers start, and a seed is drawn, at once


def _end_without(parent: int, _worker: int) -> None:
    """End a worker whose parent has died already; torch watches for that only from the worker's first batch on."""
    if os.getppid() != parent:
        os._exit(1)


class _ErrorsAsItems(Dataset):
    """Images of which a batch may be the error that it ended with."""

    def __init__(self, images: Dataset) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, keys: list[Key]) -> tuple[Tensor, Tensor] | InputError:
        try:
            return self.images.__getitems__(keys)
        except InputError as error:
            return error


def _raising(batches: Iterator[tuple[Tensor, Tensor] | InputError]) -> Iterator[tuple[Tensor, Tensor]]:
    try:
        for batch in batches:
            if isinstance(batch, InputError):
                try:
                    raise batch
                finally:  # the error knows this frame: in a circle with it, the workers would take 5 s to end
                    del batch, batches
            yield batch
    except (ConnectionError, EOFError, FileNotFoundError) as error:  # its socket is closed, or gone
        raise InputError(
            f"a process that reads images has died (killed, or out of memory?): {reason(error)}; the same command "
            "continues"
        ) from error


def _as_fetched(batch: tuple[Tensor, Tensor] | InputError) -> tuple[Tensor, Tensor] | InputError:
    return batch
