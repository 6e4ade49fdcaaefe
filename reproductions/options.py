"""The options that all scripts share, checked before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, NoReturn

import tyro

from imagefolder.cli import VERBATIM, command_line
from imagefolder.config import Logger
from imagefolder.errors import InputError
from reproductions.budget import with_budget
from reproductions.recipe import Recipe, Table
from reproductions.scales import Scale

MIN_TEST_IMAGES = 10  # the Inception score uses ten splits


@dataclass(frozen=True)
class Options:
    """Train and evaluate the rows of a table and build the report. Running it again resumes where it stopped."""

    rows: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ROW ...")] = ()
    """rows to run (default: all; see --list)"""
    scale: str | None = None
    """mini (default): 32 px, CPU, minutes; laptop: 64 px, CPU, an hour per row; small: 128 px, one GPU, hours; full:
    ImageNet as in the paper, with published weights"""
    data: str = "digits"
    """images: a built-in data set (digits, fashion, mnist, kmnist, cifar10, cifar100, svhn) or a path:
    a folder (DIR/CLASS/IMAGE, or DIR/train and DIR/val), .zip, .tar or .parquet file; docs/data.md has the layouts"""
    seed: int = 0
    """seed of training and sampling"""
    seeds: Annotated[tuple[int, ...], tyro.conf.arg(metavar="SEED ...")] = ()
    """several seeds instead of one; the report shows their spread and tests the claims. Five (0 1 2 3 4) are a good
    start: three decide only very clear claims, and fewer only those about sequence lengths"""
    output: Path = Path("runs")
    """folder for models, records, pictures and the report"""
    fresh: bool = False
    """redo the chosen rows from scratch; earlier models and records are removed once the new ones exist"""
    skip_corrupt: bool = False
    """leave unreadable training images out instead of stopping"""
    tokenizer_weights: str | None = None
    """evaluate these weights instead of training (a file, a folder or hf://owner/repo), as the tokenizer of the row
    given by --rows (default: the first row)"""
    generator_weights: str | None = None
    """the generator's weights; without them --tokenizer-weights evaluates reconstruction only"""
    num_samples: int | None = None
    """number of samples, and at most that many test images, to evaluate (default: all test images, and as many samples
    as the scale has: 50,000 at full)"""
    views: int | None = None
    """augmented views of every training image that are encoded once for the generator (default: the scale's, 10 at
    full); 0: a new crop every epoch, encoded on the fly, as the authors do"""
    budget: Annotated[tuple[str, ...], VERBATIM, tyro.conf.arg(metavar="FIELD=VALUE ...")] = ()
    """change the scale's budget: steps, batch_size, learning_rate (of both models; tokenizer_steps, generator_steps
    and so on for one), image_size, samples, proxy_steps; the rows of every budget have tables of their own"""
    micro_batch: int = 0
    """largest batch per GPU while training; larger ones use gradient accumulation; 0: no limit"""
    activation_checkpointing: bool = False
    """recompute activations in the backward pass: less memory, about a third more compute"""
    compile: bool = False
    """torch.compile the models while training"""
    logger: Logger = "tensorboard"
    """where the losses of trainings go; wandb and trackio need `pip install` of the same name"""
    submit: bool = False
    """submit the rows to a cluster, one job per stage (slurm/README.md)"""
    profile: str | None = None
    """with --submit: name or file of the cluster's profile (default: your own, else Slurm if it answers, else local)"""
    set: Annotated[tuple[str, ...], VERBATIM, tyro.conf.arg(metavar="KEY=VALUE ...")] = ()
    """with --submit: override values of the profile, e.g. partition=gpu training.nodes=2"""
    list: bool = False
    """list the rows and exit"""
    dry_run: bool = False
    """show what would be done and how long it would take here, with --submit the text of every job, and exit"""

    @property
    def all_seeds(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(self.seeds or (self.seed,)))


def run_script(table: Table, then: Callable[[Options], Table | None] | None = None) -> NoReturn:
    """The command line of a script; exits with 0, 1 (a row failed), 2 (bad input), 130 or 143 (interrupted).

    Args:
        then: called when all rows have finished, unless rows were named or jobs submitted. Returns the table with the
            rows that follow from their results, which run next; None if there are none.
    """

    def run(options: Options) -> int:
        scale = chosen_scale(table, options)
        if options.list:
            from reproductions.printing import print_rows

            print_rows(table.title, table.rows(scale, 1))
            return 0
        chosen_rows(table.rows(scale, 1), options)
        from imagefolder.training.loggers import require_logger

        require_logger(options.logger)
        from reproductions.command import run_table

        code = run_table(table, options)
        if code or then is None or options.rows or options.submit or options.dry_run or options.tokenizer_weights:
            return code
        options = replace(options, fresh=False)
        following = then(options)
        return code if following is None else run_table(following, options)

    command_line(run, prog=f"{table.name}.py", description=f"{table.title}. {Options.__doc__}")


def chosen_scale(table: Table, options: Options) -> Scale:
    """The scale to run at, with the budget of the options; `InputError` if it is unknown or does not fit the others."""
    name = options.scale or "mini"
    if name not in table.scales:
        raise InputError(f"unknown scale {name!r}; known: {', '.join(table.scales)}")
    scale = with_budget(table.scales[name], options.budget)
    if options.list:
        return scale
    if options.budget and options.tokenizer_weights is not None:
        raise InputError("--budget is for trainings; with --tokenizer-weights, --num-samples sets what is evaluated")
    if not options.submit and (options.profile or options.set):
        raise InputError("--profile and --set control how jobs are submitted; add --submit")
    if options.num_samples is not None and options.num_samples < MIN_TEST_IMAGES:
        raise InputError(f"--num-samples must be at least {MIN_TEST_IMAGES}, not {options.num_samples}")
    if options.views is not None and options.views < 0:
        raise InputError(f"--views must be 0 (encode on the fly) or more, not {options.views}")
    for seed in options.all_seeds:
        if not -(2**63) <= seed < 2**63:
            raise InputError(f"seed {seed} has more than 64 bits; choose a smaller one")
    return scale


def chosen_rows(rows: list[Recipe], options: Options) -> list[str]:
    """Names of the rows to run; `InputError` for unknown ones."""
    known = [recipe.row for recipe in rows]
    unknown = [name for name in options.rows if name not in known]
    if unknown:
        raise InputError(f"unknown row(s) {', '.join(unknown)}; known: {', '.join(known)}")
    if options.tokenizer_weights is None:
        if options.generator_weights is not None:
            raise InputError("--generator-weights needs --tokenizer-weights: the tokenizer whose tokens it predicts")
        return [name for name in known if not options.rows or name in options.rows]
    if len(options.rows) > 1:
        raise InputError("--tokenizer-weights belong to one row; name it with --rows")
    return [*options.rows] or known[:1]
