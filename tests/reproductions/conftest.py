"""The recipes of table 2 at a scale that takes seconds, without worker processes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from in_turn import InTurn
from threadpoolctl import threadpool_limits

import reproductions.alone as alone
import reproductions.command as command
import reproductions.source as source
import reproductions.timing_stage as timing_stage
from imagefolder.config import SamplingConfig
from imagefolder.data.digits import digits
from imagefolder.data.images import ArrayImages, DataSplits
from reproductions import table2
from reproductions.command import run_table
from reproductions.executor import Task
from reproductions.options import Options
from reproductions.recipe import Table
from reproductions.scales import SCALES, Scale


@pytest.fixture(autouse=True)
def cpu_with_one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Identical records are guaranteed on the CPU, in this process and in workers."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    AcceleratorState._reset_state(reset_partial_state=True)
    source.read_splits.cache_clear()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(reset_partial_state=True)


def miniature(scale: Scale, **changes: Any) -> Scale:
    """A scale with almost no training and evaluation."""
    return replace(
        scale,
        tokenizer_training=replace(scale.tokenizer_training, steps=6, batch_size=8),
        generator_training=replace(scale.generator_training, steps=6, batch_size=8),
        sampling=SamplingConfig(guidance=1.0, top_k=0, top_p=0.95, batch_size=20),
        samples=40,
        proxy_steps=5,
        **changes,
    )


@pytest.fixture
def tiny_mini(monkeypatch: pytest.MonkeyPatch) -> Scale:
    """Scale mini in miniature, on the first digits of both splits."""
    whole = digits(32)

    def few(name: str, image_size: int) -> DataSplits:
        def first(images: ArrayImages, number: int) -> ArrayImages:
            return ArrayImages(images.images[:number].clone(), images.labels[:number].clone())

        return replace(whole, train=first(whole.train, 150), test=first(whole.test, 60))

    scale = miniature(SCALES["mini"])
    monkeypatch.setitem(SCALES, "mini", scale)
    monkeypatch.setattr(source, "read_builtin", few)
    monkeypatch.setattr(timing_stage, "LONGEST", 0.0)  # one round
    monkeypatch.setattr(alone, "LOOK_SECONDS", 0.1)
    return scale


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run tasks in this process; returns the names of those that were started, without the timing of rows, which
    depends on what else the machine does."""
    names: list[str] = []

    def in_turn(tasks: list[Task], threads: int | None) -> InTurn:
        names.extend(task.name for task in tasks if not task.alone)
        return InTurn()

    monkeypatch.setattr(command, "way_here", in_turn)
    return names


@pytest.fixture
def table() -> Callable[..., int]:
    """Run rows of table 2 as its script does; returns the exit code."""

    def run(output: Path, *rows: str, recipes: Callable[..., list] = table2.rows, **options: Any) -> int:
        return run_table(Table("table2", "Table 2", recipes), Options(rows=rows, output=output, **options))

    return run


TRAINED: dict[str, Path] = {}


@pytest.fixture
def trained_row(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_mini: Scale,
    table: Callable[..., int],
    executed: list[str],
) -> Callable[[str], Path]:
    """Gives an output folder with a row of table 2, trained once for all tests."""

    def copied(row: str) -> Path:
        if row not in TRAINED:
            TRAINED[row] = tmp_path_factory.mktemp("trained") / "runs"
            assert table(TRAINED[row], row) == 0
            executed.clear()
        return shutil.copytree(TRAINED[row], tmp_path / "runs")

    return copied


@pytest.fixture
def imagefolder_row(trained_row: Callable[[str], Path]) -> Path:
    return trained_row("imagefolder")


@pytest.fixture
def records() -> Callable[[Path], dict[str, dict[str, Any]]]:
    """All records of an output folder by row, as JSON."""

    def read(output: Path) -> dict[str, dict[str, Any]]:
        found = [json.loads(path.read_text()) for path in sorted((output / "records").glob("*.json"))]
        return {record["row"]: record for record in found}

    return read


@pytest.fixture
def shrink() -> Callable[..., Scale]:
    return miniature
