"""The losses of a training over its steps: a JSON line per point, and tensorboard."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from imagefolder.distributed import is_main
from imagefolder.errors import reason
from imagefolder.files import write_atomically

CURVE = "curve.jsonl"


class Curve:
    """Writes `curve.jsonl` and tensorboard files into a folder; in other processes than the main one, nothing.

    `start`: the step from which training continues; points after it are dropped. Methods raise `OSError`, naming the
    file, where it cannot be written.
    """

    def __init__(self, folder: Path, start: int) -> None:
        self._path, self._file, self._writer = folder / CURVE, None, None
        if is_main():
            _trim(self._path, start)
            self._file = self._path.open("a", buffering=1)  # line by line: others watch it
            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start)

    def __enter__(self) -> Curve:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._file is None:
            return
        # what ended the training says more than that its last point finds no room either
        with contextlib.suppress(OSError) if kind is not None else self._named():
            self._file.close()
        with contextlib.suppress(OSError) if kind is not None else self._named():
            self._writer.close()

    def add(self, step: int, values: dict[str, float], learning_rates: dict[str, float]) -> None:
        """A point after `step` steps; the learning rates by name go to tensorboard alone, as everybody knows them."""
        if self._file is None:
            return
        with self._named():
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            for name, value in {**values, **learning_rates}.items():
                self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Make sure that the points so far outlive this process and a loss of power."""
        if self._file is not None:
            with self._named():
                self._file.flush()
                os.fsync(self._file.fileno())

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(f"{self._path} cannot be written: {reason(error)}") from error


def _trim(path: Path, start: int) -> None:
    """Drop points after the step training continues from, and lines that are none: cut short, or damaged."""
    if path.exists():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = [line for line in lines if 0 <= _step(line) <= start]
        write_atomically(path, lambda temporary: temporary.write_text("".join(f"{line}\n" for line in kept)))


def _step(line: str) -> int:
    """The step of a point, -1 if the line is none."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return -1
    return step if isinstance(step, int) else -1
