"""Submitit's executors for jobs with given settings, and the sbatch text they submit."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import submitit
from submitit.slurm.slurm import SlurmExecutor

from slurm.settings import JobSettings

ALWAYS = {
    "requeue": True,
    "kill-on-invalid-dep": "yes",  # otherwise a job whose dependency failed waits for ever
}
MAX_TIMEOUTS = 1_000_000  # no limit of submitit's: slurm.jobs counts restarts without progress


class _TextExecutor(SlurmExecutor):
    """Only generates the text, so it needs no Slurm."""

    @classmethod
    def affinity(cls) -> int:
        return 1


def slurm_executor(folder: Path, settings: JobSettings, name: str, dependency: str) -> submitit.AutoExecutor:
    """The executor that submits jobs with these settings; several in one call become an array."""
    executor = submitit.AutoExecutor(
        folder, cluster="slurm", slurm_max_num_timeout=MAX_TIMEOUTS, slurm_python=settings.python
    )
    parameters = _parameters(settings, name, dependency)
    executor.update_parameters(**{f"slurm_{key}": value for key, value in parameters.items()})
    return executor


def local_executor(folder: Path, settings: JobSettings) -> submitit.AutoExecutor:
    """The executor that starts processes on this machine."""
    executor = submitit.AutoExecutor(folder, cluster="local", local_max_num_timeout=MAX_TIMEOUTS)
    executor.update_parameters(
        timeout_min=settings.time,
        gpus_per_node=settings.gpus,
        tasks_per_node=settings.tasks,
        stderr_to_stdout=True,
    )
    return executor


def sbatch_text(folder: Path, settings: JobSettings, name: str, dependency: str, count: int = 1) -> str:
    """What is submitted for a job, or an array of `count` jobs: identical to the file that submitit writes."""
    executor = _TextExecutor(folder, MAX_TIMEOUTS, python=settings.python)
    executor.update_parameters(**_parameters(settings, name, dependency))
    if count > 1:
        executor.parameters["map_count"] = count
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def _parameters(settings: JobSettings, name: str, dependency: str) -> dict[str, Any]:
    """Parameters of submitit's Slurm executor; None, "" and [] are left out."""
    environment = [f"export {key}={shlex.quote(value)}" for key, value in settings.environment.items()]
    extra = {key: True if value == "true" else value for key, value in settings.sbatch.items()}
    parameters = {
        "job_name": name,
        "partition": settings.partition,
        "account": settings.account,
        "qos": settings.qos,
        "constraint": settings.constraint,
        "nodes": settings.nodes,
        "ntasks_per_node": settings.tasks,
        "gres": settings.gres,
        "gpus_per_node": None if settings.gres else settings.gpus_per_node or None,
        "cpus_per_task": settings.cpus_per_task,
        "mem": settings.memory,
        "time": settings.time,
        "signal_delay_s": settings.signal_delay,
        "array_parallelism": settings.array_parallelism,
        "dependency": dependency,
        "setup": environment + settings.setup,
        "stderr_to_stdout": True,
        "additional_parameters": ALWAYS | extra,
        # a dead process ends the others; since 22.05 srun does not inherit the CPUs from sbatch
        "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={settings.cpus_per_task}", *settings.srun],
    }
    return {key: value for key, value in parameters.items() if value not in (None, "", [])}
