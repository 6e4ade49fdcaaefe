"""The process in which items run."""

from __future__ import annotations

import gc
import importlib
import os
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from imagefolder.errors import InputError, reason, shortened
from tests.gpu.item import Item, Needs, Outcome, Result

if TYPE_CHECKING:
    from tests.gpu.lab import Lab


def work(connection: Connection, device: str, output: Path) -> None:
    """Answer with a description of the machine (or a line, if it lacks the device), then run items as they come."""
    os.setsid()  # with what it starts, this process is ended as one group
    with (output / "gpu" / "log.txt").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from tests.gpu.lab import Lab

    try:
        lab = Lab(device, output)
    except InputError as error:
        connection.send(str(error))
        return
    connection.send(lab.machine)
    while True:
        try:
            item, seconds = connection.recv()
        except EOFError:  # nobody is left to ask
            return
        connection.send(run_item(item, seconds, lab))


def run_item(item: Item, seconds: float, lab: Lab) -> Result:
    """What becomes of an item within `seconds`; what it raises is printed, and part of the result."""
    print(f"===== {item.name}", flush=True)
    clock = time.monotonic()
    lab.item, lab.deadline = item.name, clock + seconds
    try:
        module, _, function = item.run.rpartition(".")
        outcome: Outcome = getattr(importlib.import_module(module), function)(lab, **item.arguments)
    except Needs as lacking:
        result = Result("needs", reason=str(lacking), seconds=time.monotonic() - clock)
    except Exception as error:
        traceback.print_exc()
        text = shortened(f"{type(error).__name__}: {reason(error)}")
        result = Result("failed", reason=text, seconds=time.monotonic() - clock)
    else:
        verdict = {None: "measured", True: "met", False: "not met"}[outcome.met]
        found = {"value": outcome.value, "goal": outcome.goal, "numbers": outcome.numbers}
        result = Result(verdict, seconds=time.monotonic() - clock, **found)
    gc.collect()
    lab.empty_cache()
    return result
