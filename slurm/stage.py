"""What is to be run: stages, and what each waits for."""

from __future__ import annotations

import graphlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class SlurmError(ValueError):
    """What a user can put right; the message is one line: what is wrong, with which value, what to do."""


@dataclass(frozen=True)
class Stage:
    """`function(*arguments)` in a job of its own; both are importable and picklable, and running it again continues.

    With several processes per job the function runs in each, with MASTER_ADDR, RANK and the like set; it is finished
    when it returns, and failed when it raises.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    after: tuple[str, ...] = ()
    """stages that must have finished"""
    after_any: tuple[str, ...] = ()
    """stages that must have ended, well or not"""
    kind: str = "small"
    """which of the profile's kinds says what a job of this stage gets: training, evaluation, small"""
    request_stop: Callable[[], None] | None = None
    """called in a signal handler, in every process, when the job has to leave: the function then saves its state and
    raises, and goes on in the job's next life. None: the function is broken off and starts anew"""
    progress: Path | None = None
    """folder with curve.jsonl (lines of {"step": n, losses...}) or state files, by which progress is seen"""
    steps: int | None = None
    """how many steps curve.jsonl will have, if known"""

    @property
    def needs(self) -> tuple[str, ...]:
        return self.after + self.after_any


def ordered(stages: Iterable[Stage]) -> list[Stage]:
    """The stages, each after all it waits for. Raises `SlurmError` for a name used twice and for a circle."""
    by_name: dict[str, Stage] = {}
    for stage in stages:
        if stage.name in by_name:
            raise SlurmError(f"two stages are called {stage.name!r}; names must be unique within a run")
        by_name[stage.name] = stage
    graph = {name: [need for need in stage.needs if need in by_name] for name, stage in by_name.items()}
    try:
        return [by_name[name] for name in graphlib.TopologicalSorter(graph).static_order()]
    except graphlib.CycleError as error:
        raise SlurmError(f"stages wait for each other in a circle: {' -> '.join(error.args[1])}") from None
