"""The chosen rows with data and seeds, and which of their stages have finished."""

from __future__ import annotations

import difflib
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from imagefolder.checkpoints.hub import SCHEME, locate
from imagefolder.cli import typed_command
from imagefolder.config import Execution, TrainingConfig, config_hash
from imagefolder.data.builtin import BUILTIN
from imagefolder.data.order import pieces_per_process
from imagefolder.distributed import barrier, gather_objects, is_main, world_size
from imagefolder.environment import fast_dtype
from imagefolder.errors import InputError, one_line
from imagefolder.evaluation.spaces import required_weights
from imagefolder.weights import DINO, VGG16_FILE, absent_weights
from leaderboard.record import Dataset
from reproductions.budget import with_proxy_steps
from reproductions.options import MIN_TEST_IMAGES, Options, chosen_rows, chosen_scale
from reproductions.recipe import Recipe, Table
from reproductions.recording import changed_since, finished_record, is_timed
from reproductions.row import Given, Row
from reproductions.scales import Scale
from reproductions.source import Source, describe, read_splits
from reproductions.versions import changed_code
from slurm import redacted


@dataclass(frozen=True)
class RowPlan:
    """A row, and which of its stages have finished."""

    row: Row
    tokenizer_done: bool
    generator_done: bool
    recorded: bool
    timed: bool = False
    """its speed and memory need no timing (any more)"""
    outdated: tuple[str, ...] = ()
    """finished results that other versions of the code made, one line each"""


def plan_rows(table: Table, options: Options) -> list[RowPlan]:
    """The chosen rows with every seed, and what is left to do for each; equal in all processes."""
    scale = _adjusted(chosen_scale(table, options), options)
    processes = world_size()
    if options.submit:
        from reproductions.cluster import processes_of_trainings

        processes = processes_of_trainings(scale, options.profile, options.set)
    if options.tokenizer_weights is None:  # refuse a batch that does not divide before anything is trained
        for training in (scale.tokenizer_training, scale.generator_training):
            pieces_per_process(training.batch_size, processes, options.micro_batch)
    source = data_source(scale, options)
    dataset = _read(source)
    scale = with_proxy_steps(scale, table.scales[scale.name], dataset.n_train)
    recipes = table.rows(scale, dataset.classes)
    chosen = chosen_rows(recipes, options)
    if world_size() > 1 and any("evaluators" in recipe.measures for recipe in recipes):
        raise InputError("evaluators are compared by one process: start this script without torchrun")
    row = Row(
        table=table.name,
        order=0,
        recipe=recipes[0],
        scale=scale,
        source=source,
        dataset=dataset,
        seed=options.all_seeds[0],
        output=options.output,
        given=_given(options),
        test_images=options.num_samples,
        fresh=options.fresh,
        command=one_line(shlex.join(redacted(typed_command()))),
        execution=Execution(options.micro_batch, options.activation_checkpointing, options.compile, options.logger),
        processes=processes,
    )
    plans = []
    for seed in options.all_seeds:
        rows = [replace(row, recipe=recipe, order=order, seed=seed) for order, recipe in enumerate(recipes)]
        users = [config_hash(each.tokenizer.identity) for each in rows]
        for each, user in zip(rows, users, strict=True):
            if each.recipe.row in chosen:
                each = replace(each, recipe=_evaluated(each), tokenizer_shared=users.count(user) > 1)
                plans.append(_planned(each))
    return gather_objects(plans)[0]  # what one process sees as finished on a shared disk, another may not see yet


def data_source(scale: Scale, options: Options) -> Source:
    """Where the images come from; `InputError` if `--data` is neither a built-in data set nor a path that exists."""
    name, size = options.data, scale.tokenizer.image_size
    if name in BUILTIN:
        if scale.published:
            raise InputError(
                f"scale {scale.name} is made for ImageNet, not for {name}; add --data IMAGENET, its folder"
            )
        return Source(name, size)
    if not name or not Path(name).exists():
        near = difflib.get_close_matches(name.lower(), BUILTIN, n=1)
        guess = f" (did you mean {near[0]}?)" if near else ""
        raise InputError(
            f"--data {name}{guess}: no such folder or file, nor a built-in data set; those are {', '.join(BUILTIN)}"
        )
    return Source(str(Path(name).resolve()), size, options.skip_corrupt, options.output / "data-index")


