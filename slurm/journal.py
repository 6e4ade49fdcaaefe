"""What a run leaves on disk, in RUN/slurm/, written so that a reader never sees half of it.

graph.json    the stages by name: what each waits for, its kind, where its progress is seen; the profile
graph.pkl     the stages themselves, from which `resubmit` starts what failed
jobs.jsonl    a line per submission and per life of a job
jobs/         per job JOB_submission.sh, JOB_RANK_log.out; JOB_RANK_finished.json, or JOB_failed.json with the reason
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pickle
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import cloudpickle

from slurm.profile import Profile
from slurm.stage import SlurmError, Stage, ordered


@dataclass(frozen=True)
class Outcome:
    """How a job ended, by its own account."""

    finished: bool
    reason: str
    time: float
    """seconds since the epoch"""


class Journal:
    """The files of one run. Reading never fails for a missing one."""

    def __init__(self, run: Path | str) -> None:
        self.run = Path(run).absolute()
        self.folder = self.run / "slurm"
        self.jobs = self.folder / "jobs"
        self._mine = False

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only one who submits into this run. Raises `SlurmError` if another process does, or none can."""
        try:
            self.jobs.mkdir(parents=True, exist_ok=True)
            file = (self.folder / "lock").open("a+")
        except OSError as error:
            raise SlurmError(f"run folder {self.run} cannot be written: {error.strerror}; choose another") from None
        with file:
            if not _locked(file):
                raise SlurmError(f"another process ({_content(file)}) works on {self.run}; wait or cancel it")
            file.truncate(0)
            file.write(f"{os.getpid()} on {platform.node()}")
            file.flush()
            self._mine = True
            try:
                yield
            finally:
                self._mine = False
                file.truncate(0)

    def holder(self) -> tuple[int, str] | None:
        """Another process that submits into, or locally runs, this run at the moment, and its machine."""
        if self._mine:  # closing the file once more would give the lock back
            return None
        try:
            with (self.folder / "lock").open("r+") as file:
                pid, _, host = _content(file).partition(" on ")
                return None if _locked(file) or not pid else (int(pid), host)
        except FileNotFoundError:
            return None

    def save_graph(self, stages: list[Stage], profile: Profile) -> None:
        """Add stages to the graph; those of the same name are replaced, others of earlier submissions stay."""
        kept = {stage.name: stage for stage in self.stages()} | {stage.name: stage for stage in stages}
        every = ordered(kept.values())
        known = {
            stage.name: {
                "after": stage.after,
                "after_any": stage.after_any,
                "kind": stage.kind,
                "progress": str(stage.progress.absolute()) if stage.progress else None,
                "steps": stage.steps,
            }
            for stage in every
        }
        graph = {"profile": profile.model_dump(), "stages": known}
        _write(self.folder / "graph.pkl", lambda path: path.write_bytes(cloudpickle.dumps(every)))
        _write(self.folder / "graph.json", lambda path: path.write_text(json.dumps(graph, indent=1)))

    def graph(self) -> dict[str, Any]:
        """{"profile": ..., "stages": {name: {"after", "after_any", "kind", "progress", "steps"}}}."""
        try:
            return json.loads((self.folder / "graph.json").read_text())
        except FileNotFoundError:
            return {"profile": {}, "stages": {}}

    def stages(self) -> list[Stage]:
        """The stages with their functions, which imports what they need."""
        try:
            return pickle.loads((self.folder / "graph.pkl").read_bytes())
        except FileNotFoundError:
            return []
        except (ImportError, AttributeError) as error:
            raise SlurmError(f"{self.folder}: the code of the stages has changed ({error}); submit them anew") from None

    def submitted(self, stage: str, job: str, cluster: str) -> None:
        """Note that a stage's job was handed over."""
        self._append({"event": "submitted", "stage": stage, "job": job, "cluster": cluster, "time": _now()})

    def started(self, stage: str, job: str, **life: Any) -> None:
        """Note that a life of a stage's job begins: restarts, nodes, step, mark."""
        self._append({"event": "started", "stage": stage, "job": job, "time": _now(), **life})

    def lines(self) -> list[dict[str, Any]]:
        """All submissions and lives, in order; a line cut short by a full disk is left out."""
        try:
            text = (self.folder / "jobs.jsonl").read_text()
        except FileNotFoundError:
            return []
        return [line for line in map(_parsed, text.splitlines()) if line is not None]

    def finish(self, stage: str, job: str, rank: int, processes: int) -> None:
        """Note that one of a job's processes did its part; the stage is finished when all have."""
        text = json.dumps({"stage": stage, "processes": processes, "time": _now()})
        _write(self.jobs / f"{job}_{rank}_finished.json", lambda path: path.write_text(text))

    def fail(self, stage: str, job: str, reason: str) -> None:
        """Note why a job failed, in one line. The first of its processes to say so is believed: others follow it."""
        with contextlib.suppress(FileExistsError), (self.jobs / f"{job}_failed.json").open("x") as file:
            json.dump({"stage": stage, "reason": " ".join(reason.split()), "time": _now()}, file)

    def forget_outcome(self, job: str) -> None:
        """A job begins another life."""
        for path in [self.jobs / f"{job}_failed.json", *self.jobs.glob(f"{job}_*_finished.json")]:
            path.unlink(missing_ok=True)

    def outcome(self, stage: str, job: str) -> Outcome | None:
        """How a stage's job ended, None if it has not, or died without a word."""
        failed = _read(self.jobs / f"{job}_failed.json")
        if failed is not None and failed.get("stage", stage) == stage:  # process ids come again
            free = shutil.disk_usage(self.jobs).free
            lost = f"its reason could not be written to {self.jobs}, where {free:,} bytes are free"
            return Outcome(False, failed.get("reason", lost), _seconds_of(failed))
        first = _read(self.jobs / f"{job}_0_finished.json") or {"stage": None}
        if first["stage"] != stage:
            return None
        others = [_read(self.jobs / f"{job}_{rank}_finished.json") for rank in range(1, first["processes"])]
        return None if None in others else Outcome(True, "", _seconds_of(first))

    def log(self, job: str, rank: int = 0) -> Path:
        """What a process of a job has printed."""
        return self.jobs / f"{job}_{rank}_log.out"

    def _append(self, line: dict[str, Any]) -> None:
        with (self.folder / "jobs.jsonl").open("a") as file:
            with contextlib.suppress(OSError):  # not every shared folder knows locks
                fcntl.lockf(file, fcntl.LOCK_EX)  # appending alone is not safe between machines
            file.seek(0, os.SEEK_END)
            file.write(json.dumps(line) + "\n")
            file.flush()


