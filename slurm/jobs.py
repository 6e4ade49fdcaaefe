"""What runs inside a job: one stage, its signals, its lives.

A job lives until its stage is finished or has failed. When it has to leave before (time limit, preemption), the handler
only sets a flag; the stage saves its state at its next step and raises; then the first process lets submitit put the
job back into the queue, where its next life continues, and the others end.
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

from slurm.files import umask
from slurm.journal import Journal, last_point, progress_mark
from slurm.settings import Settings
from slurm.stage import Stage
from slurm.states import show_job

USER_SIGNAL = getattr(signal, f"SIG{JobEnvironment.USR_SIG}")  # what submitit lets Slurm announce the end with


class _BrokenOff(BaseException):
    """Raised out of a stage that cannot be asked to stop."""


class _Signals:
    """Signals that ask this process to leave, and what has come of them so far."""

    def __init__(self) -> None:
        self.received: set[int] = set()
        self.running = True
        self.request_stop: Callable[[], None] | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        first = not self.received
        self.received.add(number)
        if first and self.running:
            if self.request_stop is None:
                raise _BrokenOff
            self.request_stop()


@dataclass(frozen=True)
class StageJob:
    """The callable given to submitit.

    Its stage is pickled apart: unpickling imports all the stage needs, for seconds in which a signal would end a
    process that has no handler yet.
    """

    run: Path
    name: str
    stage: bytes
    progress: Path | None
    processes: int
    lives_without_progress: int
    umask: int
    """of the stage; its job inherits that of the submission, which is for files that may hold secrets"""

    @classmethod
    def of(cls, run: Path, stage: Stage, settings: Settings, umask: int) -> StageJob:
        """The job of a stage with these settings, in this run's folder."""
        progress = stage.progress.absolute() if stage.progress else None
        processes, lives = settings.nodes * settings.tasks, settings.lives_without_progress
        return cls(run, stage.name, cloudpickle.dumps(stage), progress, processes, lives, umask)

    def __call__(self) -> None:
        """Run the stage; returns when it is finished, raises when it failed, does not return when it has to leave."""
        environment = JobEnvironment()
        job, journal = environment.job_id, Journal(self.run)
        signals = _Signals()
        requeue = signal.getsignal(USER_SIGNAL)  # submitit's own
        signal.signal(USER_SIGNAL, signals.handle)
        signal.signal(signal.SIGTERM, signals.handle)
        try:
            self._begin_life(environment, journal)
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
            if isinstance(error, SystemExit):  # would end the job as if all were well
                raise RuntimeError(reason) from error
            raise
        for number in (USER_SIGNAL, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # one that comes while Python shuts down would make the job fail

    def checkpoint(self) -> DelayedSubmission:
        """The job's next life: the same again, the stage itself finds what it has saved."""
        return DelayedSubmission(self)

    __submitit_checkpoint__ = checkpoint  # the name that newer versions look for

    def _begin_life(self, environment: JobEnvironment, journal: Journal) -> None:
        job = environment.job_id
        if environment.num_tasks != self.processes:
            raise RuntimeError(f"{environment.num_tasks} processes were started where {self.processes} were asked for")
        if self.processes > 1:
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        if environment.global_rank > 0:
            return
        lives = [line for line in journal.lines() if (line["event"], line["job"]) == ("started", job)]
        lives = [line for line in lives if line["stage"] == self.name]
        if lives:
            journal.forget_outcome(job)
        mark, last = progress_mark(self.progress), lives[-self.lives_without_progress :]
        if len(last) == self.lives_without_progress and all(line["mark"] == mark for line in last):
            step = f" beyond step {mark[0]:.0f}" if mark else ""
            raise RuntimeError(f"given up: {len(last)} lives in a row without progress{step}; allow more time?")
        journal.started(
            self.name,
            job,
            restarts=int(os.environ.get("SLURM_RESTART_COUNT", len(lives))),
            nodes=os.environ.get("SLURM_JOB_NODELIST", environment.hostname),
            step=last_point(self.progress).get("step", 0) if self.progress else None,
            mark=mark,
        )

    def _leave(self, environment: JobEnvironment, journal: Journal, received: set[int], requeue: Any) -> NoReturn:
        """End this life: requeue if the job is to go on and nobody has decided its fate yet."""
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
        # SIGTERM alone, in a job that goes on for Slurm: srun ends the processes that are left when one has died
        others = "another of its processes has died, or " if self.processes > 1 else ""
        journal.fail(self.name, job, f"ended by SIGTERM: {others}somebody sent it")
        sys.exit(128 + signal.SIGTERM)
