"""Running stages on this machine, in the wrapper they have on a cluster."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import submitit
from submitit.core.utils import environment_variables

from slurm.batch import local_executor
from slurm.files import PRIVATE, umask, writing
from slurm.jobs import USER_SIGNAL, StageJob
from slurm.journal import Journal
from slurm.profile import Profile
from slurm.settings import Settings
from slurm.stage import Stage, one_line
from slurm.status import process_lives, read_status

LEAVE_SECONDS = 60.0  # for saving the state when the run is interrupted


def run_local(journal: Journal, stages: list[Stage], live: list[str], profile: Profile) -> dict[str, str]:
    """Run stages in submitit's processes, as many at once as the profile or the cores allow; GPUs one stage at a time.

    `live` are stages that processes of an earlier, killed launcher still run. Returns reasons of failure by name.
    """
    settings = {stage.name: fitted(profile.settings(stage.kind)) for stage in stages}
    waiting, failed = list(stages), {}
    running: dict[str, tuple[str, Any]] = {}  # by stage: process id, submitit's job
    for name, status in read_status(journal, live).items():
        running[name] = (status.job, None)
    with _interruptible(lambda: [job for job, _ in running.values()], journal):
        while waiting or running:
            for stage in list(waiting):
                missing = next((need for need in stage.after if need in failed), None)
                if missing is not None:
                    failed[stage.name] = one_line(f"{missing} failed: {failed[missing]}")
                    _say(f"{stage.name}: not run: {missing} failed")
                    waiting.remove(stage)
                elif _ready(stage, {*running, *(s.name for s in waiting)}) and _fits(stage, list(running), settings):
                    running[stage.name] = _start(journal, stage, settings[stage.name])
                    waiting.remove(stage)
            time.sleep(0.1)
            for name, (job, process) in list(running.items()):
                if (process is None and process_lives(int(job), journal)) or (process and not process.done()):
                    continue
                del running[name]
                status = read_status(journal, [name])[name]
                if status.state == "finished":
                    _say(f"{name}: finished")
                else:
                    failed[name] = status.reason
                    _say(f"{name}: failed: {status.reason} (log: {status.log})")
    return failed


def run_debug(journal: Journal, stages: list[Stage], profile: Profile) -> dict[str, str]:
    """Run stages one after the other in this process. Returns reasons of failure by name."""
    failed: dict[str, str] = {}
    executor = submitit.AutoExecutor(journal.jobs, cluster="debug")
    handlers = {number: signal.getsignal(number) for number in (USER_SIGNAL, signal.SIGTERM)}
    for stage in stages:
        missing = next((need for need in stage.after if need in failed), None)
        if missing is not None:
            failed[stage.name] = one_line(f"{missing} failed: {failed[missing]}")
            continue
        settings = profile.settings(stage.kind).model_copy(update={"nodes": 1, "tasks_per_node": 1})
        with umask(PRIVATE) as usual:
            process = executor.submit(StageJob.of(journal.run, stage, settings, usual))
            job = f"DEBUG_{time.time_ns()}"  # submitit's own is an address in memory, which comes again
            journal.submitted(stage.name, job, "debug")
            _say(f"{stage.name}: started")
            try:
                with environment_variables(**(settings.environment | {"SUBMITIT_DEBUG_JOB_ID": job})):
                    error = process.exception()
            finally:
                for number, handler in handlers.items():
                    signal.signal(number, handler)
        if error is not None:
            outcome = journal.outcome(stage.name, job)
            failed[stage.name] = outcome.reason if outcome else one_line(f"{type(error).__name__}: {error}")
        _say(f"{stage.name}: {'finished' if error is None else f'failed: {failed[stage.name]}'}")
    return failed


def _say(text: str) -> None:
    print(one_line(text), flush=True)


def _ready(stage: Stage, open_: set[str]) -> bool:
    """Whether nothing that the stage waits for is still to run or running."""
    return open_.isdisjoint(stage.needs)


def _fits(stage: Stage, running: list[str], settings: dict[str, Settings]) -> bool:
    """Whether the machine has room beside what runs. Stages taken over from an earlier launcher count as one core."""
    mine = settings[stage.name]
    others = [settings[name] for name in running if name in settings]
    if mine.array_parallelism is not None and len(running) >= mine.array_parallelism:
        return False
    if mine.gpus and any(other.gpus for other in others):
        return False
    cores = sum(other.tasks * other.cpus_per_task for other in others) + len(running) - len(others)
    return not running or cores + mine.tasks * mine.cpus_per_task <= (os.cpu_count() or 1)


def fitted(settings: Settings) -> Settings:
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


def _start(journal: Journal, stage: Stage, settings: Settings) -> tuple[str, Any]:
    executor = local_executor(journal.jobs, settings)
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: this process decides what Ctrl-C means
    try:
        with environment_variables(**settings.environment), writing(journal.jobs), umask(PRIVATE) as usual:
            job = executor.submit(StageJob.of(journal.run, stage, settings, usual))
    finally:
        signal.signal(signal.SIGINT, interrupt)
    journal.submitted(stage.name, job.job_id, "local")
    _say(f"{stage.name}: started, process {job.job_id}, log: {journal.log(job.job_id)}")
    return job.job_id, job


@contextlib.contextmanager
def _interruptible(jobs: Callable[[], list[str]], journal: Journal) -> Iterator[None]:
    """On Ctrl-C or SIGTERM, let the stages save their states and end before this process does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted: the running stages save their states", flush=True)
        for job in jobs():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(job), signal.SIGTERM)
        deadline = time.monotonic() + LEAVE_SECONDS
        while time.monotonic() < deadline and any(process_lives(int(job), journal) for job in jobs()):
            time.sleep(0.1)
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)
