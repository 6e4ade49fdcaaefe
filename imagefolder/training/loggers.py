"""Where the losses of a training go besides `curve.jsonl`: tensorboard, wandb or trackio.

A resumed training continues its run, which is found by the folder of the model. Points between the last saved state and
the interruption may come twice, with equal values.
"""

from __future__ import annotations

import hashlib
import importlib
import io
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagefolder.config import Logger
from imagefolder.errors import InputError, reason

PROJECT = "imagefolder"


@dataclass(frozen=True)
class Log:
    """`add` takes values by name and the step they belong to."""

    add: Callable[[dict[str, float], int], object]
    close: Callable[[], object]


def open_log(logger: Logger, folder: Path, start: int) -> Log:
    """The log of the model in `folder`; a training that starts at step 0 begins a new run.

    Raises:
        InputError: the package is not installed, or its server refuses or cannot be reached.
    """
    package = require_logger(logger)
    run = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
    return LOGS[logger](package, folder, run, start)


def require_logger(logger: Logger) -> Any:
    """The package of a logger; `InputError` unless it is installed, and wandb is offline or logged in."""
    try:
        package = importlib.import_module(PACKAGES.get(logger, logger))
    except ImportError:
        raise InputError(f"logger {logger} is not installed; run: pip install {logger}") from None
    if logger == "wandb":
        try:
            package.login()  # asks for the key if there is a terminal
        except package.Error as error:
            raise _wandb_error(error) from None
    return package


def _tensorboard(tensorboard: Any, folder: Path, run: str, start: int) -> Log:
    writer = tensorboard.SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)

    def add(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return Log(add, writer.close)


def _wandb(wandb: Any, folder: Path, run: str, start: int) -> Log:
    settings = wandb.Settings(silent=True, console="off")  # the progress has the terminal
    names = {"project": PROJECT, "id": run, "name": f"{folder.name}-{run}", "dir": str(folder)}
    try:
        log = wandb.init(**names, resume="allow" if start else None, settings=settings, reinit="create_new")
    except wandb.Error as error:
        raise _wandb_error(error) from None
    return Log(log.log, log.finish)


def _trackio(trackio: Any, folder: Path, run: str, start: int) -> Log:
    with redirect_stdout(io.StringIO()):
        name, resume = f"{folder.name}-{run}", "allow" if start else "never"
        log = trackio.init(PROJECT, name, resume=resume, embed=False)

    def close() -> None:
        with redirect_stdout(io.StringIO()):
            trackio.finish()  # the run's own method leaves it to be finished again at exit

    return Log(log.log, close)


LOGS: dict[Logger, Callable[[Any, Path, str, int], Log]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
}
PACKAGES = {"tensorboard": "torch.utils.tensorboard"}


def _wandb_error(error: Exception) -> InputError:
    return InputError(f"wandb: {reason(error)} (without a network: WANDB_MODE=offline, and `wandb sync` later)")
