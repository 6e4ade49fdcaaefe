"""When calls are launched, captured as a CUDA graph, or replayed. Capturing needs a GPU: see `tests.gpu`."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from imagefolder.generator.graphs import Calls, calls_of, release, replayed


def happens(calls: Calls, *keys: str) -> list[str]:
    """What becomes of calls with these keys; a capture succeeds."""
    found = []
    for key in keys:
        found.append(calls.next(key))
        if found[-1] == "capture":
            calls.graph, calls.captured = cast("Any", object()), key
    return found


def test_the_second_call_in_a_row_is_captured_and_further_ones_are_replayed() -> None:
    assert happens(Calls(), "a", "a", "a", "a") == ["launch", "capture", "replay", "replay"]


def test_another_call_frees_the_graph() -> None:
    calls = Calls()
    assert happens(calls, "a", "a", "b") == ["launch", "capture", "launch"]
    assert calls.graph is None
    assert happens(calls, "a", "b", "a", "a", "a") == ["launch", "launch", "launch", "capture", "replay"]


def test_what_could_not_be_captured_is_not_tried_again() -> None:
    calls = Calls()
    calls.refused.add("a")
    assert happens(calls, "a", "a", "b", "b") == ["launch", "launch", "launch", "capture"]


def test_on_a_cpu_functions_are_called() -> None:
    owner = nn.Linear(2, 2)
    for _ in range(3):
        (found,) = replayed(owner, lambda x: (2 * x,), (torch.ones(2),), "settings")
        assert found.tolist() == [2, 2]
    assert owner not in calls_of
    release(owner)
