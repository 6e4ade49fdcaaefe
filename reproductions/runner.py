"""The command line every reproduction script shares: plan, run, record, report."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from rich.table import Table

from imagefolder.data.digits import digits
from imagefolder.data.folder import image_folder
from imagefolder.data.images import DataSplits
from imagefolder.errors import InputError
from imagefolder.training.progress import console
from imagefolder.zoo import TOKENIZERS
from leaderboard.report import build_report
from leaderboard.store import RecordError, read_records
from leaderboard.tables import measured_frame
from reproductions.recipe import SCALES, Recipe, Scale, on_this_machine
from reproductions.scheduler import Task, run_tasks
from reproductions.stages import (
    Job,
    generator_settings,
    has_record,
    is_done,
    is_proxy_done,
    record_name,
    run_generator,
    run_tokenizer,
    tokenizer_settings,
    train_extractor,
    train_teacher,
    write_failure,
)

REPORTED_CSV = Path(__file__).parent / "reported" / "imagenet256.csv"

MIN_TEST_IMAGES = 10  # the inception score alone takes ten splits

Rows = Callable[[str, int], list[Recipe]]  # (scale, number of classes) -> rows in the table's order


@dataclass(frozen=True)
class Options:
    """Train and evaluate the rows of a table and build the report. Running it again continues where it stopped."""

    rows: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ROW ...")] = ()
    """rows to run (default: all; see --list)"""
    scale: str | None = None
    """mini: embedded digits, CPU, minutes; small: any image folder, one GPU, hours (default: small with --data)"""
    data: Path | None = None
    """image folder: DIR/CLASS/IMAGE, or DIR/train and DIR/val with class folders"""
    seed: int = 0
    """seed of training and sampling"""
    seeds: Annotated[tuple[int, ...], tyro.conf.arg(metavar="SEED ...")] = ()
    """several seeds instead of one; the report shows their spread"""
    output: Path = Path("runs")
    """folder for models, records, pictures and the report"""
    fresh: bool = False
    """redo the chosen rows from the beginning"""
    skip_corrupt: bool = False
    """leave unreadable training images out instead of stopping"""
    list: bool = False
    """list the rows and exit"""
    dry_run: bool = False
    """show what would be done and exit"""


@dataclass(frozen=True)
class Plan:
    """One row with one seed, and which of its stages are finished already."""

    job: Job
    recipe: Recipe
    order: int
    tokenizer_shared: bool
    tokenizer_done: bool
    generator_done: bool
    recorded: bool


def main(table: str, title: str, rows: Rows) -> None:
    """Entry point of a script; exits with 0, 1 (a row failed), 2 (bad input) or 130 (interrupted)."""
    options = tyro.cli(Options, prog=f"{table}.py", description=f"{title}. {Options.__doc__}")
    try:
        sys.exit(run(table, title, rows, options))
    except (InputError, RecordError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command continues from the last saved state", file=sys.stderr)
        sys.exit(130)


def run(table: str, title: str, rows: Rows, options: Options) -> int:
    """Do what the options say; returns the exit code for finished (0) or failed (1) rows."""
    name = options.scale or ("small" if options.data else "mini")
    if name not in SCALES:
        raise InputError(f"unknown scale {name!r}; known: {', '.join(SCALES)}")
    chosen = _choose(rows(name, 1), options.rows)
    if options.list:
        _print_rows(title, rows(name, 1))
        return 0
    splits = load_data(name, options, TOKENIZERS[chosen[0].tokenizer.name].image_size)
    every = rows(name, len(splits.classes))
    scale = on_this_machine(SCALES[name])
    plans = _plan(table, every, {recipe.row for recipe in chosen}, splits, scale, options)
    _print_plan(title, plans, options.output)
    if options.dry_run:
        return 0
    _require_writable(options.output)
    if options.fresh:
        for plan in plans:
            _remove(plan.job, plan.recipe)
    failed = _run_plans(plans)
    records = read_records(options.output / "records")
    paths = build_report(options.output, records, REPORTED_CSV)
    _print_results(table, name, options.output)
    console.print(f"report: {paths[0]}")
    for row, reason in failed.items():
        print(f"error: {row}: {reason}", file=sys.stderr)
    return 1 if failed else 0


def load_data(scale: str, options: Options, image_size: int) -> DataSplits:
    """The images of a scale: the digits at mini, a folder otherwise."""
    if scale == "mini":
        if options.data is not None:
            raise InputError("scale mini has its own embedded data; use --scale small with --data")
        return digits(image_size)
    if options.data is None:
        raise InputError(f"scale {scale} needs --data DIR, an image folder with one folder per class")
    splits = image_folder(options.data, image_size, options.skip_corrupt)
    if len(splits.test) < MIN_TEST_IMAGES:
        raise InputError(
            f"{options.data}: {len(splits.test)} test images are too few for any metric, which needs at least "
            f"{MIN_TEST_IMAGES} (a fifth of every class, or the images of val/)"
        )
    return splits


def _choose(rows: list[Recipe], names: tuple[str, ...]) -> list[Recipe]:
    unknown = [name for name in names if name not in {recipe.row for recipe in rows}]
    if unknown:
        known = ", ".join(recipe.row for recipe in rows)
        raise InputError(f"unknown row(s) {', '.join(unknown)}; known: {known}")
    return [recipe for recipe in rows if not names or recipe.row in names]


def _require_writable(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe = output / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"output folder {output} cannot be written ({error.strerror}); choose another --output"
        ) from None


def _plan(
    table: str, every: list[Recipe], chosen: set[str], splits: DataSplits, scale: Scale, options: Options
) -> list[Plan]:
    command = shlex.join(["python", *sys.argv])
    users = [recipe.tokenizer.name for recipe in every]
    plans = []
    for seed in options.seeds or (options.seed,):
        job = Job(table, options.output, scale, splits, seed, command)
        for order, recipe in enumerate(every):
            if recipe.row not in chosen:
                continue
            keep = not options.fresh
            tokenizer = keep and is_done(job.tokenizer(recipe), tokenizer_settings(job, recipe))
            generator = tokenizer and is_done(job.generator(recipe), generator_settings(job, recipe))
            recorded = generator and has_record(job, recipe)
            shared = users.count(recipe.tokenizer.name) > 1
            plans.append(Plan(job, recipe, order, shared, tokenizer, generator, recorded))
    return plans


def _remove(job: Job, recipe: Recipe) -> None:
    """Forget a row's own stages and record (the proxies stay: they are what makes numbers comparable)."""
    for folder in (job.tokenizer(recipe), job.generator(recipe)):
        shutil.rmtree(folder, ignore_errors=True)
    (job.output / "records" / f"{record_name(job, recipe)}.json").unlink(missing_ok=True)


