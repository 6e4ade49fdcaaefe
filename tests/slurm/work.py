"""Stages for the tests; they need neither torch nor much time."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

_stop = False


class Stopped(RuntimeError):
    """The counting was asked to stop and has saved its state."""


def request_stop() -> None:
    global _stop
    _stop = True


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("done")


def note(path: Path) -> None:
    """Append a line to a file, which counts how often a stage ran."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write("ran\n")


def fail_without(path: Path, then: Path) -> None:
    """Fail until `path` exists."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing")
    note(then)


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def count(folder: Path, steps: int, seconds: float) -> None:
    """A small training: adds up its steps, and saves its state only when asked to stop.

    `trace` gets every step of every attempt, so that missing and repeated steps are seen.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / "state.json"
    rank = int(os.environ.get("RANK", "0"))
    step, total = json.loads(state.read_text()) if state.exists() else (0, 0)
    while step < steps:
        time.sleep(seconds)
        step, total = step + 1, total + step + 1
        if rank == 0:
            with (folder / "trace").open("a") as trace, (folder / "curve.jsonl").open("a") as curve:
                trace.write(f"{step}\n")
                curve.write(json.dumps({"step": step, "loss": 1 / step}) + "\n")
        else:
            with (folder / f"trace{rank}").open("a") as trace:
                trace.write(f"{step}\n")
        if _stop:
            if rank == 0:
                state.write_text(json.dumps([step, total]))
            raise Stopped(f"stopped at step {step}")
    if rank == 0:
        (folder / "result").write_text(str(total))


def stuck(seconds: float) -> None:
    """Wait, and ignore requests to stop."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.1)


def makes_no_progress(folder: Path) -> None:
    """Ask for its own requeue at once, without any step."""
    folder.mkdir(parents=True, exist_ok=True)
    note(folder / "attempts")
    os.kill(os.getpid(), signal.SIGUSR2)
    time.sleep(30)


def write_environment(folder: Path) -> None:
    """Write what one of several processes knows about the others."""
    names = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GREETING")
    folder.mkdir(parents=True, exist_ok=True)
    values = {name: os.environ.get(name) for name in names}
    (folder / f"{os.environ.get('SLURM_PROCID', '0')}.json").write_text(json.dumps(values))


def sleep_and_note(path: Path, seconds: float) -> None:
    time.sleep(seconds)
    note(path)


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def span(path: Path) -> None:
    """Write the start and end times of this stage."""
    began = time.time()
    time.sleep(0.3)
    path.write_text(json.dumps([began, time.time()]))


def speak(words: list[str], seconds: float) -> None:
    for word in words:
        print(word, flush=True)
        time.sleep(seconds)


class Unpickles:
    """Asks for its requeue while it is unpickled for the first time, as a cluster may while torch is being imported."""

    def __init__(self, path: Path, first: Path) -> None:
        self.path, self.first = path, first

    def __setstate__(self, state: dict[str, Path]) -> None:
        self.__dict__ = state
        if "SUBMITIT_FOLDER" in os.environ and not self.first.exists():
            touch(self.first)
            os.kill(os.getpid(), signal.SIGUSR2)
            time.sleep(30)

    def run(self) -> None:
        note(self.path)
