"""The command line every reproduction script shares: plan, run, record, report."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from imagefolder.config import Execution
from imagefolder.data.order import pieces_per_process
from imagefolder.distributed import barrier, gather_objects, is_distributed, is_main, join_processes, world_size
from imagefolder.errors import InputError, one_line, reason
from imagefolder.progress import console
from leaderboard.record import Dataset
from leaderboard.report import build_report
from leaderboard.store import RecordError, read_records
from reproductions.aside import remove_aside, set_aside
from reproductions.cluster import processes_of_trainings, submit_rows
from reproductions.evaluation import missing_weights, write_unfinished
from reproductions.graph import Plan, graph, plan
from reproductions.job import REPORTED_CSV, Job, Source, read_splits
from reproductions.recipe import SCALES, Recipe, Scale, on_this_machine
from reproductions.scheduler import run_here, run_tasks
from reproductions.systems import SYSTEMS
from reproductions.tables import print_plan, print_results, print_rows
from slurm import SlurmError, redacted
from slurm.launch import require_plain

MIN_TEST_IMAGES = 10  # the inception score alone takes ten splits

Rows = Callable[[str, int], list[Recipe]]  # (scale, number of classes) -> rows in the table's order


@dataclass(frozen=True)
class Options:
    """Train and evaluate the rows of a table and build the report. Running it again continues where it stopped."""

    rows: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ROW ...")] = ()
    """rows to run (default: all; see --list)"""
    scale: str | None = None
    """mini: embedded digits, CPU, minutes; small: any image folder, one GPU, hours (default: small with --data); full:
    ImageNet as in the paper, with published weights"""
    data: Path | None = None
    """images: DIR/CLASS/IMAGE, or DIR/train and DIR/val with class folders or tar shards"""
    seed: int = 0
    """seed of training and sampling"""
    seeds: Annotated[tuple[int, ...], tyro.conf.arg(metavar="SEED ...")] = ()
    """several seeds instead of one; the report shows their spread"""
    output: Path = Path("runs")
    """folder for models, records, pictures and the report"""
    fresh: bool = False
    """redo the chosen rows from the beginning; earlier models and records go when the new ones are there"""
    skip_corrupt: bool = False
    """leave unreadable training images out instead of stopping"""
    tokenizer: str | None = None
    """evaluate these weights instead of training (a file, a folder or hf://owner/repo): with --rows ROW, else the first
    row"""
    generator: str | None = None
    """the generator's weights; without them --tokenizer evaluates reconstruction alone"""
    num_samples: int | None = None
    """samples, and test images at most, to evaluate (default: all test images, and as many samples as the scale says:
    50,000 at full)"""
    views: int | None = None
    """augmented views of every training image that are encoded once for the generator (default: as the scale says, 10
    at full); 0: a new crop in every epoch, encoded as it comes, as the authors train"""
    micro_batch: int = 0
    """largest batch of a GPU at a time while training, the rest by gradient accumulation (0: all at once)"""
    activation_checkpointing: bool = False
    """recompute activations in the backward pass: less memory, about a third more work"""
    compile: bool = False
    """torch.compile the models while training"""
    submit: bool = False
    """hand the rows to a cluster, stage by stage (slurm/README.md)"""
    profile: str | None = None
    """with --submit: name or file of the cluster's profile (default: your own, else Slurm if it answers, else local)"""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE ...")] = ()
    """with --submit: values of the profile, e.g. partition=gpu training.nodes=2"""
    list: bool = False
    """list the rows and exit"""
    dry_run: bool = False
    """show what would be done, with --submit every job's text, and exit"""


def main(table: str, title: str, rows: Rows, mini: Scale | None = None) -> None:
    """Entry point of a script; exits with 0, 1 (a row failed), 2 (bad input) or 130 (interrupted).

    Args:
        mini: budget of the table's rows at scale mini, where it has its own.
    """
    options = tyro.cli(Options, prog=f"{table}.py", description=f"{title}. {Options.__doc__}")
    try:
        sys.exit(run(table, title, rows, options, SCALES | ({} if mini is None else {"mini": mini})))
    except (InputError, RecordError, SlurmError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except MemoryError:
        print("error: out of memory; the same command continues where there is more", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command continues from the last saved state", file=sys.stderr)
        sys.exit(130)


def run(table: str, title: str, rows: Rows, options: Options, scales: dict[str, Scale] = SCALES) -> int:
    """Do what the options say; returns the exit code for finished (0) or failed (1) rows.

    Started by torchrun, all processes work on one stage after the other.
    """
    name = options.scale or ("small" if options.data else "mini")
    if name not in scales:
        raise InputError(f"unknown scale {name!r}; known: {', '.join(scales)}")
    chosen = _choose(rows(name, 1), options)
    if options.list:
        print_rows(title, rows(name, 1))
        return 0
    if not options.submit and (options.profile or options.set):
        raise InputError("--profile and --set say how jobs are submitted; add --submit")
    if options.submit:
        options = replace(options, output=options.output.resolve())  # jobs may start in another folder
        require_plain(options.output)
    join_processes()
    plans = make_plans(table, rows, chosen, scales[name], options)
    if is_main():
        print_plan(title, plans, options.output)
    missing = {row.name: why for row in plans if (why := missing_weights(row.job, row.recipe)) is not None}
    missing = gather_objects(missing)[0]
    possible = [row for row in plans if row.name not in missing]
    if options.dry_run:
        if options.submit:
            submit_rows(table, possible, options.profile, options.set, dry_run=True)
        return 0
    if is_main():
        _require_writable(options.output)
        for row in plans:
            if row.name in missing:
                console.print(f"{row.name}: not run: {missing[row.name]}")
                write_unfinished(row.job, row.recipe, row.order, "not run", missing[row.name])
    barrier()

    def prepare() -> None:
        """What cannot be taken back, once all else has been checked."""
        for row in possible:
            set_aside(row.job, row.recipe)

    if options.submit and graph(possible):
        fresh = prepare if options.fresh else None
        return 1 if submit_rows(table, possible, options.profile, options.set, prepare=fresh) else 0
    if options.fresh:
        prepare()
    failed = _run_plans(possible)
    if is_main():
        for row, why in failed.items():
            print(f"error: {row}: {why}", file=sys.stderr)
        paths = build_report(options.output, read_records(options.output / "records"), REPORTED_CSV)
        print_results(table, name, options.output)
        console.print(f"report: {paths[0]}")
    return 1 if failed else 0


def make_plans(table: str, rows: Rows, chosen: list[str], scale: Scale, options: Options) -> list[Plan]:
    """The chosen rows with every seed, and what is left to do for each."""
    if options.num_samples is not None:
        if options.num_samples < MIN_TEST_IMAGES:
            raise InputError(f"--num-samples must be at least {MIN_TEST_IMAGES}, not {options.num_samples}")
        scale = replace(scale, samples=options.num_samples)
    if options.views is not None:
        if options.views < 0:
            raise InputError(f"--views must be 0 (none encoded beforehand) or more, not {options.views}")
        scale = replace(scale, views=options.views)
    seeds = tuple(dict.fromkeys(options.seeds or (options.seed,)))
    for seed in seeds:
        if not -(2**63) <= seed < 2**63:
            raise InputError(f"seed {seed} has more than 64 bits; choose a smaller one")
    processes = world_size()
    if options.submit:
        processes = processes_of_trainings(scale, options.profile, options.set)
    if options.tokenizer is None:  # what does not divide is refused before anything is trained
        for training in (scale.tokenizer_training, scale.generator_training):
            pieces_per_process(training.batch_size, processes, options.micro_batch)
    source = data_source(scale.name, options)
    read_splits.cache_clear()  # images may have changed since an earlier run in this process
    if is_main():
        read_splits(source)  # checks images that were not checked before; the others then find them in the index
    barrier()
    splits = read_splits(source)
    if len(splits.test) < MIN_TEST_IMAGES:
        raise InputError(
            f"{source.path}: {len(splits.test)} test images are too few for any metric, which needs at least "
            f"{MIN_TEST_IMAGES} (a fifth of every class, or the images of val/)"
        )
    dataset = Dataset(
        name=splits.name,
        sha256=splits.sha256,
        n_train=len(splits.train),
        n_test=len(splits.test),
        classes=len(splits.classes),
        image_size=splits.image_size,
        left_out=splits.left_out,
    )
    every = rows(scale.name, dataset.classes)
    users = [recipe.tokenizer.name for recipe in every]
    plans = []
    for seed in seeds:
        job = Job(
            table,
            options.output,
            on_this_machine(scale),
            source,
            dataset,
            seed,
            one_line(shlex.join(["python", *redacted(sys.argv)])),
            Execution(options.micro_batch, options.activation_checkpointing, options.compile),
            options.tokenizer,
            options.generator,
            options.num_samples,
            processes,
        )
        for order, recipe in enumerate(every):
            if recipe.row in chosen:
                shared = users.count(recipe.tokenizer.name) > 1
                plans.append(plan(job, _given(recipe, options), order, shared, options.fresh))
    return gather_objects(plans)[0]  # what one process sees finished on a shared disk, another may not see yet


def data_source(scale: str, options: Options) -> Source:
    """Where the images of a scale come from: the digits at mini, a folder otherwise."""
    image_size = SYSTEMS[scale].tokenizer.image_size
    if scale == "mini":
        if options.data is not None:
            raise InputError("scale mini has its own embedded data; use --scale small or full with --data")
        return Source(None, image_size)
    if options.data is None:
        raise InputError(f"scale {scale} needs --data DIR, images with one folder per class")
    return Source(options.data.resolve(), image_size, options.skip_corrupt, options.output / "data-index")


def _choose(rows: list[Recipe], options: Options) -> list[str]:
    """Names of the rows to run."""
    known = [recipe.row for recipe in rows]
    unknown = [name for name in options.rows if name not in known]
    if unknown:
        raise InputError(f"unknown row(s) {', '.join(unknown)}; known: {', '.join(known)}")
    if options.tokenizer is None:
        if options.generator is not None:
            raise InputError("--generator needs --tokenizer, the weights of the tokenizer whose tokens it predicts")
        return [name for name in known if not options.rows or name in options.rows]
    if len(options.rows) > 1:
        raise InputError("--tokenizer gives the weights of one row; name one with --rows")
    return list(options.rows) or known[:1]


def _given(recipe: Recipe, options: Options) -> Recipe:
    """The row as it is, or with given weights instead of trained ones: a row of its own."""
    if options.tokenizer is None:
        return recipe
    weights = [path for path in (options.tokenizer, options.generator) if path is not None]
    note = f"given weights, not trained here: {', '.join(weights)}"
    generator = recipe.generator if options.generator is not None else None
    measures = tuple(m for m in recipe.measures if m != "generation" or generator is not None)
    row, label = f"{recipe.row}-given", f"{recipe.label} (given weights)"
    return replace(recipe, row=row, label=label, note=note, generator=generator, measures=measures)


def _require_writable(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe = output / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"output folder {output} cannot be written ({error.strerror}); choose another --output"
        ) from None


def _run_plans(plans: list[Plan]) -> dict[str, str]:
    """Run what is not finished; returns the reason of every failed row and writes its record."""
    for row in plans:
        if row.recorded:  # by a run that was killed right after that
            remove_aside(row.job, row.recipe)
    tasks = gather_objects(graph(plans))[0]
    if not tasks:
        return {}
    threads = plans[0].job.scale.threads
    if is_distributed():
        failed = run_here(tasks)
    else:
        jobs = min(len(tasks), (os.cpu_count() or 1) // threads) if threads else 1
        failed = run_tasks(tasks, max(jobs, 1), threads)
    reasons = {row.name: failed[row.task] for row in plans if row.task in failed}
    for row in plans:
        if row.name in reasons:
            try:
                write_unfinished(row.job, row.recipe, row.order, "failed", reasons[row.name])
            except OSError as error:  # the disk may be full; why the row failed is said all the same
                reasons[row.name] += f"; its record cannot be written either: {reason(error)}"
    return reasons
