"""Rows are timed alone at the end: what is written, what other work does to it, and what interruptions leave behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import reproductions.timing_stage as timing_stage
from imagefolder.files import file_sha256
from leaderboard.record import Cost, Record
from leaderboard.store import read_record, write_record
from reproductions import table2
from reproductions.alone import Others, _own_seconds, is_alone
from reproductions.cluster import run_stage
from reproductions.executor import Task, execute
from reproductions.graph import graph
from reproductions.options import Options
from reproductions.plan import RowPlan, plan_rows
from reproductions.recording import is_timed
from reproductions.scales import Scale
from reproductions.stages import run_evaluation

RunTable = Callable[..., int]
TIMING = ("alone", "other_cores", "threads", "sampling", "tokenizer_step", "generator_step")
BUSY = "while True: pass"


class InAnyOrder:
    """A place for any number of tasks, of which those started last end first."""

    has_room = True

    def __init__(self) -> None:
        self.running, self.beside = list[str](), dict[str, list[str]]()

    def start(self, task: Task) -> None:
        self.beside[task.name] = list(self.running)
        self.running.append(task.name)

    def ended(self) -> Iterator[tuple[str, str | None]]:
        name = self.running.pop()
        yield name, "broken" if name == "broken" else None

    def finish(self) -> dict[str, str]:
        return {}

    def abort(self) -> None:
        """Nothing runs elsewhere."""


def test_tasks_that_run_alone_start_when_everything_else_has_ended() -> None:
    way = InAnyOrder()
    tasks = [
        Task("time a", print, (), ("a",), alone=True),
        Task("a", print, ()),
        Task("b", print, ()),
        Task("c", print, (), ("b",)),
        Task("time broken", print, (), ("broken",), alone=True),
        Task("broken", print, ()),
        Task("after broken", print, (), ("broken",)),
        Task("time c", print, (), ("c",), alone=True),
    ]
    failed = execute(tasks, way)
    assert set(failed) == {"broken", "after broken", "time broken"}
    assert list(way.beside)[-2:] == ["time a", "time c"]
    assert way.beside["time a"] == way.beside["time c"] == []
    assert way.beside["b"] == ["a"]  # the others run together


@pytest.fixture
def orphan() -> Iterator[Callable[[], None]]:
    """Starts a process that works without end and is not a child of this one."""
    started: list[int] = []

    def start() -> None:
        shell = f'"{sys.executable}" -c "{BUSY}" >/dev/null 2>&1 & echo $!'
        started.append(int(subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True).stdout))
        time.sleep(0.2)

    yield start
    for process in started:
        os.kill(process, signal.SIGKILL)


def work(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def test_other_processes_are_seen(orphan: Callable[[], None]) -> None:
    others = Others()
    orphan()
    with others:
        work(0.6)
    assert others.cores is not None
    assert others.cores > 0.3


def test_processes_that_this_one_starts_are_its_own() -> None:
    before = _own_seconds()
    child = subprocess.Popen([sys.executable, "-c", BUSY])
    end = time.monotonic() + 60
    while (working := _own_seconds() - before) <= 0.1 and time.monotonic() < end:  # beside other work, it takes a while
        time.sleep(0.1)
    child.kill()
    child.wait()
    assert working > 0.1
    assert _own_seconds() - before >= working  # what it did is not lost when it ends


def test_what_counts_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert is_alone(0.02, 0.0) is True
    assert is_alone(0.02, 30.0) is is_alone(0.5, None) is False
    assert is_alone(None, 0.0) is is_alone(0.0, None) is None
    monkeypatch.setattr(os, "cpu_count", lambda: 128)  # on a server, something always runs
    assert is_alone(0.5, 0.0) is True
    assert is_alone(2.0, 0.0) is False


def planned(output: Path) -> RowPlan:
    (plan,) = plan_rows(table2.TABLE, Options(rows=("imagefolder",), output=output))
    return plan


def replace_cost(plan: RowPlan, **changes: Any) -> Record:
    """The row's record with another cost, stored."""
    record = read_record(plan.row.record)
    assert record.cost is not None
    cost = Cost.model_validate(record.cost.model_dump() | changes)
    write_record(plan.row.record.parent, record.model_copy(update={"cost": cost}))
    return record


def without_timing(plan: RowPlan) -> Record:
    """As an earlier version wrote it, or a run that was interrupted right before the timing."""
    return replace_cost(plan, **dict.fromkeys(TIMING), samples_per_second=1.0)


