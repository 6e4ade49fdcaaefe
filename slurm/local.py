"""Running stages on this machine, in the same wrapper as on a cluster."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

import submitit
from submitit.core.utils import environment_variables

from imagefolder.errors import one_line
from imagefolder.files import writing
from slurm.batch import local_executor
from slurm.events import Submitted
from slurm.files import PRIVATE, umask
from slurm.jobs import StageJob
from slurm.journal import Journal
from slurm.profile import Profile
from slurm.settings import JobSettings
from slurm.stage import Stage
from slurm.status import process_exists, read_status

LEAVE_SECONDS = 60.0  # for saving the state when the run is interrupted


@dataclass(frozen=True)
class _LocalJob:
    """A running stage; without submitit's object if an earlier, killed launcher started it."""

    pid: str
    process: submitit.Job[None] | None = None

    def running(self, journal: Journal) -> bool:
        return process_exists(int(self.pid), journal) if self.process is None else not self.process.done()


def run_local(journal: Journal, stages: list[Stage], live: list[str], profile: Profile) -> dict[str, str]:
    """Run stages in submitit's processes, as many at a time as the profile or the cores allow, one at a time on GPUs.

    `live` are stages that an earlier, killed launcher left running. Returns the reasons of failures by stage name.
    """
    settings = {stage.name: fitted(profile.settings(stage.kind)) for stage in stages}
    waiting, failed = list(stages), {}
    running = {name: _LocalJob(status.job) for name, status in read_status(journal, live).items()}
    with _interruptible(lambda: [job.pid for job in running.values()], journal):
        while waiting or running:
            for stage in list(waiting):
                blocker = next((need for need in stage.after if need in failed), None)
                if blocker is not None:
                    failed[stage.name] = one_line(f"{blocker} failed: {failed[blocker]}")
                    _print(f"{stage.name}: not run: {blocker} failed")
                    waiting.remove(stage)
                elif {*running, *(s.name for s in waiting)}.isdisjoint(stage.needs) and _fits(
                    settings[stage.name], [settings.get(name) for name in running]
                ):
                    running[stage.name] = _start(journal, stage, settings[stage.name])
                    waiting.remove(stage)
            time.sleep(0.1)
            for name in [name for name, job in running.items() if not job.running(journal)]:
                del running[name]
                status = read_status(journal, [name])[name]
                if status.state == "finished":
                    _print(f"{name}: finished")
                else:
                    failed[name] = status.reason
                    _print(f"{name}: failed: {status.reason} (log: {status.log})")
    return failed


def _print(text: str) -> None:
    print(one_line(text), flush=True)


def _fits(settings: JobSettings, running: list[JobSettings | None]) -> bool:
    """Whether the machine has room for another stage. Those of an earlier launcher, None, count as one core each."""
    known = [other for other in running if other is not None]
    if settings.array_parallelism is not None and len(running) >= settings.array_parallelism:
        return False
    if settings.gpus and any(other.gpus for other in known):
        return False
    cores = sum(other.tasks * other.cpus_per_task for other in known) + len(running) - len(known)
    return not running or cores + settings.tasks * settings.cpus_per_task <= (os.cpu_count() or 1)


def fitted(settings: JobSettings) -> JobSettings:
    """With no more GPUs than this machine has."""
    gpus = min(settings.gpus, _gpus_here()) if settings.gpus else 0
    tasks = settings.tasks_per_node if gpus == settings.gpus else None
    return settings.model_copy(update={"gres": None, "gpus_per_node": gpus, "tasks_per_node": tasks})


def _gpus_here() -> int:
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, errors="replace", timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def _start(journal: Journal, stage: Stage, settings: JobSettings) -> _LocalJob:
    executor = local_executor(journal.jobs, settings)
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: this process decides what Ctrl-C does
    try:
        with environment_variables(**settings.environment), writing(journal.jobs), umask(PRIVATE) as usual:
            job = executor.submit(StageJob.of(journal.run, stage, settings, usual))
    finally:
        signal.signal(signal.SIGINT, interrupt)
    journal.append(Submitted(stage=stage.name, job=job.job_id, cluster="local"))
    _print(f"{stage.name}: started, process {job.job_id}, log: {journal.log(job.job_id)}")
    return _LocalJob(job.job_id, job)


@contextlib.contextmanager
def _interruptible(pids: Callable[[], list[str]], journal: Journal) -> Iterator[None]:
    """On Ctrl-C or SIGTERM, let the stages save their states and exit before this process does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        if callable(previous):
            previous(number, frame)  # the command line's, which exits with another code than after Ctrl-C
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted: the running stages save their states", flush=True)
        for pid in pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGTERM)
        deadline = time.monotonic() + LEAVE_SECONDS
        while time.monotonic() < deadline and any(process_exists(int(pid), journal) for pid in pids()):
            time.sleep(0.1)
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)
