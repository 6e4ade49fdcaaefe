"""What a run leaves on disk, in RUN/slurm/, written so that a reader never sees half of it.

graph.json    the stages by name: what each waits for, its kind, where its progress is seen; the profile
graph.pkl     the stages themselves, from which `resubmit` starts what failed; its hash stands in graph.json
jobs.jsonl    a line per submission and per life of a job
jobs/         per job JOB_submission.sh, JOB_RANK_log.out; JOB_RANK_finished.json, or JOB_failed.json with the reason

All is for the owner alone, as the profile may hold secrets. Every JSON document carries its checksum. What is damaged
is said, by name, where it decides something; else it counts for nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import pickle
import platform
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import cloudpickle

from slurm.files import opened, parsed, read, remove_half_written, sealed, write, writing
from slurm.profile import Profile
from slurm.stage import SlurmError, Stage, one_line, ordered

JOBS = {"slurm": r"[0-9]{1,10}(_[0-9]{1,10})?", "local": r"[0-9]{1,9}", "debug": r"DEBUG_[0-9]{1,20}"}
"""what the jobs of each cluster are called; others are damage, and must not become part of a path or a command"""


@dataclass(frozen=True)
class Outcome:
    """How a job ended, by its own account."""

    finished: bool
    reason: str
    time: float
    """seconds since the epoch"""


class Journal:
    """The files of one run. Reading does not fail for missing ones, unless others show that they were there."""

    def __init__(self, run: Path | str) -> None:
        self.run = Path(run).absolute()
        self.folder = self.run / "slurm"
        self.jobs = self.folder / "jobs"
        self._graph, self._pickle = self.folder / "graph.json", self.folder / "graph.pkl"
        self._journal, self._lock = self.folder / "jobs.jsonl", self.folder / "lock"
        self._mine = False

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only one who submits into this run. Raises `SlurmError` if another process does, or none can."""
        try:
            self.run.mkdir(parents=True, exist_ok=True)
            self.folder.mkdir(mode=0o700, exist_ok=True)
            self.jobs.mkdir(mode=0o700, exist_ok=True)
            file = os.fdopen(opened(self._lock, os.O_RDWR | os.O_CREAT), "r+", encoding="utf-8", errors="replace")
        except OSError as error:
            at = "" if error.filename in (None, str(self.run)) else f" ({error.filename})"
            raise SlurmError(f"run folder {self.run} cannot be written: {error.strerror}{at}; choose another") from None
        with file:
            if not _locked(file, fcntl.LOCK_EX):
                raise SlurmError(f"another process ({_content(file)}) works on {self.run}; wait or cancel it")
            with writing(self._lock):
                file.truncate(0)
                file.write(f"{os.getpid()} on {platform.node()}")
                file.flush()
            self._mine = True
            try:
                self._tidy()
                yield
            finally:
                self._mine = False
                with contextlib.suppress(OSError):
                    file.truncate(0)

    def _tidy(self) -> None:
        """Remove what killed submissions have left; nobody else submits now."""
        remove_half_written(self.folder)
        remove_half_written(self.jobs)
        for path in [*self.jobs.glob(".submission_file_*.sh"), *self.jobs.glob("*.pkl")]:
            if not path.is_symlink() and re.fullmatch(r"[.]submission_file_.*|[0-9a-f]{32}[.]pkl", path.name):
                with contextlib.suppress(OSError):
                    path.unlink()

    def holder(self) -> tuple[int, str] | None:
        """Another process that submits into, or locally runs, this run at the moment, and its machine."""
        if self._mine:  # closing the file once more would give the lock back
            return None
        try:
            with os.fdopen(opened(self._lock, os.O_RDONLY), encoding="utf-8", errors="replace") as file:
                content = _content(file)
                if not content or _locked(file, fcntl.LOCK_SH):
                    return None
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SlurmError(f"{self._lock} cannot be read: {error.strerror}") from None
        match = re.fullmatch(r"([1-9][0-9]{0,8}) on (.+)", content)
        if match is None:  # a wrong number would be that of another process
            raise SlurmError(f"{self._lock} is damaged: a process holds it, and it does not say which")
        return int(match[1]), match[2]

    def merged(self, stages: list[Stage]) -> list[Stage]:
        """Stages with those of earlier submissions, which are replaced where they have the same name.

        Raises:
            SlurmError: earlier ones cannot be read, or the graph is impossible.
        """
        given = {stage.name: stage for stage in stages}
        earlier = {} if self.graph()["stages"].keys() <= given.keys() else {s.name: s for s in self.stages()}
        return ordered((earlier | given).values())

    def save_graph(self, stages: list[Stage], profile: Profile) -> None:
        """Add stages to the graph; those of the same name are replaced, others of earlier submissions stay."""
        every = self.merged(stages)
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
        content = cloudpickle.dumps(every)
        # the hash of the intact one before too: whoever is killed in between leaves a graph.pkl that can be read
        before = [digest for digest in self.graph().get("graph.pkl", []) if digest == _sha256(read(self._pickle))]
        graph = {"profile": profile.model_dump(), "stages": known, "graph.pkl": [_sha256(content), *before]}
        write(self._graph, json.dumps(sealed(graph), indent=1).encode())
        write(self._pickle, content)

    def graph(self) -> dict[str, Any]:
        """{"profile": ..., "stages": {name: {"after", "after_any", "kind", "progress", "steps"}}}.

        Raises:
            SlurmError: graph.json is damaged, or missing beside others that need it.
        """
        content = read(self._graph)
        if content is None:
            left = next((path for path in (self._pickle, self._journal) if os.path.lexists(path)), None)
            if left is not None:
                raise SlurmError(f"{self._graph} is missing, though {left} is there: {self._anew}")
            return {"profile": {}, "stages": {}}
        graph = parsed(content, strict=True)
        if graph is None:
            raise SlurmError(f"{self._graph} is damaged (no JSON with its own checksum): {self._anew}")
        return graph

    def stages(self) -> list[Stage]:
        """The stages with their functions, which imports what they need.

        Raises:
            SlurmError: graph.pkl is missing or damaged (then it is not unpickled), or their code has changed.
        """
        graph = self.graph()
        if not graph["stages"]:
            return []
        content = read(self._pickle)
        if content is None or _sha256(content) not in graph["graph.pkl"]:
            what = "is missing" if content is None else "is damaged (its hash is not the one in graph.json)"
            raise SlurmError(f"{self._pickle} {what}: submit all of the run again as before, which writes it anew")
        try:
            return pickle.loads(content)
        except Exception as error:  # whatever importing the stages' code raises
            raise SlurmError(
                f"{self._pickle}: the code of the stages has changed ({type(error).__name__}: {error}); "
                "submit them anew"
            ) from None

    def submitted(self, stage: str, job: str, cluster: str) -> None:
        """Note that a stage's job was handed over."""
        self._append({"event": "submitted", "stage": stage, "job": job, "cluster": cluster, "time": _now()})

    def started(self, stage: str, job: str, **life: Any) -> None:
        """Note that a life of a stage's job begins: restarts, nodes, step, mark."""
        self._append({"event": "started", "stage": stage, "job": job, "time": _now(), **life})

    def lines(self) -> list[dict[str, Any]]:
        """All submissions and lives, in order; damaged lines, or one cut short by a full disk, are left out."""
        return [line for line in self._lines() if line is not None]

    def complaints(self) -> list[str]:
        """What of jobs.jsonl is lost, in a line each."""
        lost = sum(line is None for line in self._lines())
        said = [f"{lost} damaged line(s) of {self._journal} are left out"] if lost else []
        if self.holder() is None and (strays := self.strays()):  # else a submission may be about to name them
            said.append(f"{self._journal} does not name job(s) {', '.join(strays)} of this run")
        return said

    def strays(self) -> list[str]:
        """Jobs that were handed over though no line says so: it is damaged, or its writer was killed before."""
        named = {line["job"] for line in self.lines() if line["event"] == "submitted"}
        found = [path.name.removesuffix("_submitted.pkl") for path in self.jobs.glob("*_submitted.pkl")]
        return sorted(job for job in found if job not in named and re.fullmatch(JOBS["slurm"], job))

    def _lines(self) -> list[dict[str, Any] | None]:
        """The lines of jobs.jsonl, None for those that are not what was written."""
        texts = (read(self._journal) or b"").decode(errors="replace").split("\n")
        lines = [parsed(text) for text in texts if text.strip()]
        return [line if line is not None and _is_event(line) else None for line in lines]

    def finish(self, stage: str, job: str, rank: int, processes: int) -> None:
        """Note that one of a job's processes did its part; the stage is finished when all have."""
        said = sealed({"stage": stage, "processes": processes, "time": _now()})
        write(self._finished(job, rank), json.dumps(said).encode())

    def fail(self, stage: str, job: str, reason: str) -> None:
        """Note why a job failed, in one line. The first of its processes to say so is believed: others follow it.

        Where nothing can be written, the file's emptiness, or the job's log, has to tell.
        """
        said = sealed({"stage": stage, "reason": one_line(" ".join(reason.split())), "time": _now()})
        with contextlib.suppress(OSError):
            file = os.fdopen(opened(self._failed(job), os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb")
            with file:
                file.write(json.dumps(said).encode())

    def forget_outcome(self, job: str) -> None:
        """A job begins another life."""
        for path in [self._failed(job), *self.jobs.glob(f"{job}_*_finished.json")]:
            path.unlink(missing_ok=True)

    def outcome(self, stage: str, job: str) -> Outcome | None:
        """How a stage's job ended, None if it has not, or died without a word."""
        path = self._failed(job)
        failed = _read(path)
        if failed is not None and failed.get("stage", stage) == stage:  # process ids come again
            reason = failed.get("reason")
            return Outcome(False, one_line(reason) if isinstance(reason, str) else _lost(path), _seconds_of(failed))
        first = _read(self._finished(job, 0))
        if first is None or first.get("stage", stage) != stage:
            return None
        processes = first.get("processes")
        if not isinstance(processes, int) or not 0 < processes <= 2**31:
            return Outcome(False, f"{self._finished(job, 0)} is damaged; resubmit runs the stage again", time.time())
        others = (_read(self._finished(job, rank)) for rank in range(1, processes))
        done = all(said is not None and said.get("stage", stage) == stage for said in others)
        return Outcome(True, "", _seconds_of(first)) if done else None

    def _failed(self, job: str) -> Path:
        return self.jobs / f"{job}_failed.json"

    def _finished(self, job: str, rank: int) -> Path:
        return self.jobs / f"{job}_{rank}_finished.json"

    def log(self, job: str, rank: int = 0) -> Path:
        """What a process of a job has printed."""
        return self.jobs / f"{job}_{rank}_log.out"

    def _append(self, line: dict[str, Any]) -> None:
        text = json.dumps(sealed(line)) + "\n"
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
        with writing(self._journal), os.fdopen(opened(self._journal, flags), "rb+") as file:
            with contextlib.suppress(OSError):  # not every shared folder knows locks
                fcntl.lockf(file, fcntl.LOCK_EX)  # appending alone is not safe between machines
            if file.seek(0, os.SEEK_END) and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
                text = "\n" + text  # a full disk has cut the last line short, which must not cost this one too
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())

    @property
    def _anew(self) -> str:
        return (
            f"once no job of the run is left (squeue, ps), move {self.folder} aside and submit the run anew; "
            "its stages go on from what they have saved"
        )


def last_point(folder: Path) -> dict[str, Any]:
    """The last whole line of a folder's curve.jsonl, {} if there is none."""
    try:
        with os.fdopen(opened(folder / "curve.jsonl", os.O_RDONLY), "rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 8192, 0))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return {}
    return next((point for point in map(parsed, reversed(lines)) if point and _is_number(point.get("step"))), {})


def progress_mark(folder: Path | None) -> list[float] | None:
    """What changes when a stage gets on: the last step of its curve, and when its state was last saved."""
    if folder is None:
        return None
    saved = [0.0]
    for path in folder.glob("state*"):
        with contextlib.suppress(FileNotFoundError):  # replaced by the next one just now
            saved.append(path.stat().st_mtime)
    return [last_point(folder).get("step", 0), max(saved)]


def seconds(text: str) -> float:
    """Seconds since the epoch of a time in the journal."""
    return datetime.fromisoformat(text).timestamp()


def _seconds_of(said: dict[str, Any]) -> float:
    return seconds(said["time"]) if _is_time(said.get("time")) else time.time()


def _lost(path: Path) -> str:
    free = ""
    with contextlib.suppress(OSError):
        free = f", where {shutil.disk_usage(path.parent).free:,} bytes are free"
    return f"its reason could not be written to {path.parent}{free}, or {path.name} is damaged"


def _read(path: Path) -> dict[str, Any] | None:
    """A small JSON file, {} if it cannot be read, None if there is none."""
    try:
        content = read(path)
    except SlurmError:
        return {}
    return None if content is None else parsed(content) or {}


def _is_event(line: dict[str, Any]) -> bool:
    """Whether a line has all that an event needs, so that nobody else has to ask."""
    stage, job, cluster = line.get("stage"), line.get("job"), line.get("cluster")
    if not isinstance(stage, str) or not isinstance(job, str) or not _is_time(line.get("time")):
        return False
    if line.get("event") == "submitted":
        return isinstance(cluster, str) and cluster in JOBS and re.fullmatch(JOBS[cluster], job) is not None
    step, mark = line.get("step"), line.get("mark")
    return (
        line.get("event") == "started"
        and any(re.fullmatch(pattern, job) for pattern in JOBS.values())
        and isinstance(line.get("restarts"), int)
        and isinstance(line.get("nodes"), str)
        and (step is None or _is_number(step))
        and (mark is None or (isinstance(mark, list) and len(mark) == 2 and all(map(_is_number, mark))))
    )


def _is_time(value: Any) -> bool:
    try:
        return isinstance(value, str) and math.isfinite(seconds(value))
    except (ValueError, ArithmeticError, OSError):  # no time, or one outside of what the system's clock knows
        return False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < 2**63


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _sha256(content: bytes | None) -> str:
    return "" if content is None else hashlib.sha256(content).hexdigest()


def _locked(file: IO[str], how: int) -> bool:
    """Lock a file; False if another process has done so. Where a file system has no locks, nobody has."""
    try:
        fcntl.lockf(file, how | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        pass
    return True


def _content(file: IO[str]) -> str:
    file.seek(0)
    return file.read(1000).strip()
