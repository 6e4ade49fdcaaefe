"""What runs are doing right now, read from what they leave in the output folder while they work.

A stage is running while the lock of what it builds is held, on any machine that sees the folder; a note beside the lock
says for which row. Trainings write their losses to `curve.jsonl`, token caches what is on disk to `done-*.json`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from imagefolder.errors import InputError, one_line
from imagefolder.files import read_json
from imagefolder.locks import is_held

Stage = Literal[
    "training proxy network", "training tokenizer", "encoding training images", "training generator",
    "measuring training images", "evaluation", "timing",
]  # fmt: skip
TRAININGS: dict[str, Stage] = {"tokenizers": "training tokenizer", "generators": "training generator"}
FINISHED = ("config.json", "model.safetensors")  # of a model; both are there once its training is done
TAIL = 8192  # bytes at the end of a curve, more than its last point has


@dataclass(frozen=True)
class Running:
    """One stage at work, or a training that was interrupted. What is not known is "" or None."""

    path: str
    """what is being built, relative to the output folder"""
    stage: Stage
    running: bool
    """False: no process works on it; the same command continues"""
    table: str = ""
    row: str = ""
    """the label of the row that it is built for; other rows may share it"""
    seed: int | None = None
    place: str = ""
    """scale, budget and data set"""
    step: int | None = None
    steps: int | None = None
    values: tuple[tuple[str, float], ...] = ()
    """losses and previews of the last point, by name"""
    changed: float | None = None
    """when the last step was written, in seconds since the epoch"""
    started: float | None = None
    process: str = ""
    """host and id of the process that holds the lock"""
    left: float | None = None
    """seconds"""

    def plain(self) -> dict[str, Any]:
        """As JSON types, with the seconds that it has been at work."""
        now, shown = time.time(), asdict(self)
        return {**shown, "elapsed": None if self.started is None else max(now - self.started, 0.0)}


class Runs:
    """What is running in an output folder. The pace of a training is known from the second look at it that finds a new
    step, because a resumed curve does not say when its steps were taken."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._first: dict[str, tuple[float, int]] = {}

    def now(self) -> list[Running]:
        """Stages at work, then trainings that were interrupted. Files that cannot be read are passed over."""
        found = [replace(each, left=self._left(each)) for each in _found(self._output)]
        return sorted(found, key=lambda each: (not each.running, each.path))

    def _left(self, found: Running) -> float | None:
        if not found.running or found.step is None or found.steps is None or found.changed is None:
            self._first.pop(found.path, None)
            return None
        when, step = self._first.setdefault(found.path, (found.changed, found.step))
        if found.step < step:  # started again, from an earlier state
            self._first[found.path] = found.changed, found.step
            return None
        if found.step == step or found.changed <= when:
            return None
        pace = (found.changed - when) / (found.step - step)
        return max(pace * (found.steps - found.step) - max(time.time() - found.changed, 0.0), 0.0)


def _found(output: Path) -> list[Running]:
    held = {lock.stem for lock in (output / "locks").glob("*.lock") if is_held(lock)}
    notes = {name: _read(output / "locks" / f"{name}.json") for name in held}
    models, caches = list(_trainings(output, held, notes)), list(_caches(output))
    others = [stage for name in sorted(held) if (stage := _other(name, notes[name])) is not None]
    # Whoever evaluates may first have to train: of the locks that one process holds, the latest tells what it does
    latest: dict[str, float] = {}
    for each in (*models, *others):
        if each.running and each.process:
            latest[each.process] = max(latest.get(each.process, 0.0), each.started or 0.0)
    shown = [each for each in (*models, *others) if (each.started or 0.0) >= latest.get(each.process, 0.0)]
    return [*shown, *caches]


def _trainings(output: Path, held: set[str], notes: dict[str, dict[str, Any]]) -> Iterator[Running]:
    """Models that are not finished."""
    for settings in sorted(output.glob("*/seed*/*/*/settings.json")):
        folder, inside = settings.parent, settings.parent.relative_to(output)
        stage, name = TRAININGS.get(folder.parent.name), "-".join(inside.parts)
        if stage is None or all((folder / file).exists() for file in FINISHED):
            continue
        training = _read(settings).get("training")
        point, changed = _last_point(folder / "curve.jsonl")
        step = point.pop("step", None)
        if name not in held and step is None:
            continue
        yield replace(
            _noted(inside, stage, notes.get(name, {})),
            running=name in held,
            step=None if step is None else int(step),
            steps=_count(training.get("steps")) if isinstance(training, dict) else None,
            values=tuple((one_line(key), value) for key, value in point.items()),
            changed=changed,
        )


