"""Commands and waiting, each with a limit."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slurm.journal import Journal
from slurm.status import StageStatus, read_status, table

Statuses = dict[str, StageStatus]

HERE = Path(__file__).parent
START = HERE / "start-slurm.sh"


def command(*words: str, seconds: float = 20) -> str:
    """Output of a command; an error says what it printed."""
    result = subprocess.run(words, capture_output=True, text=True, timeout=seconds)
    assert result.returncode == 0, f"{' '.join(words)}: {result.stdout}{result.stderr}"
    return result.stdout


def wait_until(journal: Journal, done: Callable[[Statuses], bool], seconds: float) -> Statuses:
    """Statuses once `done` holds for them; a failure tells all there is to tell."""
    end = time.monotonic() + seconds
    while True:
        statuses = read_status(journal)
        if done(statuses):
            return statuses
        if time.monotonic() > end:
            logs = [f"== {path}\n{path.read_text(errors='replace')[-2000:]}" for path in journal.jobs.glob("*_log.out")]
            queue = subprocess.run(["squeue", "--states=all"], capture_output=True, text=True, timeout=20).stdout
            daemons = subprocess.run([START, "logs"], capture_output=True, text=True, timeout=20).stdout
            pytest.fail("\n".join([f"waited {seconds} s", table(journal, statuses), queue, *logs, daemons]))
        time.sleep(0.2)


def wait_for(journal: Journal, states: dict[str, str], seconds: float = 120) -> Statuses:
    """Statuses once these stages have these states."""
    return wait_until(journal, lambda s: all(s[name].state == state for name, state in states.items()), seconds)


def wait_for_step(journal: Journal, stage: str, step: int, seconds: float = 120) -> StageStatus:
    """Status of a stage once its curve has reached a step."""
    return wait_until(journal, lambda s: (s[stage].step or 0) >= step, seconds)[stage]


def lives(journal: Journal, stage: str) -> list[dict[str, Any]]:
    """What the journal says of each life of a stage."""
    return [line for line in journal.lines() if line["event"] == "started" and line["stage"] == stage]


def wait_for_life(journal: Journal, stage: str, number: int, seconds: float = 120) -> StageStatus:
    """Status of a stage in its life of this number, counted from 1, once it has got on in it."""

    def gets_on(statuses: Statuses) -> bool:
        found = lives(journal, stage)
        return len(found) == number and (statuses[stage].step or 0) > found[-1]["step"]

    return wait_until(journal, gets_on, seconds)[stage]


def shorten_limit(stage: StageStatus) -> None:
    """Slurm's shortest limit, a minute from its start, for a stage that runs."""
    command("scontrol", "update", f"jobid={stage.job}", "timelimit=1")


def hold(pid: str) -> None:
    """Stop a process where it is; what Slurm sends it next lets it go on, for Slurm sends SIGCONT too."""
    command("kill", "-STOP", pid)


def process_of(journal: Journal, stage: str, rank: int = 0) -> str:
    """Process id of a rank of a stage that runs."""
    number, _, element = read_status(journal)[stage].job.partition("_")
    wanted = {f"SLURM_PROCID={rank}"}
    wanted |= (
        {f"SLURM_ARRAY_JOB_ID={number}", f"SLURM_ARRAY_TASK_ID={element}"} if element else {f"SLURM_JOB_ID={number}"}
    )
    pids = command("pgrep", "-f", f"^{sys.executable} -u -m submitit.core._submit {journal.jobs}").split()
    [pid] = [pid for pid in pids if wanted <= set(Path(f"/proc/{pid}/environ").read_text().split("\0"))]
    return pid
