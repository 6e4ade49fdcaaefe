"""What Slurm says of jobs, without trusting accounting: squeue, then scontrol, then sacct, each with a time limit."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from slurm.stage import SlurmError

SECONDS = 20  # a busy controller answers late, a dead one never
DEAD = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}
DEAD |= {"REVOKED", "TIMEOUT"}


@dataclass(frozen=True)
class JobState:
    """State of a job in Slurm's words, e.g. RUNNING, with its reason, nodes and exit code as far as known."""

    state: str
    reason: str = ""
    nodes: str = ""
    exit_code: int = 0
    """of the job's script; 128 + number for a signal"""
    preempted: bool = False
    """Slurm has chosen it to make room and will end it soon"""

    @property
    def live(self) -> bool:
        """Whether the job waits, runs or is just ending."""
        return self.state not in DEAD


def slurm_answers() -> bool:
    """Whether there is a cluster to submit to."""
    return _call(["sinfo", "--noheader", "--format=%P"], 5) is not None


def job_states(jobs: Iterable[str]) -> dict[str, JobState]:
    """State by job id ("12", "12_3"), of those that Slurm still remembers.

    Raises:
        SlurmError: Slurm does not answer, so that nothing can be said.
    """
    jobs = list(jobs)
    if not jobs:
        return {}
    found: dict[str, JobState] = {}
    for line in _squeue(jobs).splitlines():
        job, state, reason, nodes = [*line.split("|", 3), "", "", ""][:4]
        found[job] = JobState(state, "" if reason == "None" else reason, nodes)
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


def show_job(job: str) -> JobState | None:
    """State of one job by scontrol, None if it is forgotten or scontrol does not answer."""
    text = _call(["scontrol", "--oneliner", "show", "job", job])
    values = dict(re.findall(r"(\w+)=(\S*)", text or ""))
    if "JobState" not in values:
        return None
    return JobState(
        values["JobState"],
        "" if values.get("Reason") == "None" else values.get("Reason", ""),
        values.get("NodeList", "").replace("(null)", ""),
        _exit_code(values.get("ExitCode", "")),
        preempted=values.get("PreemptTime", "None") not in ("None", "Unknown", "N/A"),
    )


def accounted(jobs: list[str]) -> dict[str, JobState]:
    """States by accounting, {} where none is kept."""
    command = [
        "sacct",
        "-X",
        "--noheader",
        "--parsable2",
        "--format=JobID,State,ExitCode,NodeList",
        "-j",
        ",".join(jobs),
    ]
    states = {}
    for line in (_call(command) or "").splitlines():
        job, state, exit_code, nodes = [*line.split("|", 3), "", "", ""][:4]
        states[job] = JobState(state.partition(" ")[0], "", nodes, _exit_code(exit_code))  # "CANCELLED by 1000"
    return {job: states[job] for job in jobs if job in states}


def scancel(jobs: list[str]) -> None:
    """End jobs. Raises `SlurmError` if Slurm does not answer; those that have ended already do not matter."""
    if not jobs:
        return
    try:
        subprocess.run(["scancel", *jobs], timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SlurmError(f"job(s) {', '.join(jobs)} could not be cancelled: {error}") from None


def wrong_to_sbatch(text: str) -> str | None:
    """What sbatch finds wrong with a batch text whatever the state of the cluster, e.g. a partition that there is not.

    None where it finds nothing, does not answer, or only lacks nodes at the moment.
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
    """Of Slurm's CODE:SIGNAL; 128 + number for a signal."""
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
    if result.returncode and "Invalid job id" not in result.stderr:  # which says that none of them is remembered
        raise SlurmError(f"Slurm does not answer: {' '.join(result.stderr.split())}")
    return result.stdout


def _call(command: list[str], seconds: float = SECONDS) -> str | None:
    """Output of a command, None if it failed, is missing or did not answer."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=seconds)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout if result.returncode == 0 else None
