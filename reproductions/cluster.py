"""Tasks as jobs of a cluster, and a last job that builds the report from whatever has finished."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from imagefolder.distributed import barrier, join_processes
from imagefolder.environment import tune_allocator, use_threads
from imagefolder.interruption import request_stop
from leaderboard.report import build_report
from leaderboard.reported import REPORTED_CSV
from leaderboard.store import read_records
from reproductions.executor import Task, consequences
from reproductions.recording import has_record, record_unfinished
from reproductions.row import Row
from reproductions.scales import Scale
from reproductions.stages import run_evaluation, run_generator, run_tokenizer
from reproductions.timing_stage import run_timing
from slurm.journal import Journal
from slurm.launch import processes_of, submit
from slurm.stage import Stage
from slurm.status import StageStatus, read_status

TRAININGS = (run_tokenizer, run_generator)  # these can be watched, and asked to save their state and stop


class Cluster:
    """Collects tasks, which count as ended when they are handed over: from then on the cluster resolves their needs,
    and the report's job records what became of them.

    Args:
        rows: all rows of the report.
        profile, settings: as for `slurm.launch.submit`.
        prepare: called once everything has been checked, right before the jobs are submitted.
    """

    has_room = True

    def __init__(
        self,
        table: str,
        rows: Sequence[Row],
        *,
        profile: str | None,
        settings: tuple[str, ...],
        dry_run: bool = False,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self._table, self._rows, self._tasks = table, list(rows), list[Task]()
        self._profile, self._settings, self._dry_run, self._prepare = profile, settings, dry_run, prepare
        self._handed_over = 0

    def start(self, task: Task) -> None:
        self._tasks.append(task)

    def ended(self) -> Iterator[tuple[str, str | None]]:
        new, self._handed_over = self._tasks[self._handed_over :], len(self._tasks)
        for task in new:
            yield task.name, None

    def finish(self) -> dict[str, str]:
        stages = [_stage(task) for task in self._tasks]
        row = self._rows[0]
        report = Stage(
            name=f"report {self._table} {row.shared.name}",
            function=finish_rows,
            arguments=(self._rows, [Task(task.name, task.function, (), task.after) for task in self._tasks]),
            after_any=tuple(stage.name for stage in stages),
            kind="small",
        )
        return submit(
            row.output,
            [*stages, report],
            profile=self._profile,
            overrides=self._settings,
            dry_run=self._dry_run,
            fresh=True,
            prepare=self._prepare,
        )

    def abort(self) -> None:
        """Nothing has been submitted."""


def processes_of_trainings(scale: Scale, profile: str | None, settings: tuple[str, ...]) -> int:
    """How many processes a training at a scale has on a cluster."""
    return processes_of(profile, settings, _kind(scale, trains=True))


def run_stage(function: Callable[..., None], arguments: tuple[Any, ...], threads: int | None) -> None:
    """The function of a job: a stage, in all processes of the job, with the scale's number of threads.

    A row is timed by the job that evaluates it.
    """
    tune_allocator()
    if threads is not None:
        use_threads(threads)
    join_processes()
    function(*arguments)
    if function is run_evaluation:
        run_timing(*arguments)
    barrier()  # no process leaves while another still needs it


def finish_rows(rows: list[Row], tasks: list[Task]) -> None:
    """Record the rows that did not finish, with the reason, and build the report from all records."""
    if os.environ.get("RANK", "0") != "0":
        return
    output = rows[0].output
    statuses = read_status(Journal(output), strict=False)  # if Slurm does not answer, fewer reasons are known
    own = {task.name: _why(statuses.get(task.name)) for task in tasks if not _depends(statuses.get(task.name))}
    failed = consequences(tasks, {name: why for name, why in own.items() if why is not None})
    for row in rows:
        if not has_record(row):
            record_unfinished(row, "failed", failed.get(row.full_name, f"{row.full_name} left no record"))
    for path in build_report(output, read_records(output / "records"), REPORTED_CSV):
        print(path)


def _stage(task: Task) -> Stage:
    row: Row = task.arguments[0]
    trains = task.function in TRAININGS
    progress, steps = _progress(task.function, row)
    return Stage(
        name=task.name,
        function=run_stage,
        arguments=(task.function, task.arguments, row.scale.threads),
        after=task.after,
        kind=_kind(row.scale, trains),
        request_stop=request_stop if trains else None,
        progress=progress,
        steps=steps,
    )


def _kind(scale: Scale, trains: bool) -> str:
    """Kind of a job in the profile. A scale that sets the number of threads is meant for CPUs."""
    return "small" if scale.threads is not None else "training" if trains else "evaluation"


def _progress(function: Callable[..., None], row: Row) -> tuple[Path | None, int | None]:
    """Where a training can be watched, and its number of steps; other stages have neither."""
    if function is run_tokenizer:
        return row.tokenizer.folder, row.training.steps
    if function is run_generator and row.generator is not None:
        return row.generator.folder, row.scale.generator_training.steps
    return None, None


def _depends(status: StageStatus | None) -> bool:
    """Whether a stage did not run because of another one."""
    return status is not None and status.blocked_by is not None


def _why(status: StageStatus | None) -> str | None:
    """Why a stage failed, and where its log is; None: it finished."""
    if status is None:
        return "it was never submitted"
    if status.state == "finished":
        return None
    what = [status.state] if status.state != "failed" or not status.reason else []
    log = f" (log: {status.log})" if status.log else ""
    return ": ".join([*what, *filter(None, [status.reason])]) + log
