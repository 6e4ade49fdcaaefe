"""The files of a run, in RUN/slurm/, written so that a reader never sees half of one.

graph.json    the stages by name: what each waits for, its kind, where its progress is read; the profile
graph.pkl     the stages themselves, from which `resubmit` starts what failed; graph.json holds its hash
jobs.jsonl    a line per submission, and per attempt of a job
jobs/         per job JOB_submission.sh, JOB_RANK_log.out; JOB_RANK_finished.json, or JOB_failed.json with the reason
holder.json   which process holds the lock

Everything is private to the owner, as the profile may hold secrets. Every JSON document carries its checksum. Damage
is reported, with the file's name, where it affects a decision, and ignored elsewhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
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
from typing import Any

import cloudpickle
from filelock import Timeout
from pydantic import ValidationError

from imagefolder.errors import one_line
from imagefolder.files import remove_half_written, sealed, write_atomically, write_json, writing
from imagefolder.locks import file_lock
from slurm.events import JOBS, Holder, JobEvent, RunGraph, StageEntry, Started, Submitted
from slurm.files import PRIVATE, opened, parsed, read, umask
from slurm.profile import Profile
from slurm.stage import SlurmError, Stage, ordered

APPEND_SECONDS = 60.0
"""for the lock of jobs.jsonl, which nobody holds for long"""


@dataclass(frozen=True)
class JobOutcome:
    """How a job ended, as its own processes recorded it."""

    finished: bool
    reason: str
    time: float
    """seconds since the epoch"""


class Journal:
    """The files of one run. Reading tolerates missing files, unless other files show that they existed."""

    def __init__(self, run: Path | str) -> None:
        self.run = Path(run).absolute()
        self.folder = self.run / "slurm"
        self.jobs = self.folder / "jobs"
        self._graph, self._pickle = self.folder / "graph.json", self.folder / "graph.pkl"
        self._journal, self._holder = self.folder / "jobs.jsonl", self.folder / "holder.json"
        self._lock = file_lock(self.folder / "lock", mode=0o600)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only process that submits into this run. Raises `SlurmError` if another one does, or none can."""
        try:
            self.run.mkdir(parents=True, exist_ok=True)
            self.folder.mkdir(mode=0o700, exist_ok=True)
            self.jobs.mkdir(mode=0o700, exist_ok=True)
            os.close(opened(Path(self._lock.lock_file), os.O_RDWR | os.O_CREAT))  # a pipe could be locked too
            self._lock.acquire(timeout=0)
        except Timeout:
            holder = _parsed_holder(self._holder)
            who = f"{holder.pid} on {holder.host}" if holder else "unknown"
            raise SlurmError(f"another process ({who}) works on {self.run}; wait or cancel it") from None
        except (OSError, NotImplementedError) as error:
            path = getattr(error, "filename", None)
            at = "" if path in (None, str(self.run)) else f" ({path})"
            why = getattr(error, "strerror", None) or error
            raise SlurmError(f"run folder {self.run} cannot be written: {why}{at}; choose another") from None
        try:
            self._write(self._holder, Holder(pid=os.getpid(), host=platform.node()).model_dump())
            self._tidy()
            yield
        finally:
            with contextlib.suppress(OSError):
                self._holder.unlink(missing_ok=True)
            self._lock.release()

    def _tidy(self) -> None:
        """Remove what killed submissions left behind; nobody else submits now."""
        for folder in (self.folder, self.jobs):
            with contextlib.suppress(OSError):
                remove_half_written(folder)
        for path in [*self.jobs.glob(".submission_file_*.sh"), *self.jobs.glob("*.pkl")]:
            if not path.is_symlink() and re.fullmatch(r"[.]submission_file_.*|[0-9a-f]{32}[.]pkl", path.name):
                with contextlib.suppress(OSError):
                    path.unlink()

    def holder(self) -> Holder | None:
        """Another process that is submitting into this run, or running its stages on this or another machine."""
        if self._lock.is_locked or not os.path.lexists(self._holder):
            return None
        try:
            with self._lock.acquire(timeout=0):
                return None  # whoever wrote holder.json was killed
        except Timeout:
            pass
        except (OSError, NotImplementedError) as error:
            raise SlurmError(f"{self._lock.lock_file} cannot be locked: {error}") from None
        holder = _parsed_holder(self._holder)
        if holder is None and os.path.lexists(self._holder):  # a wrong number would be another process's
            raise SlurmError(f"{self._holder} is damaged: a process works on the run, but not known which")
        return holder

    def merged(self, stages: list[Stage]) -> list[Stage]:
        """Stages together with those of earlier submissions, which are replaced where they have the same name.

        Raises:
            SlurmError: earlier ones cannot be read, or the graph is impossible.
        """
        given = {stage.name: stage for stage in stages}
        earlier = {} if self.graph().stages.keys() <= given.keys() else {s.name: s for s in self.stages()}
        return ordered((earlier | given).values())

    def save_graph(self, stages: list[Stage], profile: Profile) -> None:
        """Add stages to the graph: they replace those of the same name; others of earlier submissions stay."""
        merged = self.merged(stages)
        content = cloudpickle.dumps(merged)
        # also the hash of the file as it is: a process killed between the two writes leaves a readable graph.pkl
        before = [digest for digest in self.graph().pickles if digest == _sha256(read(self._pickle))]
        entries = {stage.name: StageEntry.of(stage).model_dump(mode="json") for stage in merged}
        document = {"profile": profile.model_dump(), "stages": entries, "graph.pkl": [_sha256(content), *before]}
        self._write(self._graph, document)
        with umask(PRIVATE):
            write_atomically(self._pickle, lambda temporary: temporary.write_bytes(content))

    def graph(self) -> RunGraph:
        """The graph of all submissions into this run.

        Raises:
            SlurmError: graph.json is damaged, or missing although other files need it.
        """
        remedy = (
            f"once no job of the run is left (squeue, ps), move {self.folder} aside and submit the run again; "
            "its stages resume from what they have saved"
        )
        content = read(self._graph)
        if content is None:
            left = next((path for path in (self._pickle, self._journal) if os.path.lexists(path)), None)
            if left is not None:
                raise SlurmError(f"{self._graph} is missing, although {left} exists: {remedy}")
            return RunGraph.model_validate({"profile": {}, "stages": {}, "graph.pkl": ()})
        try:
            return RunGraph.model_validate(parsed(content))
        except ValidationError:
            raise SlurmError(f"{self._graph} is damaged (not JSON with its checksum): {remedy}") from None

    def stages(self) -> list[Stage]:
        """The stages with their functions, which imports what they need.

        Raises:
            SlurmError: graph.pkl is missing or damaged (then it is not unpickled), or the code has changed.
        """
        graph = self.graph()
        if not graph.stages:
            return []
        content = read(self._pickle)
        if content is None or _sha256(content) not in graph.pickles:
            what = "is missing" if content is None else "is damaged (its hash is not the one in graph.json)"
            raise SlurmError(f"{self._pickle} {what}: repeat the submission of the whole run, which rewrites it")
        try:
            return pickle.loads(content)
        except Exception as error:  # whatever importing the stages' code raises
            raise SlurmError(
                f"{self._pickle}: the code of the stages has changed ({type(error).__name__}: {error}); "
                "repeat the submission of the run"
            ) from None

    def append(self, event: Submitted | Started) -> None:
        """Record an event. Raises `OSError` if it cannot be written."""
        text = json.dumps(sealed(event.model_dump(mode="json"))) + "\n"
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
        with writing(self._journal), contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError, NotImplementedError):  # not every shared folder supports locks
                # appending alone is not safe between machines
                stack.enter_context(file_lock(self.folder / "jobs.lock", mode=0o600).acquire(timeout=APPEND_SECONDS))
            file = stack.enter_context(os.fdopen(opened(self._journal, flags), "rb+"))
            if file.seek(0, os.SEEK_END) and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
                text = "\n" + text  # a full disk cut the last line short, which must not cost this one too
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())

    def events(self) -> list[Submitted | Started]:
        """All submissions and attempts, in order; damaged lines, or one cut short by a full disk, are left out."""
        return [event for event in self._events() if event is not None]

    def complaints(self) -> list[str]:
        """What is lost of jobs.jsonl, one line each."""
        lost = sum(event is None for event in self._events())
        found = [f"{lost} damaged line(s) of {self._journal} are left out"] if lost else []
        if self.holder() is None and (strays := self.strays()):  # else a submission may be about to record them
            found.append(f"{self._journal} does not name job(s) {', '.join(strays)} of this run")
        return found

    def strays(self) -> list[str]:
        """Jobs that were submitted without a line of jobs.jsonl: it is damaged, or its writer was killed before."""
        named = {event.job for event in self.events() if isinstance(event, Submitted)}
        found = [path.name.removesuffix("_submitted.pkl") for path in self.jobs.glob("*_submitted.pkl")]
        return sorted(job for job in found if job not in named and re.fullmatch(JOBS["slurm"], job))

    def _events(self) -> list[Submitted | Started | None]:
        """The lines of jobs.jsonl, None for those that are not as written."""
        texts = (read(self._journal) or b"").decode(errors="replace").split("\n")
        return [_event(text) for text in texts if text.strip()]

    def finish(self, stage: str, job: str, rank: int, processes: int) -> None:
        """Record that one of a job's processes has finished; the stage has once all of them have."""
        self._write(self._finished(job, rank), {"stage": stage, "processes": processes, "time": _now()})

    def fail(self, stage: str, job: str, reason: str) -> None:
        """Record why a job failed, in one line. The first of its processes counts: the others fail because of it.

        If nothing can be written, the empty file, or the job's log, has to tell.
        """
        document = sealed({"stage": stage, "reason": one_line(" ".join(reason.split())), "time": _now()})
        with contextlib.suppress(OSError):
            file = os.fdopen(opened(self._failed(job), os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb")
            with file:
                file.write(json.dumps(document).encode())

    def forget_outcome(self, job: str) -> None:
        """A job starts again."""
        for path in [self._failed(job), *self.jobs.glob(f"{job}_*_finished.json")]:
            path.unlink(missing_ok=True)

    def outcome(self, stage: str, job: str) -> JobOutcome | None:
        """How a stage's job ended; None if it has not, or ended without recording it."""
        path = self._failed(job)
        failed = _read(path)
        if failed is not None and failed.get("stage", stage) == stage:  # process ids are reused
            reason = failed.get("reason")
            return JobOutcome(False, one_line(reason) if isinstance(reason, str) else _lost(path), _seconds_of(failed))
        first = _read(self._finished(job, 0))
        if first is None or first.get("stage", stage) != stage:
            return None
        processes = first.get("processes")
        if not isinstance(processes, int) or not 0 < processes <= 2**31:
            reason = f"{self._finished(job, 0)} is damaged; resubmit runs the stage again"
            return JobOutcome(False, reason, time.time())
        others = (_read(self._finished(job, rank)) for rank in range(1, processes))
        done = all(other is not None and other.get("stage", stage) == stage for other in others)
        return JobOutcome(True, "", _seconds_of(first)) if done else None

    def _failed(self, job: str) -> Path:
        return self.jobs / f"{job}_failed.json"

    def _finished(self, job: str, rank: int) -> Path:
        return self.jobs / f"{job}_{rank}_finished.json"

    def log(self, job: str, rank: int = 0) -> Path:
        """What a process of a job has printed."""
        return self.jobs / f"{job}_{rank}_log.out"

    def _write(self, path: Path, document: dict[str, Any]) -> None:
        with umask(PRIVATE):
            write_json(path, document)


def _event(text: str) -> Submitted | Started | None:
    try:
        return JobEvent.validate_python(parsed(text))
    except ValidationError:
        return None


def _parsed_holder(path: Path) -> Holder | None:
    try:
        return Holder.model_validate(_read(path))
    except ValidationError:
        return None


def _read(path: Path) -> dict[str, Any] | None:
    """A small JSON file, {} if it cannot be read, None if there is none."""
    try:
        content = read(path)
    except SlurmError:
        return {}
    return None if content is None else parsed(content) or {}


def _lost(path: Path) -> str:
    free = ""
    with contextlib.suppress(OSError):
        free = f", where {shutil.disk_usage(path.parent).free:,} bytes are free"
    return f"its reason could not be written to {path.parent}{free}, or {path.name} is damaged"


def _seconds_of(document: dict[str, Any]) -> float:
    try:
        return datetime.fromisoformat(document["time"]).timestamp()
    except (LookupError, TypeError, ValueError, ArithmeticError, OSError):  # damaged; it is only shown
        return time.time()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _sha256(content: bytes | None) -> str:
    return "" if content is None else hashlib.sha256(content).hexdigest()
