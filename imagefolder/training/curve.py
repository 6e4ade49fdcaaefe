"""The losses of a training over its steps: one JSON line per point, and a logger."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagefolder.config import Logger
from imagefolder.distributed import is_main
from imagefolder.files import write_atomically, writing
from imagefolder.training.loggers import open_log

CURVE = "curve.jsonl"

Watch = Callable[[int, dict[str, float]], None]
"""Gets every point of a curve, in the process that writes it: the step, and the values by name."""


@dataclass(frozen=True)
class Preview:
    """Metrics of a few images while a model trains, for its curve: a training gone wrong is seen early.

    `measure` is called by all processes with the averaged model in eval mode, after every `every` steps, and returns
    values by name. They decide nothing, and their time does not count as training.
    """

    every: int
    measure: Callable[[Any], dict[str, float]]


class Curve:
    """Writes `curve.jsonl` into a folder, and the same to a logger; only rank 0 writes.

    `start`: the step from which training resumes; later points are dropped. Methods raise `OSError`, naming the file,
    if it cannot be written.
    """

    def __init__(self, folder: Path, start: int, logger: Logger = "tensorboard", watch: Watch | None = None) -> None:
        self._path, self._outputs, self._watch = folder / CURVE, None, watch
        if is_main():
            _trim(self._path, start)
            log = open_log(logger, folder, start)
            self._outputs = self._path.open("a", buffering=1), log  # line by line: others watch the file

    def __enter__(self) -> Curve:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for output in self._outputs or ():
            # The error that ended the training matters more than a last point that cannot be written either
            with writing(self._path) if kind is None else contextlib.suppress(OSError):
                output.close()

    def add(self, step: int, values: dict[str, float], learning_rates: dict[str, float]) -> None:
        """Add a point after `step` steps; the learning rates, by name, only go to the logger: they are known."""
        if self._outputs is None:
            return
        lines, log = self._outputs
        with writing(self._path):
            lines.write(json.dumps({"step": step, **values}) + "\n")
            log.add({**values, **learning_rates}, step)
        if self._watch is not None:
            self._watch(step, values)

    def flush(self) -> None:
        """Make sure that the points so far survive the end of this process and a loss of power."""
        if self._outputs is not None:
            with writing(self._path):
                self._outputs[0].flush()
                os.fsync(self._outputs[0].fileno())


def _trim(path: Path, start: int) -> None:
    """Drop points after the step from which training resumes, and lines that are cut short or damaged."""
    if path.exists():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = [line for line in lines if 0 <= _step(line) <= start]
        write_atomically(path, lambda temporary: temporary.write_text("".join(f"{line}\n" for line in kept)))


def _step(line: str) -> int:
    """The step of a point, or -1 if the line is not one."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return -1
    return step if isinstance(step, int) else -1
