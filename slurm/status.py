"""The status of every stage of a run, from the run's own files and from Slurm."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from imagefolder.errors import one_line
from slurm.events import Cluster, StageEntry, Started, Submitted
from slurm.files import opened
from slurm.journal import JobOutcome, Journal
from slurm.progress import last_point
from slurm.stage import SlurmError
from slurm.states import SlurmState, job_states

StageState = Literal[
    "not submitted", "pending", "requeued", "running", "finished", "failed", "cancelled", "not run", "unknown"
]
LIVE: tuple[StageState, ...] = ("pending", "requeued", "running")
UNSUCCESSFUL: tuple[StageState, ...] = ("failed", "cancelled", "not run")
EXPLAINED = {
    "TIMEOUT": "time limit reached before the stage saved its state and was requeued; raise time or signal_delay",
    "OUT_OF_MEMORY": "out of memory; raise memory",
    "PREEMPTED": "preempted without being requeued",
    "COMPLETED": "its processes exited without an error and without finishing the stage",
}


@dataclass(frozen=True)
class StageStatus:
    """The status of one stage."""

    name: str
    state: StageState
    reason: str = ""
    """why it failed, or what it is waiting for"""
    blocked_by: str | None = None
    """of "not run": the stage that did not finish"""
    job: str = ""
    cluster: Cluster | None = None
    nodes: str = ""
    restarts: int = 0
    elapsed: float | None = None
    """seconds of the current or last attempt"""
    step: int | None = None
    steps: int | None = None
    losses: dict[str, float] = field(default_factory=dict)
    left: float | None = None
    """seconds still needed at the speed of this attempt"""
    log: Path | None = None
    last_line: str = ""

    @classmethod
    def blocked(cls, name: str, by: str) -> StageStatus:
        """Of a stage that cannot run because another one did not finish."""
        return cls(name, "not run", one_line(f"{by} did not finish"), blocked_by=by)


def read_status(journal: Journal, names: list[str] | None = None, strict: bool = True) -> dict[str, StageStatus]:
    """Status by name of the given stages, or all, each after those it waits for.

    Raises:
        SlurmError: graph.json is damaged; or Slurm does not answer although the run's own files are not sufficient.
            If not `strict`, the state of these stages is "unknown" instead.
    """
    events = journal.events()
    submitted = {event.stage: event for event in events if isinstance(event, Submitted)}
    started = {(event.stage, event.job): event for event in events if isinstance(event, Started)}
    outcomes = {name: journal.outcome(name, event.job) for name, event in submitted.items()}
    asked = [event.job for name, event in submitted.items() if event.cluster == "slurm" and outcomes[name] is None]
    states, silent = {}, None
    try:
        states = job_states(asked)
    except SlurmError as error:
        if strict:
            raise
        silent = str(error)
    found: dict[str, StageStatus] = {}
    for name, entry in journal.graph().stages.items():
        blockers = (need for need in entry.after if need in found and found[need].state in UNSUCCESSFUL)
        blocker = next(blockers, None)
        if name not in submitted:
            found[name] = StageStatus.blocked(name, blocker) if blocker else StageStatus(name, "not submitted")
            continue
        event, outcome = submitted[name], outcomes[name]
        attempt, state = started.get((name, event.job)), states.get(event.job)
        if outcome is not None:
            status = _by_outcome(name, outcome)
        elif event.cluster == "local":
            status = _by_process(name, event.job, journal)
        elif silent is not None:
            status = StageStatus(name, "unknown", silent)
        else:
            status = _by_slurm(name, state, attempt is not None, blocker)
        if outcome is None and status.state == "failed":  # or it has just recorded its end
            outcome = journal.outcome(name, event.job)
            status = _by_outcome(name, outcome) if outcome else status
        nodes = (state.nodes if state else "") or (attempt.nodes if attempt else "")
        status = replace(status, job=event.job, cluster=event.cluster, nodes=nodes, steps=entry.steps)
        ended = outcome.time if outcome else None
        found[name] = _with_log(_with_progress(status, entry, attempt, ended, journal), journal)
    return {name: found[name] for name in (found if names is None else names) if name in found}


def _by_outcome(name: str, outcome: JobOutcome) -> StageStatus:
    return StageStatus(name, "finished" if outcome.finished else "failed", one_line(outcome.reason))


def _by_slurm(name: str, state: SlurmState | None, started: bool, blocker: str | None) -> StageStatus:
    """Status of a stage whose job has not recorded how it ended."""

    def failed(reason: str) -> StageStatus:
        return StageStatus(name, "failed", one_line(reason))

    if state is None:
        return failed("Slurm no longer knows this job, and it left no result; its log may tell why")
    if state.state == "PENDING":
        return StageStatus(name, "requeued" if started else "pending", one_line(state.reason))
    if state.live:
        return StageStatus(name, "running", "" if state.state == "RUNNING" else one_line(state.state.lower()))
    if state.state == "CANCELLED":
        if blocker and not started:
            return StageStatus.blocked(name, blocker)
        dependency = "" if started else ", or its dependency can no longer be satisfied"
        return StageStatus(name, "cancelled", f"by scancel{dependency}")
    if state.state == "NODE_FAIL":
        return failed(f"node {state.nodes} failed")
    if state.state in EXPLAINED:
        return failed(EXPLAINED[state.state])
    if state.exit_code - 128 in {number.value for number in signal.Signals}:
        number = signal.Signals(state.exit_code - 128)
        killed = " (killed by hand, or out of memory)" if number == signal.SIGKILL else ""
        return failed(f"a process was ended by {number.name}{killed}")
    return failed(f"{state.state.lower().replace('_', ' ')}, exit code {state.exit_code}")


def _by_process(name: str, job: str, journal: Journal) -> StageStatus:
    """Status of a stage on this machine that has not recorded how it ended."""
    if process_exists(int(job), journal):
        return StageStatus(name, "running")
    return StageStatus(name, "failed", "its process exited without an error message (killed, or out of memory)")


def process_exists(pid: int, journal: Journal) -> bool:
    """Whether a process runs and works for this run."""
    if sys.platform == "linux":
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")  # empty after its end
        except OSError:
            return False
        folder = os.path.realpath(journal.jobs)  # the run may have another name now
        return any(os.path.realpath(os.fsdecode(word)) == folder for word in words if word.startswith(b"/"))
    command = ["ps", "-ww", "-o", "stat=", "-o", "command=", "-p", str(pid)]
    shown = subprocess.run(command, capture_output=True, text=True, errors="replace").stdout
    return str(journal.jobs) in shown and not shown.startswith("Z")


def live_strays(journal: Journal) -> dict[str, Cluster]:
    """Jobs of the run that wait or run although its journal does not name them, each with its cluster.

    Raises:
        SlurmError: Slurm does not answer whether they do.
    """
    strays = journal.strays()
    slurm = [job for job in strays if (journal.jobs / f"{job.split('_')[0]}_submission.sh").exists()]
    states = job_states(slurm)
    live: dict[str, Cluster] = {job: "slurm" for job in slurm if job in states and states[job].live}
    local = [job for job in strays if job not in slurm and job.isdecimal()]
    live.update((job, "local") for job in local if process_exists(int(job), journal))
    return live


def _with_progress(
    status: StageStatus, entry: StageEntry, attempt: Started | None, ended: float | None, journal: Journal
) -> StageStatus:
    """With the last point of the stage's curve, and the times of its current or last attempt."""
    point = last_point(entry.progress) if entry.progress else {}
    step = int(point.pop("step")) if point else None
    elapsed = left = None
    if attempt is not None:
        if ended is None and status.state == "running":
            ended = time.time()
        elif ended is None and (log := journal.log(status.job)).exists():
            ended = log.stat().st_mtime
        elapsed = None if ended is None else max(ended - attempt.time.timestamp(), 0.0)
        done = (step or 0) - (attempt.step or 0)
        if step and elapsed and done > 0 and entry.steps and status.state == "running":
            left = elapsed / done * (entry.steps - step)
    losses = {one_line(key): value for key, value in point.items() if isinstance(value, int | float)}
    restarts = attempt.restarts if attempt else 0
    return replace(status, restarts=restarts, elapsed=elapsed, step=step, losses=losses, left=left)