@pytest.fixture
def many_rounds(tiny_mini: Scale, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many rounds as a real row has, at least."""
    monkeypatch.setattr(timing_stage, "LONGEST", 60.0)
    monkeypatch.setattr(timing_stage, "SECONDS", 0.0)


def weights(output: Path) -> dict[str, tuple[str, int]]:
    return {str(path): (file_sha256(path), path.stat().st_mtime_ns) for path in output.rglob("*.safetensors")}


def test_a_finished_row_is_timed_and_nothing_else_changes(
    imagefolder_row: Path, table: RunTable, many_rounds: None
) -> None:
    plan = planned(imagefolder_row)
    before, trained, state = without_timing(plan), weights(imagefolder_row), torch.get_rng_state()
    assert not planned(imagefolder_row).timed
    (task,) = graph([planned(imagefolder_row)])
    assert task.alone
    assert table(imagefolder_row, "imagefolder") == 0

    record = read_record(plan.row.record)
    cost = record.cost
    assert cost is not None
    assert cost.alone in (True, False)
    assert cost.other_cores is not None
    assert cost.threads == timing_stage.DEFAULT_THREADS
    assert set(cost.timed) == {"sampling", "tokenizer_step", "generator_step"}
    for piece in cost.timed.values():
        assert piece.rounds == timing_stage.LEAST_ROUNDS
        assert 0 < piece.q1 <= piece.median <= piece.q3
    assert cost.samples_per_second == cost.sampling.median
    assert cost.memory_mib is not None
    assert cost.memory_mib < cost.peak_memory_mib
    assert record.model_copy(update={"cost": None}) == before.model_copy(update={"cost": None})
    assert weights(imagefolder_row) == trained
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == 1  # as the stages of the scale
    assert "samples/s" in (imagefolder_row / "report.html").read_text()


def test_rows_are_timed_until_that_was_done_alone_unless_they_are_of_another_machine(imagefolder_row: Path) -> None:
    plan = planned(imagefolder_row)
    record = replace_cost(plan, alone=True)
    assert planned(imagefolder_row).timed
    replace_cost(plan, alone=False)
    assert not planned(imagefolder_row).timed
    for other in ({"cpu": "Another CPU"}, {"processes": 2}, {"execution": {**record.run.execution, "compile": True}}):
        run = record.run.model_copy(update=other)
        write_record(plan.row.record.parent, read_record(plan.row.record).model_copy(update={"run": run}))
        assert planned(imagefolder_row).timed
    about_sampling = replace(plan.row, recipe=replace(plan.row.recipe, sampling={"guidance": 0.0}))
    assert is_timed(about_sampling, None)  # it has the models of another row


def test_work_beside_it_is_noted_and_the_timing_repeated_only_without(
    imagefolder_row: Path, orphan: Callable[[], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    plan = planned(imagefolder_row)
    without_timing(plan)
    orphan()
    timing_stage.run_timing(plan.row)
    cost = read_record(plan.row.record).cost
    assert cost is not None
    assert cost.alone is False
    assert "other work ran beside it" in capsys.readouterr().out
    timing_stage.run_timing(plan.row)
    assert read_record(plan.row.record).cost == cost
    assert "not repeated, as other work still runs" in capsys.readouterr().out
    monkeypatch.setattr(timing_stage, "is_idle", lambda: True)
    assert timing_stage._is_due(plan.row)


def test_an_interrupted_timing_loses_nothing(
    imagefolder_row: Path, table: RunTable, executed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    path = planned(imagefolder_row).row.record
    path.unlink()
    executed.clear()
    with monkeypatch.context() as patch:
        patch.setattr(timing_stage, "_generator_step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            table(imagefolder_row, "imagefolder")
    assert [name.split()[0] for name in executed] == ["table2"]
    record = read_record(path)
    assert record.status == "finished"
    assert record.cost is not None
    assert record.cost.timed == {}
    executed.clear()
    assert table(imagefolder_row, "imagefolder") == 0
    assert executed == []  # besides the timing
    again = read_record(path)
    assert again.cost is not None
    assert set(again.cost.timed) == {"sampling", "tokenizer_step", "generator_step"}
    assert again.metrics == record.metrics
    assert again.run == record.run


def test_tokens_that_are_gone_are_not_encoded_again(imagefolder_row: Path) -> None:
    plan = planned(imagefolder_row)
    without_timing(plan)
    shutil.rmtree(plan.row.tokens)
    timing_stage.run_timing(plan.row)
    cost = read_record(plan.row.record).cost
    assert cost is not None
    assert set(cost.timed) == {"sampling", "tokenizer_step"}
    assert not plan.row.tokens.exists()


def test_a_row_that_cannot_be_timed_stays_finished(
    imagefolder_row: Path, table: RunTable, capsys: pytest.CaptureFixture
) -> None:
    plan = planned(imagefolder_row)
    without_timing(plan)
    before = plan.row.record.read_text()
    plan.row.teacher.unlink()
    assert table(imagefolder_row, "imagefolder") == 0
    assert "timing of imagefolder seed 0: not possible: " in capsys.readouterr().out
    assert plan.row.record.read_text() == before


def test_the_job_that_evaluates_a_row_times_it(imagefolder_row: Path) -> None:
    plan = planned(imagefolder_row)
    without_timing(plan)
    run_stage(run_evaluation, (plan.row,), 1)
    cost = json.loads(plan.row.record.read_text())["cost"]
    assert cost["sampling"]["rounds"] == 1