def _caches(output: Path) -> Iterator[Running]:
    """Token caches that are being encoded."""
    for unfinished in sorted(output.glob("*/seed*/tokenizers/*/tokens/*/unfinished.json")):
        folder, plan = unfinished.parent, _read(unfinished)
        if not is_held(folder / ".lock"):
            continue
        done, changed = 0, None
        for document in folder.glob("done-*.json"):
            runs = _read(document).get("runs")
            for run in runs if isinstance(runs, list) else ():
                if isinstance(run, dict):
                    done += (_count(run.get("stop")) or 0) - (_count(run.get("start")) or 0)
                    changed = max(changed or 0.0, _modified(document) or 0.0)
        shape, batch = plan.get("shape"), _count(plan.get("batch_size"))
        views, images = map(_count, shape[:2]) if isinstance(shape, list) and len(shape) > 1 else (None, None)
        total = views * images if views is not None and images is not None else None
        step = None if total is None or batch is None else min(max(done, 0) * batch, total)
        cache = _noted(folder.relative_to(output), "encoding training images", {})
        yield replace(cache, running=True, step=step, steps=total, changed=changed)


def _other(name: str, note: dict[str, Any]) -> Running | None:
    """A stage without a curve: `name` is that of its lock."""
    if name.startswith("records-"):
        stage: Stage = "timing" if note.get("stage") == "timing" else "evaluation"
    elif name.startswith("references-"):
        stage = "measuring training images"
    elif "-proxies-" in name:
        stage = "training proxy network"
    else:
        return None  # a model, or a lock that is not of a stage
    return replace(_noted(Path(name), stage, note), running=True)


def _noted(inside: Path, stage: Stage, note: dict[str, Any]) -> Running:
    """What the note beside a lock says, as far as it is there and intact; seed and data otherwise by the path."""
    texts = {key: one_line(value) for key, value in note.items() if isinstance(value, str)}
    scale, budget, dataset = (texts.get(key, "") for key in ("scale", "budget", "dataset"))
    place = f"{scale}{f' [{budget}]' if budget else ''} · {dataset}" if scale and dataset else ""
    seed, started, pid = _count(note.get("seed")), note.get("started"), note.get("pid")
    if seed is None and len(inside.parts) > 1 and (digits := inside.parts[1].removeprefix("seed")).isdecimal():
        seed = int(digits)
    return Running(
        path=texts.get("path") or one_line(inside),
        stage=stage,
        running=False,
        table=texts.get("table", ""),
        row=texts.get("label", ""),
        seed=seed,
        place=place or (one_line(inside.parts[0]) if len(inside.parts) > 1 else ""),
        started=started if _is_number(started) else None,
        process=f"{texts.get('host', '')} {pid}" if isinstance(pid, int) else "",
    )


def _last_point(path: Path) -> tuple[dict[str, float], float | None]:
    """The last complete line of a curve, without values that are no finite numbers, and when it was written."""
    try:
        with path.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - TAIL, 0))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return {}, None
    for line in reversed(lines):
        try:
            point = json.loads(line)
        except (ValueError, RecursionError):  # half a line
            continue
        if isinstance(point, dict) and _count(point.get("step")) is not None:
            return {key: value for key, value in point.items() if _is_number(value)}, _modified(path)
    return {}, None


def _modified(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _is_number(value: Any) -> bool:
    """Whether it is a number that JSON can hold."""
    return isinstance(value, int | float) and abs(value) < 1e300


def _count(value: Any) -> int | None:
    """A number of steps or images, if it is one that a page can show."""
    return value if type(value) is int and 0 <= value < 2**53 else None


def _read(path: Path) -> dict[str, Any]:
    """A JSON document; {} if it is missing or damaged."""
    try:
        return read_json(path)
    except InputError:
        return {}
