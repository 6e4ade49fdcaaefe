"""Models that are trained again: the old ones are set aside, and removed once the new results are recorded."""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from pathlib import Path

from imagefolder.distributed import is_main, of_main
from imagefolder.errors import InputError, reason
from imagefolder.locks import building
from imagefolder.progress import console
from imagefolder.training.token_cache import LOCK
from reproductions.recording import has_record
from reproductions.row import Row, TrainedModel


def set_aside(row: Row) -> None:
    """Set a row's models aside, so that they are trained again. The proxies stay: they make numbers comparable.

    All processes call this. Given weights are left alone, and the row's record stays until there is a new one.

    Raises:
        InputError: a model cannot be moved: it would be taken for the new one.
    """
    remove_aside(row)  # from an earlier run, if what has been made since is recorded
    for model in row.models:
        with ExitStack() as locks:
            locks.enter_context(row.building(model.folder))
            for tokens in of_main(sorted(model.folder.glob("tokens/*/"))):  # perhaps being encoded right now
                locks.enter_context(building(tokens / LOCK, str(tokens)))
            if problem := of_main(_move_aside(model) if is_main() else None):
                raise InputError(problem)


def move_aside(model: TrainedModel) -> None:
    """Rename a finished model, remove one that is unfinished or unrecorded; its lock is held.

    Raises:
        InputError: it cannot be moved.
    """
    if problem := _move_aside(model):
        raise InputError(problem)


def remove_aside(row: Row) -> None:
    """Remove what was set aside, once the row's record is of the models that replaced it. All processes call this.

    Until then, the record is still of what was set aside.
    """
    for model in row.models:
        if not of_main(_earlier(model).exists()):
            continue
        with row.building(model.folder):
            if is_main() and has_record(row):
                try:
                    shutil.rmtree(_earlier(model))
                except OSError as error:
                    console.print(f"{_earlier(model)}, of an earlier run, cannot be removed: {reason(error)}")


def _move_aside(model: TrainedModel) -> str | None:
    folder, earlier = model.folder, _earlier(model)
    try:
        if model.is_trained and not earlier.exists():
            os.rename(folder, earlier)
        elif folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        return f"{folder} must be rebuilt, but its old content cannot be moved or removed: {reason(error)}"
    return None


def _earlier(model: TrainedModel) -> Path:
    return model.folder.with_name(f"{model.folder.name}.earlier")
