"""Two processes that work together over Gloo, started by a test."""

from __future__ import annotations

import faulthandler
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp


def run_two_processes(function: Callable[[int, Path], None], folder: Path, seconds: int) -> None:
    """Call `function(rank, folder)` in each; raises what one of them raised.

    A process that has not ended in time prints where it hangs, and exits.
    """
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this torch has no Gloo")
    context = mp.spawn(_watched, args=(function, folder, seconds), nprocs=2, join=False)
    deadline = time.monotonic() + seconds + 60  # starting takes time as well
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < deadline, f"the processes did not end within {seconds + 60} s"
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
            process.join()


def _watched(rank: int, function: Callable[[int, Path], None], folder: Path, seconds: int) -> None:
    faulthandler.dump_traceback_later(seconds, exit=True)
    function(rank, folder)
    faulthandler.cancel_dump_traceback_later()
