"""What is checked or measured on a GPU: an item with its time limit, what it found, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Item:
    """A function that is called with a `Lab` and `arguments` and returns an `Outcome`; after `seconds` it is ended."""

    name: str
    about: str
    seconds: float
    run: str
    """its dotted name; only the process that calls it imports it"""
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What an item found: in one line, and as numbers. `met`: whether that is the goal; None without one."""

    value: str
    goal: str = ""
    met: bool | None = None
    numbers: dict[str, float] = field(default_factory=dict)


class Needs(Exception):
    """This machine lacks what an item needs: `Needs("CUDA")`."""


@dataclass(frozen=True)
class Result:
    """What became of an item: "met", "not met", "measured" (without a goal), "failed", "needs" or "not run"."""

    verdict: str
    value: str = ""
    goal: str = ""
    reason: str = ""
    """why it failed or did not run; what it needs"""
    seconds: float = 0.0
    numbers: dict[str, float] = field(default_factory=dict)

    @property
    def in_words(self) -> str:
        """The verdict with its reason."""
        between = " " if self.verdict == "needs" else ": "
        return f"{self.verdict}{between}{self.reason}" if self.reason else self.verdict
