"""Stages: what to run, and what each one waits for."""

from __future__ import annotations

import graphlib
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from imagefolder.errors import InputError


class SlurmError(InputError):
    """A request, a profile, a cluster or a file of a run that the user can fix."""


@dataclass(frozen=True)
class Stage:
    """`function(*arguments)` in its own job. Both must be importable and picklable; calling it again resumes the work.

    With several processes per job, the function runs in each of them, with MASTER_ADDR, RANK etc. set. The stage has
    finished once it returns, and failed if it raises.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    _: KW_ONLY
    after: tuple[str, ...] = ()
    """stages that must have finished"""
    after_any: tuple[str, ...] = ()
    """stages that must have ended, whether they finished or failed"""
    kind: str = "small"
    """the profile's kind that sets the resources of the job: training, evaluation or small"""
    request_stop: Callable[[], None] | None = None
    """called from a signal handler, in every process, when the job has to leave: the function then saves its state and
    raises, and the job's next attempt resumes. None: the function is interrupted and starts over"""
    progress: Path | None = None
    """folder with curve.jsonl (lines of {"step": n, losses...}) or state files, from which progress is read"""
    steps: int | None = None
    """number of steps that curve.jsonl will reach, if known"""

    @property
    def needs(self) -> tuple[str, ...]:
        return self.after + self.after_any


def ordered(stages: Iterable[Stage]) -> list[Stage]:
    """The stages, each after everything it waits for. Raises `SlurmError` for a duplicate name and for a cycle."""
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
