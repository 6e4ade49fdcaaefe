"""States of jobs, without relying on accounting: from squeue, then scontrol, then sacct, each with a timeout."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from slurm.stage import SlurmError

SECONDS = 20  # a busy controller answers late, a dead one never does
DEAD = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}
DEAD |= {"REVOKED", "TIMEOUT"}


@dataclass(frozen=True)
class SlurmState:
    """State of a job as Slurm calls it, e.g. RUNNING, with its reason, nodes and exit code if known."""

    state: str
    reason: str = ""
    nodes: str = ""
    exit_code: int = 0
    """of the job's script; 128 + number after a signal"""
    preempted: bool = False
    """Slurm has selected it for preemption and will end it soon"""

    @property
    def live(self) -> bool:
        """Whether the job is waiting, running or completing."""
        return self.state not in DEAD


def slurm_answers() -> bool:
    """Whether a cluster to submit to answers."""
    return _call(["sinfo", "--noheader", "--format=%P"], 5) is not None


def job_states(jobs: Iterable[str]) -> dict[str, SlurmState]:
    """States by job id ("12", "12_3"), of the jobs that Slurm still knows.

    Raises:
        SlurmError: Slurm does not answer.
    """
    jobs = list(jobs)
    if not jobs:
        return {}
    found: dict[str, SlurmState] = {}
    for line in _squeue(jobs).splitlines():
        job, state, reason, nodes = [*line.split("|", 3), "", "", ""][:4]
        found[job] = SlurmState(state, "" if reason == "None" else reason, nodes)
    states = {job: found[job] for job in jobs if job in found}
    for job in jobs:
        if job not in states or not states[job].live:  # only scontrol knows exit codes
            shown = show_job(job)
            if shown is not None:
                states[job] = shown
    unknown = [job for job in jobs if job not in states]
    if unknown:
        states |= accounted(unknown)
    return states


def show_job(job: str) -> SlurmState | None:
    """State of one job according to scontrol, None if it no longer knows the job or does not answer."""
    text = _call(["scontrol", "--oneliner", "show", "job", job])
    values = dict(re.findall(r"(\w+)=(\S*)", text or ""))
    if "JobState" not in values:
        return None
    return SlurmState(
        values["JobState"],
        "" if values.get("Reason") == "None" else values.get("Reason", ""),
        values.get("NodeList", "").replace("(null)", ""),
        _exit_code(values.get("ExitCode", "")),
        preempted=values.get("PreemptTime", "None") not in ("None", "Unknown", "N/A"),
    )


def accounted(jobs: list[str]) -> dict[str, SlurmState]:
    """States according to accounting, {} where there is none."""
    form = "--format=JobID,State,ExitCode,NodeList"
    command = ["sacct", "-X", "--noheader", "--parsable2", form, "-j", ",".join(jobs)]
    states = {}
    for line in (_call(command) or "").splitlines():
        job, state, exit_code, nodes = [*line.split("|", 3), "", "", ""][:4]
        states[job] = SlurmState(state.partition(" ")[0], "", nodes, _exit_code(exit_code))  # "CANCELLED by 1000"
    return {job: states[job] for job in jobs if job in states}


def scancel(jobs: list[str]) -> None:
    """Cancel jobs; those that have ended are ignored. Raises `SlurmError` if Slurm does not answer."""
    if not jobs:
        return
    try:
        subprocess.run(["scancel", *jobs], timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SlurmError(f"job(s) {', '.join(jobs)} could not be cancelled: {error}") from None


def sbatch_error(text: str) -> str | None:
    """What sbatch rejects in a batch text regardless of the cluster's load, e.g. an unknown partition.

    None if it accepts the text, does not answer, or only lacks nodes at the moment.
    """
    try:
        result = subprocess.run(
            ["sbatch", "--test-only"], input=text, capture_output=True, text=True, errors="replace", timeout=SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    wrong = re.findall(r"^.*(?:nvalid|unrecognized|ambiguous).*$", result.stderr, re.MULTILINE)
    return wrong[-1].removeprefix("sbatch: ") if result.returncode and wrong else None


def _exit_code(text: str) -> int:
    """Of Slurm's CODE:SIGNAL; 128 + number after a signal."""
    code, number = (int(part) if part.isdecimal() else 0 for part in [*text.split(":"), ""][:2])
    return 128 + number if number else code


def _squeue(jobs: list[str]) -> str:
    command = ["squeue", "--states=all", "--array", "--noheader", "--format=%i|%T|%r|%N", f"--jobs={','.join(jobs)}"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS)
    except OSError:
        raise SlurmError("no Slurm on this machine (squeue is not on the path); ask on a login node") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"Slurm did not answer within {SECONDS} s; try again later") from None
    if result.returncode and "Invalid job id" not in result.stderr:  # which means that it knows none of them any more
        raise SlurmError(f"Slurm does not answer: {' '.join(result.stderr.split())}")
    return result.stdout


def _call(command: list[str], seconds: float = SECONDS) -> str | None:
    """Output of a command, None if it failed, is missing or did not answer in time."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=seconds)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout if result.returncode == 0 else None