def missing_weights(row: Row) -> str | None:
    """Published files that a row needs and this machine lacks, in words; None if it can run."""
    if not row.scale.published:
        return None
    loss, needed = row.loss, required_weights(samples=not {"generation", "evaluators"}.isdisjoint(row.recipe.measures))
    if row.given is None:
        needed += [VGG16_FILE] * bool(loss.perceptual) + [row.recipe.tokenizer.backbone]
        needed += [DINO] * (bool(loss.adversarial) and loss.discriminator == "dino")
    absent = absent_weights(needed)
    return f"weights absent: {'; '.join(absent)}" if absent else None


def _adjusted(scale: Scale, options: Options) -> Scale:
    """The scale with what the options override, and with a precision that this machine is fast at."""
    if options.num_samples is not None:
        scale = replace(scale, samples=options.num_samples)
    if options.views is not None:
        scale = replace(scale, views=options.views)
    return replace(
        scale,
        tokenizer_training=_with_fast_precision(scale.tokenizer_training),
        generator_training=_with_fast_precision(scale.generator_training),
    )


def _with_fast_precision(training: TrainingConfig) -> TrainingConfig:
    """Without half precision on CPUs, other than bfloat16 where it is measured to be fast (AMX): most only emulate it,
    a hundred times slower."""
    if training.precision == "no" or torch.cuda.is_available():
        return training
    fast = training.precision == "bf16" and fast_dtype("cpu") == torch.bfloat16
    return training if fast else replace(training, precision="no")


def _read(source: Source) -> Dataset:
    """Check the images, and describe them."""
    read_splits.cache_clear()  # images may have changed since an earlier run in this process
    if is_main():
        read_splits(source)  # checks images that were never checked; the other processes then find them in the index
    barrier()
    splits = read_splits(source)
    if len(splits.test) < MIN_TEST_IMAGES:
        raise InputError(
            f"{source.data}: {len(splits.test)} test images (a fifth of every class, or the images of val/) are too "
            f"few; metrics need at least {MIN_TEST_IMAGES}"
        )
    return describe(splits)


def _given(options: Options) -> Given | None:
    """The weights to evaluate; `InputError` for a path that does not exist, before anything is trained."""
    if options.tokenizer_weights is None:
        return None
    for weights in filter(None, (options.tokenizer_weights, options.generator_weights)):
        if not weights.startswith(SCHEME):
            locate(weights)
    return Given(options.tokenizer_weights, options.generator_weights)


def _evaluated(row: Row) -> Recipe:
    """The recipe unchanged or, with given weights instead of trained ones, as a separate row."""
    recipe, given = row.recipe, row.given
    if given is None:
        return recipe
    note = f"given weights, not trained here: {', '.join(filter(None, (given.tokenizer, given.generator)))}"
    generator = recipe.generator if given.generator is not None else None
    measures = tuple(m for m in recipe.measures if m != "generation" or generator is not None)
    name, label = f"{recipe.row}-given", f"{recipe.label} (given weights)"
    return replace(recipe, row=name, label=label, note=note, generator=generator, measures=measures)


def _planned(row: Row) -> RowPlan:
    """What is left to do for a row; everything if it is `fresh`."""
    if row.given is not None:
        return RowPlan(row, tokenizer_done=True, generator_done=True, recorded=False, timed=is_timed(row, None))
    tokenizer = not row.fresh and row.tokenizer.is_trained
    generator = row.generator is None or (tokenizer and row.generator.is_trained)
    record = finished_record(row) if tokenizer and generator and not row.fresh else None
    outdated = []
    for model, done in zip(row.models, (tokenizer, generator), strict=False):
        if done and (change := changed_code(model)) is not None:
            outdated.append(f"{model.role} {model.folder.name}: {change}")
    if record is not None and (change := changed_since(record)) is not None:
        outdated.append(f"record of {row.name}: {change}")
    return RowPlan(row, tokenizer, generator, record is not None, is_timed(row, record), tuple(outdated))


def require_writable(output: Path) -> None:
    """`InputError` unless files can be written to the output folder; creates it."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe = output / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"output folder {output} cannot be written ({error.strerror}); choose another --output"
        ) from None
