"""Models of earlier runs that are to be made anew: set aside, and removed once the new results are recorded."""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from pathlib import Path

from imagefolder.distributed import gather_objects, is_main
from imagefolder.errors import InputError, reason
from imagefolder.locks import building
from imagefolder.progress import console
from imagefolder.training.token_cache import LOCK
from reproductions.job import Job, has_record, is_trained
from reproductions.recipe import Recipe


def set_aside(job: Job, recipe: Recipe) -> None:
    """Have a row's own models made anew (the proxies stay: they are what makes numbers comparable).

    All processes call it. Models that somebody gave are left alone, and the row's record stays until there is a new
    one.

    Raises:
        InputError: a model cannot be moved: it would be taken for the new one.
    """
    remove_aside(job, recipe)  # of an earlier time, if what has been made since is recorded
    for folder in _models(job, recipe):
        with ExitStack() as locks:
            locks.enter_context(job.building(folder))
            for tokens in gather_objects(sorted(folder.glob("tokens/*/")))[0]:  # encoded at the moment, perhaps
                locks.enter_context(building(tokens / LOCK, str(tokens)))
            problem = _move_aside(folder) if is_main() else None
            if problem := gather_objects(problem)[0]:
                raise InputError(problem)


def move_aside(folder: Path) -> None:
    """Rename a finished model, remove one that is unfinished or has not been recorded; its lock is held.

    Raises:
        InputError: it cannot be moved.
    """
    if problem := _move_aside(folder):
        raise InputError(problem)


def remove_aside(job: Job, recipe: Recipe) -> None:
    """Remove what was set aside, once the row's record is of the models that have taken its place. All processes call.

    Until then, what was set aside is what the record is of.
    """
    for folder in _models(job, recipe):
        if not gather_objects(_earlier(folder).exists())[0]:
            continue
        with job.building(folder):
            if is_main() and has_record(job, recipe):
                try:
                    shutil.rmtree(_earlier(folder))
                except OSError as error:
                    console.print(f"{_earlier(folder)}, of an earlier run, cannot be removed: {reason(error)}")


def _move_aside(folder: Path) -> str | None:
    earlier = _earlier(folder)
    try:
        if is_trained(folder) and not earlier.exists():
            os.rename(folder, earlier)
        elif folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        return f"{folder} is to be made anew, and what is there cannot be moved or removed: {reason(error)}"
    return None


def _models(job: Job, recipe: Recipe) -> list[Path]:
    if job.tokenizer_weights is not None:
        return []
    return [job.tokenizer(recipe)] + ([] if recipe.generator is None else [job.generator(recipe)])


def _earlier(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.earlier")
