"""Training steps with torch.compile."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch._dynamo.utils import counters

from imagefolder.config import Execution
from imagefolder.environment import synchronize
from tests.gpu.item import Outcome
from tests.gpu.lab import Lab
from tests.gpu.speed import generator_step

ROUNDS = 5


def train_generator(lab: Lab, batch: int) -> Outcome:
    """Compare a compiled step with a plain one: time, and whether every layer was compiled."""
    size = lab.batch(batch)
    step, _ = generator_step(lab, size)
    step()
    plain = seconds_of(lab, step)
    del step
    lab.require_cuda()
    torch._dynamo.reset()
    counters.clear()
    step, _ = generator_step(lab, size, Execution(compile=True))
    clock = time.perf_counter()
    losses = step()
    synchronize(lab.device)
    first, faster = time.perf_counter() - clock, seconds_of(lab, step)
    frames, graphs = counters["frames"], counters["stats"]["unique_graphs"]
    complete = graphs > 0 and frames["ok"] == frames["total"]
    return Outcome(
        f"{1000 * faster:.1f} ms, {1000 * plain:.1f} ms without; the first one took {first:.0f} s for {graphs} graphs"
        + ("" if complete else f"; {frames['total'] - frames['ok']} kinds of layers were not compiled"),
        goal="faster, every layer compiled",
        met=faster < plain and complete and bool(losses["cross_entropy"].isfinite()),
        numbers={"compiled": faster, "plain": plain, "first": first, "graphs": float(graphs)},
    )


def seconds_of(lab: Lab, step: Callable[[], object]) -> float:
    """The median of a few rounds."""
    found = []
    for _ in range(ROUNDS):
        clock = time.perf_counter()
        step()
        synchronize(lab.device)
        found.append(time.perf_counter() - clock)
    return statistics.median(found)