def last_point(folder: Path) -> dict[str, float]:
    """The last whole line of a folder's curve.jsonl, {} if there is none."""
    try:
        with (folder / "curve.jsonl").open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 8192, 0))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return {}
    return next((point for point in map(_parsed, reversed(lines)) if point and "step" in point), {})


def progress_mark(folder: Path | None) -> list[float] | None:
    """What changes when a stage gets on: the last step of its curve, and when its state was last saved."""
    if folder is None:
        return None
    saved = [path.stat().st_mtime for path in folder.glob("state*")]
    return [last_point(folder).get("step", 0), max(saved, default=0.0)]


def seconds(text: str) -> float:
    """Seconds since the epoch of a time in the journal."""
    return datetime.fromisoformat(text).timestamp()


def _seconds_of(said: dict[str, Any]) -> float:
    return seconds(said["time"]) if "time" in said else time.time()


def _read(path: Path) -> dict[str, Any] | None:
    """A small JSON file, {} if it cannot be read, None if there is none."""
    try:
        return _parsed(path.read_text()) or {}
    except FileNotFoundError:
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _locked(file: IO[str]) -> bool:
    """Lock a file; False if another process has done so. Where a file system has no locks, nobody has."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        pass
    return True


def _content(file: IO[str]) -> str:
    file.seek(0)
    return file.read().strip()


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
