"""The losses of a training over its steps: a JSON line per point, and tensorboard."""

from __future__ import annotations

import json
import os
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from imagefolder.distributed import is_main
from imagefolder.files import write_atomically

CURVE = "curve.jsonl"


class Curve:
    """Writes `curve.jsonl` and tensorboard files into a folder; in other processes than the main one, nothing.

    `start`: the step from which training continues; points after it are dropped.
    """

    def __init__(self, folder: Path, start: int) -> None:
        self._file = self._writer = None
        if is_main():
            _trim(folder / CURVE, start)
            self._file = (folder / CURVE).open("a", buffering=1)  # line by line: others watch it
            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start)

    def __enter__(self) -> Curve:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._writer.close()

    def add(self, step: int, values: dict[str, float], learning_rates: dict[str, float]) -> None:
        """A point after `step` steps; the learning rates by name go to tensorboard alone, as everybody knows them."""
        if self._file is not None:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            for name, value in {**values, **learning_rates}.items():
                self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Make sure that the points so far outlive this process and a loss of power."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())


def _trim(path: Path, start: int) -> None:
    """Drop points after the step training continues from, and a line cut short when it was stopped."""
    if path.exists():
        lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("}\n")]
        kept = [line for line in lines if json.loads(line)["step"] <= start]
        write_atomically(path, lambda temporary: temporary.write_text("".join(kept)))
