"""Short trainings of a generator, with the same losses in other precisions, several processes, and on other devices."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState

import imagefolder.training.loop
from imagefolder.config import TrainingConfig
from imagefolder.data.images import ArrayImages, Key
from imagefolder.distributed import is_main, join_processes
from imagefolder.interruption import Stopped, clear_stop, request_stop
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.training.generator import train_generator
from imagefolder.zoo import GENERATORS, TOKENIZER_OF, TOKENIZERS
from tests.gpu.apart import run_apart
from tests.gpu.item import Needs, Outcome
from tests.gpu.lab import Lab

MINI, SMALL = "VAR-mini-MSVR3P2-256", "VAR-small-MSVR8P2-1024"
IMAGES = 64  # few, so that the losses fall fast
SAME, SIMILAR = 2e-3, 5e-2  # relative differences of losses: float32 elsewhere, another precision

Curve = list[dict[str, float]]


@dataclass(frozen=True)
class Plan:
    """One training."""

    model: str = MINI
    steps: int = 8
    batch_size: int = 16
    precision: Literal["no", "bf16", "fp16"] = "no"
    stop: int = 0
    """it is asked to stop while it fetches the batch after so many; 0: it is not"""


class _Stopping(ArrayImages):
    stop, fetched = 0, 0

    def __getitems__(self, keys: list[Key]) -> tuple[torch.Tensor, torch.Tensor]:
        if self.stop and self.fetched == self.stop:
            request_stop()
        self.fetched += 1
        return super().__getitems__(keys)


def train(plan: Plan, folder: Path) -> Curve:
    """The losses of every step. A stopped training returns those until then; the next one in the folder resumes it."""
    imagefolder.training.loop.LOG_EVERY = 1
    config = replace(GENERATORS[plan.model], drop_path=0.0)  # its noise would differ between devices and processes
    draws = torch.Generator().manual_seed(0)
    shape = (IMAGES, config.branches, sum(side * side for side in config.scales))
    tokens = torch.randint(config.codebook_size, shape, generator=draws)
    data = _Stopping(tokens, torch.randint(config.num_classes, (IMAGES,), generator=draws))
    data.stop = plan.stop
    torch.manual_seed(0)
    tokenizer = Tokenizer(TOKENIZERS[TOKENIZER_OF[plan.model]])
    training = TrainingConfig(
        steps=plan.steps, batch_size=plan.batch_size, learning_rate=1e-3, ema=0.9, clip=1.0, precision=plan.precision
    )
    options: dict[str, Any] = {"training": training, "seed": 3, "title": f"{plan.precision} {folder.name}", "about": {}}
    try:
        train_generator(config, data, folder, tokenizer=tokenizer, **options)
    except Stopped:
        clear_stop()
    return [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]


def precision(lab: Lab, precision: Literal["bf16", "fp16"]) -> Outcome:
    """Compare the last losses of a training with those of float32."""
    if precision == "fp16":
        lab.require_cuda()
    plan = Plan(steps=6) if lab.dry else Plan(SMALL, steps=60, batch_size=32)
    with tempfile.TemporaryDirectory() as folder:
        full, other = (
            train(each, Path(folder) / each.precision) for each in (plan, replace(plan, precision=precision))
        )
    late = [sum(point["cross_entropy"] for point in curve[-5:]) / 5 for curve in (full, other)]
    apart = abs(late[1] / late[0] - 1)
    return Outcome(
        f"loss {full[0]['cross_entropy']:.3f} to {late[0]:.3f} in float32, to {late[1]:.3f} in {precision}",
        goal=f"within {SIMILAR:.0%}, falling",
        met=apart <= SIMILAR and late[1] < other[0]["cross_entropy"],
        numbers={"float32": late[0], precision: late[1]},
    )


def together(lab: Lab, processes: int) -> Outcome:
    """Compare a training by processes that exchange gradients with that of this process alone."""
    if not lab.dry and torch.cuda.device_count() < processes:
        raise Needs(f"{processes} GPUs")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environments = [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arguments = [(Plan(), folder / "together")] * processes
        sent, problem = run_apart(lab.context, joined, arguments, lab.seconds_left, environments)
        if problem:
            raise RuntimeError(problem)
        (backend, curve), alone = sent[0][0], train(Plan(), folder / "alone")
    apart, expected = furthest(curve, alone), "gloo" if lab.dry else "nccl"
    return Outcome(
        f"{backend}: losses differ by {apart:.1e}",
        goal=f"{expected}, {SAME:.0e}",
        met=backend == expected and apart <= SAME,
        numbers={"difference": apart},
    )


def joined(send: Callable[[tuple[str, Curve]], None], plan: Plan, folder: Path) -> None:
    """One of the processes of a training; the first sends the backend and the curve."""
    AcceleratorState._reset_state(reset_partial_state=True)  # a forked process is not yet one of several
    join_processes()
    curve = train(plan, folder)
    if is_main():
        send((dist.get_backend() if dist.is_initialized() else "no process group", curve))
    if dist.is_initialized():
        dist.destroy_process_group()


def resume(lab: Lab) -> Outcome:
    """Compare trainings that change device half way with one that does not."""
    whole, half = Plan(), Plan(stop=4)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        expected = train(whole, folder / "whole")
        on_the_cpu(lab, half, folder / "from CPU")
        started = train(whole, folder / "from CPU")
        stopped = train(half, folder / "from device")
        continued = on_the_cpu(lab, whole, folder / "from device")
    assert len(stopped) < len(expected), "it was asked to stop"
    apart = {"from CPU": furthest(started, expected), "to CPU": furthest(continued, expected)}
    return Outcome(
        f"losses differ by {apart['from CPU']:.1e} (begun on the CPU) and {apart['to CPU']:.1e} (ended there)",
        goal=f"{SAME:.0e}",
        met=max(apart.values()) <= SAME,
        numbers=apart,
    )


def on_the_cpu(lab: Lab, plan: Plan, folder: Path) -> Curve:
    """`train` in a process that sees no GPU."""
    hidden = [{"CUDA_VISIBLE_DEVICES": ""}]
    ((*curves,),), problem = run_apart(lab.context, trained, [(plan, folder)], lab.seconds_left, hidden)
    if problem:
        raise RuntimeError(problem)
    return curves[0]


def trained(send: Callable[[Curve], None], plan: Plan, folder: Path) -> None:
    """A process that sends the curve of a training."""
    assert not torch.cuda.is_available(), os.environ.get("CUDA_VISIBLE_DEVICES")
    send(train(plan, folder))


def furthest(curve: Curve, expected: Curve) -> float:
    """The largest relative difference of losses; raises ValueError if a step is missing."""
    pairs = zip(curve, expected, strict=True)
    return max(abs(a["cross_entropy"] / b["cross_entropy"] - 1) for a, b in pairs)