def _run_plans(plans: list[Plan]) -> dict[str, str]:
    """Run what is not finished; returns the reason of every failed row and writes its record."""
    tasks: dict[str, Task] = {}
    for plan in plans:
        if plan.recorded:
            continue
        job, recipe = plan.job, plan.recipe
        needs = []
        if not is_proxy_done(job.extractor, job):
            tasks.setdefault("extractor", Task("extractor", train_extractor, (job,)))
            needs.append("extractor")
        if not plan.tokenizer_done:
            before = []
            if recipe.tokenizer.semantic != "none" and not job.scale.pretrained:
                name = f"teacher of {recipe.tokenizer.name}"
                if not is_proxy_done(job.teacher(recipe), job):
                    tasks.setdefault(name, Task(name, train_teacher, (job, recipe)))
                    before.append(name)
            name = f"tokenizer {recipe.tokenizer.name} seed {job.seed}"
            tasks.setdefault(name, Task(name, run_tokenizer, (job, recipe), tuple(before)))
            needs.append(name)
        arguments = (job, recipe, plan.order, plan.tokenizer_shared)
        tasks[_name(plan)] = Task(_name(plan), run_generator, arguments, tuple(needs))
    if not tasks:
        return {}
    threads = plans[0].job.scale.threads
    jobs = min(len(tasks), (os.cpu_count() or 1) // threads) if threads else 1
    # What later tasks wait for starts first: proxies and tokenizers before rows
    order = sorted(tasks.values(), key=lambda task: (bool(task.after), task.function is run_generator))
    failed = run_tasks(order, max(jobs, 1), threads)
    reasons = {}
    for plan in plans:
        if _name(plan) in failed:
            reasons[_name(plan)] = failed[_name(plan)]
            write_failure(plan.job, plan.recipe, plan.order, failed[_name(plan)])
    return reasons


def _name(plan: Plan) -> str:
    return f"{plan.recipe.row} seed {plan.job.seed}"


def _print_rows(title: str, rows: list[Recipe]) -> None:
    table = Table(title=title, title_justify="left")
    for column in ("row", "system", "what it is"):
        table.add_column(column)
    for recipe in rows:
        models = f"{recipe.tokenizer.name}, {recipe.generator.name}"
        table.add_row(recipe.row, recipe.label, f"{recipe.note} ({models})")
    console.print(table)


def _print_plan(title: str, plans: list[Plan], output: Path) -> None:
    job = plans[0].job
    splits, scale = job.splits, job.scale
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
    console.print(
        f"{title}, scale {scale.name}, on {device}\n"
        f"data {splits.name}: {len(splits.train)} training and {len(splits.test)} test images, "
        f"{len(splits.classes)} classes, {splits.image_size} px; output {output}"
    )
    if scale.threads is None and not torch.cuda.is_available():
        console.print("no GPU found: a scale meant for one will take very long on this machine")
    table = Table()
    for column in ("row", "seed", "tokenizer", "generator", "evaluation"):
        table.add_column(column)
    for plan in plans:
        states = (plan.tokenizer_done, plan.generator_done, plan.recorded)
        steps = (f"train {scale.tokenizer_training.steps} steps", f"train {scale.generator_training.steps} steps")
        cells = [
            "done" if done else text for done, text in zip(states, (*steps, f"{scale.samples} samples"), strict=True)
        ]
        table.add_row(plan.recipe.row, str(plan.job.seed), *cells)
    console.print(table)


def _print_results(table: str, scale: str, output: Path) -> None:
    """The main numbers of the table on the terminal; the report has all of them."""
    records = [r for r in read_records(output / "records") if (r.table, r.scale) == (table, scale)]
    shown = Table(box=None, pad_edge=False)
    columns = ("proxy-rFID", "PSNR", "proxy-gFID", "proxy-IS", "class accuracy", "positions")
    for column in ("row", "seeds", *columns):
        shown.add_column(column, justify="left" if column == "row" else "right", no_wrap=column.startswith("proxy"))
    for _, row in measured_frame(records).iterrows():
        values = [f"{row[column]:.4g}" if column in row and row[column] == row[column] else "-" for column in columns]
        shown.add_row(row["row"], str(row["n_seeds"]), *values)
    console.print(shown)
