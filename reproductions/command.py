"""A script's run from its options to the report: plan, run what is left, record what failed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from imagefolder.data.batches import usable_cpus
from imagefolder.distributed import barrier, gather_objects, is_distributed, is_main, join_processes
from imagefolder.errors import reason
from imagefolder.evaluation.spaces import absent_spaces
from imagefolder.progress import console
from leaderboard.reported import REPORTED_CSV
from leaderboard.store import read_records
from reproductions.aside import remove_aside, set_aside
from reproductions.estimate import better_scale, estimate, print_estimate
from reproductions.executor import Here, Task, execute
from reproductions.graph import graph
from reproductions.options import Options
from reproductions.plan import RowPlan, missing_weights, plan_rows, require_writable
from reproductions.printing import print_plan, print_results
from reproductions.recipe import Table
from reproductions.recording import record_unfinished
from reproductions.together import Together
from reproductions.workers import Workers
from slurm.launch import require_plain


def run_table(table: Table, options: Options) -> int:
    """Do what the options ask for; returns the exit code for finished (0) or failed (1) rows.

    Under torchrun, all processes work on one stage after the other.

    Raises:
        InputError: the options, the data or the output folder cannot be used.
    """
    if options.submit:
        options = replace(options, output=options.output.resolve())  # jobs may start in another folder
        require_plain(options.output)
    join_processes()
    plans = plan_rows(table, options)
    possible = _without_missing_weights(plans, options)
    tasks = gather_objects(graph(possible))[0]
    if options.submit:  # jobs time the rows that they evaluate; those of earlier runs are not timed where this runs
        tasks = [task for task in tasks if not task.alone]
    if options.submit and tasks:
        if is_main():
            print_plan(table.title, plans, options.output)
            console.print("how long the jobs take depends on where they run; --dry-run there, without --submit, tells")
        return _submit(table, tasks, possible, options)
    way = way_here(tasks, plans[0].row.scale.threads)
    try:
        expected = estimate(tasks, way)
        advice = better_scale(table, options, expected, way)
    except BaseException:
        way.abort()
        raise
    if is_main():
        if expected is not None:
            console.print(expected.line if advice is None else advice)
        print_plan(table.title, plans, options.output)
        if any(not plan.recorded for plan in plans):
            for line in absent_spaces(plans[0].row.scale.published):
                console.print(line)
        if expected is not None and options.dry_run:
            print_estimate(plans, expected)
    if options.dry_run:
        way.finish()
        return 0
    from leaderboard.report import build_report  # pandas and charts: after the plan, while there is still memory

    if options.fresh:
        for plan in possible:
            set_aside(plan.row)
    failed = _run(tasks if expected is None else expected.tasks, possible, way)
    if is_main():
        for name, why in failed.items():
            print(f"error: {name}: {why}", file=sys.stderr)
        paths = build_report(options.output, read_records(options.output / "records"), REPORTED_CSV)
        print_results(plans[0].row)
        console.print(f"report: {paths[0]}")
    return 1 if failed else 0


def way_here(tasks: Sequence[Task], threads: int | None) -> Here:
    """Where tasks run on this machine: together with the processes of torchrun, or in as many worker processes as
    this process has cores for."""
    if is_distributed():
        return Together()
    number = min(len(tasks), usable_cpus() // threads) if threads else 1
    return Workers(max(number, 1), threads)


def _without_missing_weights(plans: list[RowPlan], options: Options) -> list[RowPlan]:
    """The rows that can run; unless this is a dry run, the others are recorded as not run."""
    missing = {plan.row.name: why for plan in plans if (why := missing_weights(plan.row)) is not None}
    missing = gather_objects(missing)[0]
    if is_main() and not options.dry_run:
        require_writable(options.output)
        for plan in plans:
            if plan.row.name in missing:
                console.print(f"{plan.row.name}: not run: {missing[plan.row.name]}")
                record_unfinished(plan.row, "not run", missing[plan.row.name])
    barrier()
    return [plan for plan in plans if plan.row.name not in missing]


def _run(tasks: list[Task], plans: list[RowPlan], way: Here) -> dict[str, str]:
    """Run the tasks here; returns the reason of every failed row, whose record is written."""
    for plan in plans:
        if plan.recorded:  # by a run that was killed right after that
            remove_aside(plan.row)
    reasons = execute(tasks, way)
    for task in tasks:
        if task.alone and task.name in reasons and not reasons.keys() & set(task.after):
            console.print(f"{task.name}: not possible: {reasons[task.name]}")  # the row has finished all the same
    failed = {}
    for row in (plan.row for plan in plans if plan.row.full_name in reasons):
        failed[row.name] = reasons[row.full_name]
        try:
            record_unfinished(row, "failed", failed[row.name])
        except OSError as error:  # the disk may be full; the reason is still reported
            failed[row.name] += f"; its record cannot be written either: {reason(error)}"
    return failed


def _submit(table: Table, tasks: list[Task], plans: list[RowPlan], options: Options) -> int:
    """Hand the tasks to a cluster, whose last job builds the report."""
    from reproductions.cluster import Cluster

    rows = [plan.row for plan in plans]

    def prepare() -> None:
        for row in rows:
            set_aside(row)

    cluster = Cluster(
        table.name,
        rows,
        profile=options.profile,
        settings=options.set,
        dry_run=options.dry_run,
        prepare=prepare if options.fresh and not options.dry_run else None,
    )
    return 1 if execute(tasks, cluster) else 0
