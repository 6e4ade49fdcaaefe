"""How every stage of a run stands, from the run's own files and from what Slurm says."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slurm.files import opened
from slurm.journal import Journal, last_point, seconds
from slurm.stage import SlurmError, one_line
from slurm.states import JobState, job_states

LIVE = ("pending", "requeued", "running")
WRONG = ("failed", "cancelled", "not run")


@dataclass(frozen=True)
class StageStatus:
    """One stage: `state` is "not submitted", pending, requeued, running, finished, failed, cancelled, "not run",
    or "unknown"."""

    name: str
    state: str
    reason: str = ""
    """of a failure, or for waiting"""
    job: str = ""
    cluster: str = ""
    nodes: str = ""
    restarts: int = 0
    elapsed: float | None = None
    """seconds of the current or last life"""
    step: int | None = None
    steps: int | None = None
    losses: dict[str, float] = field(default_factory=dict)
    left: float | None = None
    """seconds still needed at the speed of this life"""
    log: Path | None = None
    last_line: str = ""


def read_status(journal: Journal, names: list[str] | None = None, strict: bool = True) -> dict[str, StageStatus]:
    """Status by name of the given stages, or all, each after those it waits for.

    Raises:
        SlurmError: graph.json is damaged; or Slurm does not answer, and the run's own files do not tell all, unless not
            `strict`, where the state of such stages is "unknown".
    """
    known = journal.graph()["stages"]
    lines = journal.lines()
    submitted = {line["stage"]: line for line in lines if line["event"] == "submitted"}
    started = {(line["stage"], line["job"]): line for line in lines if line["event"] == "started"}
    ended = {name: journal.outcome(name, line["job"]) for name, line in submitted.items()}
    asked = [line["job"] for name, line in submitted.items() if line["cluster"] == "slurm" and ended[name] is None]
    silent = None
    try:
        states = job_states(asked)
    except SlurmError as error:
        if strict:
            raise
        states, silent = {}, str(error)
    found: dict[str, StageStatus] = {}
    for name, about in known.items():
        wrong = [need for need in about["after"] if need in found and found[need].state in WRONG]
        if name not in submitted:
            reason = f"{wrong[0]} did not finish" if wrong else ""
            found[name] = StageStatus(name, "not run" if wrong else "not submitted", reason)
            continue
        line = submitted[name]
        job, life = line["job"], started.get((name, line["job"]))
        outcome, state = ended[name], states.get(job)
        if outcome is not None:
            verdict = ("finished" if outcome.finished else "failed", outcome.reason)
        elif line["cluster"] == "slurm" and silent is not None:
            verdict = ("unknown", silent)
        elif line["cluster"] == "slurm":
            verdict = _by_slurm(state, life, wrong)
        else:
            verdict = _by_process(job, journal)
        if outcome is None and verdict[0] == "failed":  # or it has just said how it ended
            outcome = journal.outcome(name, job)
            verdict = ("finished" if outcome.finished else "failed", outcome.reason) if outcome else verdict
        found[name] = _described(journal, name, about, line, life, state, verdict, outcome.time if outcome else None)
    return {name: found[name] for name in (found if names is None else names) if name in found}


def _by_slurm(state: JobState | None, life: dict[str, Any] | None, wrong: list[str]) -> tuple[str, str]:
    """State and reason of a job that has not said how it ended."""
    if state is None:
        return "failed", "Slurm remembers this job no more, and it left no result; its log may tell why"
    if state.live:
        if state.state == "PENDING":
            return ("requeued" if life else "pending"), state.reason
        return "running", "" if state.state == "RUNNING" else state.state.lower()
    if state.state == "CANCELLED":
        if life is None and wrong:
            return "not run", f"{wrong[0]} did not finish"
        return "cancelled", "by scancel, or its dependency can no longer be met" if life is None else "by scancel"
    why = {
        "TIMEOUT": "time limit reached before the stage could save its state and be requeued; raise time, signal_delay",
        "NODE_FAIL": f"node {state.nodes} failed",
        "OUT_OF_MEMORY": "out of memory; raise memory",
        "PREEMPTED": "preempted without requeueing",
        "COMPLETED": "its processes ended without an error and without finishing the stage",
    }
    if state.state in why:
        return "failed", why[state.state]
    if state.exit_code - 128 in {number.value for number in signal.Signals}:
        name = signal.Signals(state.exit_code - 128).name
        killed = " (killed by hand, or for lack of memory)" if name == "SIGKILL" else ""
        return "failed", f"a process was ended by {name}{killed}"
    return "failed", f"{state.state.lower().replace('_', ' ')}, exit code {state.exit_code}"


def _by_process(job: str, journal: Journal) -> tuple[str, str]:
    """State and reason of a job on this machine that has not said how it ended; only local jobs have processes."""
    if process_lives(int(job), journal) if job.isdigit() else journal.holder():
        return "running", ""
    return "failed", "its process died without a word (killed, or out of memory)"


def process_lives(pid: int, journal: Journal) -> bool:
    """Whether a process exists and works for this run."""
    if sys.platform == "linux":
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")  # nothing for one that has ended
        except OSError:
            return False
        folder = os.path.realpath(journal.jobs)  # the run may be called by another name now
        return any(os.path.realpath(os.fsdecode(word)) == folder for word in words if word.startswith(b"/"))
    command = ["ps", "-ww", "-o", "stat=", "-o", "command=", "-p", str(pid)]
    shown = subprocess.run(command, capture_output=True, text=True, errors="replace").stdout
    return str(journal.jobs) in shown and not shown.startswith("Z")


def live_strays(journal: Journal) -> dict[str, str]:
    """Jobs of the run that wait or run though its journal does not name them, and on which cluster they do.

    Raises:
        SlurmError: Slurm does not answer whether they do.
    """
    strays = journal.strays()
    slurm = [job for job in strays if (journal.jobs / f"{job.split('_')[0]}_submission.sh").exists()]
    states = job_states(slurm)
    live = {job: "slurm" for job in slurm if job in states and states[job].live}
    local = [job for job in strays if job not in slurm and job.isdecimal()]
    return live | {job: "local" for job in local if process_lives(int(job), journal)}


def _described(
    journal: Journal,
    name: str,
    about: dict[str, Any],
    line: dict[str, Any],
    life: dict[str, Any] | None,
    slurm: JobState | None,
    verdict: tuple[str, str],
    ended: float | None,
) -> StageStatus:
    state, reason = verdict
    job, log = line["job"], journal.log(line["job"])
    text = _tail(log)
    if state == "failed":  # srun says which of the processes died; those that it ended then say less
        life_text = text.rpartition("Starting with JobEnvironment")[2]
        died = re.findall(r"^srun: error: (\S+: tasks? \S+: (?!Exited|Terminated).+)$", life_text, re.MULTILINE)
        reason = f"{reason} (srun: {died[0]})" if died and died[0] not in reason else reason
    printed = [line for line in text.splitlines() if line.strip()]
    point = last_point(Path(about["progress"])) if about["progress"] else {}
    step = int(point.pop("step")) if point else None
    elapsed = left = None
    if life is not None:
        end = ended or (time.time() if state == "running" else log.stat().st_mtime if log.exists() else None)
        elapsed = max(end - seconds(life["time"]), 0.0) if end else None
        done = (step or 0) - (life["step"] or 0)
        if state == "running" and elapsed and done > 0 and about["steps"]:
            left = elapsed / done * (about["steps"] - step)
    return StageStatus(
        name=name,
        state=state,
        reason=one_line(reason),
        job=job,
        cluster=line["cluster"],
        nodes=(slurm.nodes if slurm else "") or (life["nodes"] if life else ""),
        restarts=life["restarts"] if life else 0,
        elapsed=elapsed,
        step=step,
        steps=about["steps"],
        losses={one_line(key): value for key, value in point.items() if isinstance(value, int | float)},
        left=left,
        log=log if log.exists() else None,
        last_line=one_line(printed[-1]) if printed else "",
    )


def _tail(path: Path) -> str:
    try:
        with os.fdopen(opened(path, os.O_RDONLY), "rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 16384, 0))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def table(journal: Journal, statuses: dict[str, StageStatus]) -> str:
    """The graph as text: a line per stage, below it what it waits for, why it failed, or what it printed last."""
    graph = journal.graph()["stages"]
    if not statuses:
        raise SlurmError(f"{journal.run} holds no submitted run (no slurm/graph.json); give the run's folder")
    rows = [("stage", "state", "job", "node", "elapsed", "restarts", "progress")]
    rows += [
        (one_line(s.name), s.state, s.job, one_line(s.nodes), _clock(s.elapsed), str(s.restarts or ""), _progress(s))
        for s in statuses.values()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    text = [lines[0]]
    for line, status in zip(lines[1:], statuses.values(), strict=True):
        text.append(line)
        about = graph[status.name]
        waits = [*about["after"], *(f"{name} (any end)" for name in about["after_any"])]
        if waits:
            text.append(f"    after: {one_line(', '.join(waits))}")
        if status.reason:
            text.append(f"    {'waits for' if status.state in LIVE else 'reason'}: {status.reason}")
        if status.last_line and status.state not in ("finished", "pending"):
            text.append(f"    log: {status.last_line[:160]}")
    return "\n".join(text)


def _clock(value: float | None) -> str:
    if value is None:
        return ""
    minutes, rest = divmod(int(value), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _progress(status: StageStatus) -> str:
    if status.step is None:
        return ""
    parts = [f"step {status.step}" + (f" of {status.steps}" if status.steps else "")]
    parts += [f"{name} {value:.3g}" for name, value in list(status.losses.items())[:3]]
    if status.left is not None:
        parts.append(f"{_clock(status.left)} left")
    return ", ".join(parts)
