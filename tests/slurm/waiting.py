"""Commands and waiting, each with a time limit."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from slurm.events import Started
from slurm.journal import Journal
from slurm.status import StageStatus, read_status, table

Statuses = dict[str, StageStatus]

HERE = Path(__file__).parent
START = HERE / "start-slurm.sh"
PROFILE = str(HERE / "test-cluster.yaml")
LONG = 900.0  # seconds: a stage takes a minute where three steps of CI share two cores; only a failure waits as long


def command(*words: str, seconds: float = 60) -> str:
    """Output of a command; an error shows what it printed."""
    result = subprocess.run(words, capture_output=True, text=True, timeout=seconds)
    assert result.returncode == 0, f"{' '.join(words)}: {result.stdout}{result.stderr}"
    return result.stdout


def wait_until(journal: Journal, done: Callable[[Statuses], bool], seconds: float = LONG) -> Statuses:
    """Statuses once `done` is true for them; a failure shows the queue and all logs."""
    end = time.monotonic() + seconds
    while True:
        statuses = read_status(journal)
        if done(statuses):
            return statuses
        if time.monotonic() > end:
            logs = [f"== {path}\n{path.read_text(errors='replace')[-2000:]}" for path in journal.jobs.glob("*_log.out")]
            queue = subprocess.run(["squeue", "--states=all"], capture_output=True, text=True, timeout=60).stdout
            daemons = subprocess.run([START, "logs"], capture_output=True, text=True, timeout=60).stdout
            pytest.fail("\n".join([f"waited {seconds} s", table(journal, statuses), queue, *logs, daemons]))
        time.sleep(0.2)


def wait_for(journal: Journal, states: dict[str, str], seconds: float = LONG) -> Statuses:
    """Statuses once these stages have these states."""
    return wait_until(journal, lambda s: all(s[name].state == state for name, state in states.items()), seconds)


def wait_for_step(journal: Journal, stage: str, step: int, seconds: float = LONG) -> StageStatus:
    """Status of a stage once its curve has reached a step."""
    return wait_until(journal, lambda s: (s[stage].step or 0) >= step, seconds)[stage]


def attempts(journal: Journal, stage: str) -> list[Started]:
    """The attempts of a stage's jobs."""
    return [event for event in journal.events() if isinstance(event, Started) and event.stage == stage]


def wait_for_attempt(journal: Journal, stage: str, number: int, seconds: float = LONG) -> StageStatus:
    """Status of a stage in its attempt of this number, counted from 1, once it has made progress in it."""

    def progresses(statuses: Statuses) -> bool:
        found = attempts(journal, stage)
        return len(found) == number and (statuses[stage].step or 0) > (found[-1].step or 0)

    return wait_until(journal, progresses, seconds)[stage]


def shorten_limit(stage: StageStatus) -> None:
    """Give a running stage Slurm's shortest limit, a minute from its start."""
    command("scontrol", "update", f"jobid={stage.job}", "timelimit=1")


def hold(pid: str) -> None:
    """Stop a process where it is; the next signal of Slurm continues it, as Slurm sends SIGCONT too."""
    command("kill", "-STOP", pid)


def process_of(journal: Journal, stage: str, rank: int = 0) -> str:
    """Process id of a rank of a running stage."""
    number, _, element = read_status(journal)[stage].job.partition("_")
    wanted = {f"SLURM_PROCID={rank}"}
    wanted |= (
        {f"SLURM_ARRAY_JOB_ID={number}", f"SLURM_ARRAY_TASK_ID={element}"} if element else {f"SLURM_JOB_ID={number}"}
    )
    pids = command("pgrep", "-f", f"^{sys.executable} -u -m submitit.core._submit {journal.jobs}").split()
    [pid] = [pid for pid in pids if wanted <= set(Path(f"/proc/{pid}/environ").read_text().split("\0"))]
    return pid
