"""Rows on a cluster: the same stages as jobs, and a last one that builds the report from whatever has finished."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imagefolder.distributed import barrier, join_processes
from imagefolder.environment import use_threads
from imagefolder.interruption import request_stop
from leaderboard.report import build_report
from leaderboard.store import read_records
from reproductions.evaluation import write_unfinished
from reproductions.graph import Plan, graph
from reproductions.job import REPORTED_CSV, Job, has_record
from reproductions.recipe import Recipe, Scale, training_of
from reproductions.scheduler import Task
from reproductions.stages import run_generator, run_tokenizer
from slurm.journal import Journal
from slurm.launch import processes_of, submit
from slurm.stage import Stage
from slurm.status import StageStatus, read_status

TRAININGS = (run_tokenizer, run_generator)  # these can be watched, and asked to save their state and stop


def submit_rows(
    table: str,
    plans: list[Plan],
    profile: str | None,
    settings: tuple[str, ...],
    dry_run: bool = False,
    prepare: Callable[[], None] | None = None,
) -> dict[str, str]:
    """Hand what rows still need to a cluster; arguments and result as of `slurm.launch.submit`."""
    stages = [_stage(task) for task in graph(plans)]
    if not stages:
        print("everything is done already; python -m leaderboard builds the report")
        return {}
    everything = tuple(stage.name for stage in stages)
    job = plans[0].job
    name = f"report {table} {job.shared.name}"
    report = Stage(name, finish_rows, (plans,), after_any=everything, kind="small")
    return submit(job.output, [*stages, report], profile, settings, dry_run, fresh=True, prepare=prepare)


def processes_of_trainings(scale: Scale, profile: str | None, settings: tuple[str, ...]) -> int:
    """How many processes a training of a scale has on a cluster."""
    return processes_of(profile, settings, _kind(scale, trains=True))


def run_stage(function: Callable[..., None], arguments: tuple[Any, ...], threads: int | None) -> None:
    """What a job does: a stage, in as many processes as the job has, with the threads its scale asks for."""
    if threads is not None:
        use_threads(threads)
    join_processes()
    function(*arguments)
    barrier()  # none leaves while another still needs it


def finish_rows(plans: list[Plan]) -> None:
    """Record the rows that did not finish, with the reason, and build the report from all records."""
    if os.environ.get("RANK", "0") != "0":
        return
    output = plans[0].job.output
    statuses = read_status(Journal(output), strict=False)  # without Slurm's answer there are fewer reasons
    for row in plans:
        if not has_record(row.job, row.recipe):
            write_unfinished(row.job, row.recipe, row.order, "failed", _reason(row.task, statuses))
    for path in build_report(output, read_records(output / "records"), REPORTED_CSV):
        print(path)


def _stage(task: Task) -> Stage:
    progress, steps = _progress(task)
    scale = task.arguments[0].scale
    return Stage(
        task.name,
        run_stage,
        (task.function, task.arguments, scale.threads),
        task.after,
        kind=_kind(scale, trains=progress is not None),
        request_stop=None if progress is None else request_stop,
        progress=progress,
        steps=steps,
    )


def _kind(scale: Scale, trains: bool) -> str:
    """Kind of a job in the profile. A scale with a number of threads is one for CPUs."""
    return "small" if scale.threads is not None else "training" if trains else "evaluation"


def _progress(task: Task) -> tuple[Path | None, int | None]:
    """Where a training can be watched, and its number of steps; other stages have neither."""
    if task.function not in TRAININGS:
        return None, None
    job: Job = task.arguments[0]
    recipe: Recipe = task.arguments[1]
    if task.function is run_tokenizer:
        return job.tokenizer(recipe), training_of(recipe, job.scale).steps
    return job.generator(recipe), job.scale.generator_training.steps


def _reason(name: str, statuses: dict[str, StageStatus]) -> str:
    """Why a stage did not finish: its own reason, or that of the stage it waited for, and where the log is."""
    status = statuses.get(name)
    if status is None:
        return f"{name} was never submitted"
    for need in statuses:
        if status.state == "not run" and status.reason.startswith(f"{need} did not finish"):
            return f"{need}: {_reason(need, statuses)}"
    log = f" (log: {status.log})" if status.log else ""
    return f"{status.state}: {status.reason}{log}" if status.reason else f"{status.state}{log}"