def _with_log(status: StageStatus, journal: Journal) -> StageStatus:
    """With the end of its log, from which srun's message explains a failure."""
    log = journal.log(status.job)
    text, reason = _tail(log), status.reason
    if status.state == "failed":  # srun names the process that died; those that it ended then are less interesting
        attempt = text.rpartition("Starting with JobEnvironment")[2]
        died = re.findall(r"^srun: error: (\S+: tasks? \S+: (?!Exited|Terminated).+)$", attempt, re.MULTILINE)
        reason = one_line(f"{reason} (srun: {died[0]})") if died and died[0] not in reason else reason
    printed = [line for line in text.splitlines() if line.strip()]
    last_line = one_line(printed[-1]) if printed else ""
    return replace(status, reason=reason, log=log if log.exists() else None, last_line=last_line)


def _tail(path: Path) -> str:
    try:
        with os.fdopen(opened(path, os.O_RDONLY), "rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 16384, 0))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def table(journal: Journal, statuses: dict[str, StageStatus]) -> str:
    """The graph as text: a line per stage, below it what it waits for, why it failed, or what it printed last."""
    if not statuses:
        raise SlurmError(f"{journal.run} holds no submitted run (no slurm/graph.json); give the run's folder")
    entries = journal.graph().stages
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
        entry = entries[status.name]
        needs = [*entry.after, *(f"{name} (any end)" for name in entry.after_any)]
        if needs:
            text.append(f"    after: {one_line(', '.join(needs))}")
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
