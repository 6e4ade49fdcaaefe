"""Processes of an item: they are ended in time, and what they sent before counts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection, wait
from typing import Any
from unittest.mock import patch

LOOK_SECONDS = 0.5  # between looks whether a process has failed


def run_apart(
    context: Any,
    target: Callable[..., None],
    arguments: Sequence[tuple[Any, ...]],
    seconds: float,
    environments: Sequence[Mapping[str, str]] = ({},),
) -> tuple[list[list[Any]], str]:
    """Call `target(send, *arguments[i])` in a process for each i, all at once.

    Args:
        context: of multiprocessing.
        target: calls `send` with whatever is to be returned.
        seconds: after which they are ended, as they are if one of them fails.
        environments: what is added to the environment of each.

    Returns:
        What each sent, and what went wrong in one line, "" if nothing did.
    """
    deadline, processes, sent = time.monotonic() + seconds, [], [list[Any]() for _ in arguments]
    reading: dict[Connection, int] = {}
    for number, (own, environment) in enumerate(zip(arguments, environments, strict=True)):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_call, args=(sender, target, own))
        with patch.dict(os.environ, environment):
            process.start()
        sender.close()
        processes.append(process)
        reading[receiver] = number
    with ExitStack() as stack:
        for process in processes:
            stack.callback(_end, process)
        while reading and time.monotonic() < deadline and not any(process.exitcode for process in processes):
            for receiver in wait(list(reading), timeout=LOOK_SECONDS):
                try:
                    sent[reading[receiver]].append(receiver.recv())
                except EOFError:
                    del reading[receiver]
        for process in processes:
            process.join(0.0 if reading else max(deadline - time.monotonic(), 0.0))
        codes = [process.exitcode for process in processes]
    failed = [number for number, code in enumerate(codes) if code]
    if failed:
        return sent, f"process {failed[0]} ended with exit code {codes[failed[0]]}, see log.txt"
    return sent, f"not done after {seconds:.0f} s" if None in codes else ""


def _call(sender: Connection, target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    target(sender.send, *arguments)
    sender.close()


def _end(process: Any) -> None:
    if process.is_alive():
        process.kill()
    process.join()
