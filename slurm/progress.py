"""How far a stage has come, read from the files it writes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from slurm.files import opened, parsed


def last_point(folder: Path) -> dict[str, Any]:
    """The last complete line of a folder's curve.jsonl, {} if there is none."""
    try:
        with os.fdopen(opened(folder / "curve.jsonl", os.O_RDONLY), "rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 8192, 0))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return {}
    return next((point for point in map(parsed, reversed(lines)) if point and _is_step(point.get("step"))), {})


def progress_mark(folder: Path | None) -> tuple[float, float] | None:
    """What changes while a stage makes progress: the last step of its curve, and when its state was last saved."""
    if folder is None:
        return None
    saved = [0.0]
    for path in folder.glob("state*"):
        with contextlib.suppress(FileNotFoundError):  # just replaced by the next one
            saved.append(path.stat().st_mtime)
    return last_point(folder).get("step", 0), max(saved)


def _is_step(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < 2**63
