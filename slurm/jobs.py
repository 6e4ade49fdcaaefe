"""What runs inside a job: one stage, its signals and its attempts.

A job lasts until its stage has finished or failed. When it has to leave earlier (time limit, preemption), the signal
handler only sets a flag; the stage saves its state at its next step and raises; then rank 0 lets submitit requeue the
job, whose next attempt resumes, and the other ranks exit.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import cloudpickle
from submitit import JobEnvironment
from submitit.core.utils import DelayedSubmission
from submitit.helpers import TorchDistributedEnvironment

from slurm.events import Started
from slurm.files import umask
from slurm.journal import Journal
from slurm.progress import last_point, progress_mark
from slurm.settings import JobSettings
from slurm.stage import Stage
from slurm.states import show_job

USER_SIGNAL = getattr(signal, f"SIG{JobEnvironment.USR_SIG}")  # by which submitit lets Slurm announce the end


class _Interrupted(BaseException):
    """Raised out of a stage that cannot be asked to stop."""


class _Signals:
    """Signals that ask this process to leave."""

    def __init__(self) -> None:
        self.received: set[int] = set()
        self.running = True
        self.request_stop: Callable[[], None] | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        first = not self.received
        self.received.add(number)
        if first and self.running:
            if self.request_stop is None:
                raise _Interrupted
            self.request_stop()


@dataclass(frozen=True, kw_only=True)
class StageJob:
    """The callable given to submitit.

    Its stage is pickled separately: unpickling it imports all it needs, which takes seconds in which a signal would
    kill a process without handlers.
    """

    run: Path
    name: str
    stage: bytes
    progress: Path | None
    processes: int
    restarts_without_progress: int
    umask: int
    """of the stage; its job inherits that of the submission, which is for files that may hold secrets"""

    @classmethod
    def of(cls, run: Path, stage: Stage, settings: JobSettings, umask: int) -> StageJob:
        """The job of a stage with these settings, in this run's folder."""
        return cls(
            run=run,
            name=stage.name,
            stage=cloudpickle.dumps(stage),
            progress=stage.progress.absolute() if stage.progress else None,
            processes=settings.nodes * settings.tasks,
            restarts_without_progress=settings.restarts_without_progress,
            umask=umask,
        )

    def __call__(self) -> None:
        """Run the stage: returns once it has finished, raises if it failed, does not return if it has to leave."""
        environment = JobEnvironment()
        job, journal = environment.job_id, Journal(self.run)
        signals = _Signals()
        requeue = signal.getsignal(USER_SIGNAL)  # submitit's own handler
        signal.signal(USER_SIGNAL, signals.handle)
        signal.signal(signal.SIGTERM, signals.handle)
        try:
            self._begin(environment, journal)
            with umask(self.umask):
                stage: Stage = pickle.loads(self.stage)
                signals.request_stop = stage.request_stop
                stage.function(*stage.arguments)
            signals.running = False
            journal.finish(self.name, job, environment.global_rank, self.processes)
        except BaseException as error:
            signals.running = False
            if signals.received:
                self._leave(environment, journal, signals.received, requeue)
            if isinstance(error, KeyboardInterrupt):
                raise
            reason = f"{type(error).__name__}: {error}"
            journal.fail(self.name, job, reason)
            if isinstance(error, SystemExit):  # would end the job as if it had succeeded
                raise RuntimeError(reason) from error
            raise
        for number in (USER_SIGNAL, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # one that arrives while Python shuts down would make the job fail

    def checkpoint(self) -> DelayedSubmission:
        """The job's next attempt: the same call, as the stage itself finds what it has saved."""
        return DelayedSubmission(self)

    __submitit_checkpoint__ = checkpoint  # the name that newer versions look for

    def _begin(self, environment: JobEnvironment, journal: Journal) -> None:
        job = environment.job_id
        if environment.num_tasks != self.processes:
            raise RuntimeError(f"{environment.num_tasks} processes were started instead of {self.processes}")
        if self.processes > 1:
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        if environment.global_rank > 0:
            return
        events = (event for event in journal.events() if isinstance(event, Started))
        earlier = [event for event in events if (event.job, event.stage) == (job, self.name)]
        if earlier:
            journal.forget_outcome(job)
        mark, allowed = progress_mark(self.progress), self.restarts_without_progress
        if len(earlier) >= allowed and all(event.mark == mark for event in earlier[-allowed:]):
            step = f" beyond step {mark[0]:.0f}" if mark else ""
            raise RuntimeError(f"given up after {allowed} restarts without progress{step}; allow more time?")
        journal.append(
            Started(
                stage=self.name,
                job=job,
                restarts=int(os.environ.get("SLURM_RESTART_COUNT", len(earlier))),
                nodes=os.environ.get("SLURM_JOB_NODELIST", environment.hostname),
                step=int(last_point(self.progress).get("step", 0)) if self.progress else None,
                mark=mark,
            )
        )

    def _leave(self, environment: JobEnvironment, journal: Journal, received: set[int], requeue: Any) -> NoReturn:
        """End this attempt; requeue the job if it is to continue and nobody else has decided that yet."""
        sys.stdout.flush()
        sys.stderr.flush()
        if environment.global_rank > 0:
            os._exit(0)  # at once: it must not outlive the requeue, and torch's own clean-up may wait for others
        job = environment.job_id
        if USER_SIGNAL not in received:
            time.sleep(1)  # a preemption sends both signals, SIGTERM first
        known = show_job(job) if environment.cluster == "slurm" else None
        if known is not None and known.state != "RUNNING":  # cancelled, timed out, or requeued by Slurm itself
            sys.exit(128 + signal.SIGTERM)
        if USER_SIGNAL in received or (known is not None and known.preempted):
            try:
                requeue(USER_SIGNAL, None)  # ends this process once the job is in the queue
            except Exception as error:
                journal.fail(self.name, job, f"stopped, and could not be requeued: {error}; resubmit continues it")
                raise
        # SIGTERM alone, while Slurm keeps the job: srun ends the remaining processes when one has died
        others = "another of its processes died, or " if self.processes > 1 else ""
        journal.fail(self.name, job, f"ended by SIGTERM: {others}somebody sent it")
        sys.exit(128 + signal.SIGTERM)
