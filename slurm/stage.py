"""What is to be run: stages, and what each waits for."""

from __future__ import annotations

import graphlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff]")


class SlurmError(ValueError):
    """What a user can put right; the message is one line: what is wrong, with which value, what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: object) -> str:
    """Text of any origin as one line that every terminal can show; control characters and the like by their codes."""
    return UNPRINTABLE.sub(_code, re.sub(r"[\n\r\t]", " ", str(text))).strip()


def _code(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


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
