"""What a run is said to take: which steps and images are counted, once each, and how that is put into words."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from in_turn import InTurn

import reproductions.estimate as estimate
import reproductions.plan as plan
from imagefolder.errors import InputError
from imagefolder.training.state import PREVIOUS, STATE
from imagefolder.training.token_cache import ABOUT
from reproductions import table2
from reproductions.command import run_table
from reproductions.estimate import duration_of, in_gigabytes, in_words, longest_first, uses_of
from reproductions.executor import Found, Item, Task
from reproductions.graph import graph
from reproductions.options import Options
from reproductions.plan import plan_rows
from reproductions.recipe import Table
from reproductions.row import Row
from reproductions.scales import SCALES, Scale
from reproductions.stages import run_evaluation, run_generator, run_tokenizer, run_tokens
from reproductions.timing import Cost, Piece, time_piece
from reproductions.timing_stage import LEAST_ROUNDS, WARM_UP
from reproductions.workers import Workers

RunTable = Callable[..., int]
Records = Callable[[Path], dict[str, dict[str, Any]]]
pytestmark = pytest.mark.usefixtures("tiny_mini")


class Counting(InTurn):
    """Every step and image takes a second, every piece a gigabyte; keeps what it was asked to time."""

    def __init__(self, at_once: int = 1) -> None:
        super().__init__()
        self.at_once, self.timed = at_once, list[Piece]()

    def map(self, function: Callable[[Item], Found], items: Sequence[Item]) -> list[Found]:
        assert function is time_piece
        self.timed += cast("Sequence[Piece]", items)
        parts = ("step", "early", "late", "read", "features", "pairs", "encode", "decode", "image")
        return [cast("Found", Cost(dict.fromkeys(parts, 1.0), 1e9)) for _ in items]


def tasks_of(output: Path, *rows: str, **options: Any) -> list[Task]:
    return graph(plan_rows(table2.TABLE, Options(rows=rows, output=output, **options)))


def of_stage(tasks: list[Task], function: Callable[[Row], None]) -> dict[str, float]:
    """Times of every part that the first task of a stage needs."""
    task = next(task for task in tasks if task.function is function)
    return {use.part: use.times for use in uses_of(task)}


def test_all_steps_and_images_of_a_row_are_counted(tmp_path: Path) -> None:
    tasks = tasks_of(tmp_path, "imagefolder")
    assert of_stage(tasks, run_tokenizer) == {"late": 6, "read": 6 * 8}
    assert of_stage(tasks, run_tokens) == {"encode": 150, "read": 150}
    assert of_stage(tasks, run_generator) == {"step": 6}
    settings = 15  # of perturbations
    assert of_stage(tasks, run_evaluation) == {
        "encode": 2 * 60,
        "decode": (1 + settings) * 60,
        "features": 2 * 60 + (1 + settings) * 60 + 2 * 3 * 40 + 150,
        "pairs": 60,
        "read": 2 * 60 + 150,
        "image": 3 * 40 + 3 * 40 / 2,  # three sets of samples; without guidance they take half the work
    }


def test_previews_that_are_left_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scale = replace(SCALES["mini"], preview_every=2, preview_images=30)
    monkeypatch.setitem(SCALES, "mini", scale)
    tasks = tasks_of(tmp_path, "vq")
    row: Row = tasks[0].arguments[0]
    assert of_stage(tasks, run_tokenizer) == {"late": 6, "read": 48, "encode": 90, "decode": 90, "features": 120}
    assert of_stage(tasks, run_generator) == {"step": 6, "image": 90, "features": 90 + 150, "read": 150}
    row.tokenizer.folder.mkdir(parents=True)
    torch.save({"step": 3}, row.tokenizer.folder / STATE)
    assert of_stage(tasks, run_tokenizer)["encode"] == 60


def test_what_is_done_is_not_counted(tmp_path: Path) -> None:
    before = tasks_of(tmp_path, "vq")
    row: Row = before[0].arguments[0]
    assert row.generator is not None
    row.tokenizer.folder.mkdir(parents=True)
    torch.save({"step": 4}, row.tokenizer.folder / STATE)
    assert of_stage(before, run_tokenizer)["late"] == 2
    row.generator.folder.mkdir(parents=True)
    (row.generator.folder / STATE).write_bytes(b"damaged")
    torch.save({"step": 5}, row.generator.folder / PREVIOUS)
    assert of_stage(before, run_generator) == {"step": 1}
    row.tokens.mkdir(parents=True)
    (row.tokens / ABOUT).write_text("{}")
    assert of_stage(before, run_tokens) == {}
    again = tasks_of(tmp_path, "vq", fresh=True)
    assert of_stage(again, run_tokenizer)["late"] == of_stage(again, run_generator)["step"] == 6
    assert of_stage(again, run_tokens)["encode"] == 150


def test_steps_before_and_after_the_discriminator_joins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scale: Scale = SCALES["mini"]
    loss = replace(scale.loss, adversarial=0.1, adversarial_start=0.5, discriminator="patch")
    monkeypatch.setitem(SCALES, "mini", replace(scale, loss=loss))
    assert of_stage(tasks_of(tmp_path, "vq"), run_tokenizer) == {"early": 3, "late": 3, "read": 48}


def test_equal_models_are_timed_once_and_shared_stages_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(estimate, "WORTH", 0)
    way, seeds = Counting(), (0, 1)
    options = Options(rows=("imagefolder", "unfolded"), output=tmp_path, seeds=seeds)
    plans = plan_rows(table2.TABLE, options)
    tasks = graph(plans)
    expected = estimate.estimate(tasks, way)
    assert expected is not None
    kinds = [piece.kind for piece in way.timed]
    assert sorted(kinds) == sorted(
        ["extractor", "features", "training images", "teacher", "tokenizer", "coding"] + 2 * ["generator", "sampling"]
    )
    times = {piece.kind: piece.times for piece in way.timed}
    timing = (WARM_UP + LEAST_ROUNDS) * len(plans)  # every row is timed
    assert times["tokenizer"] == 6 * len(seeds) + timing
    assert times["generator"] == 6 * len(seeds) + timing / 2  # of each of the two
    assert [task.function for task in tasks].count(run_tokenizer) == len(seeds)
    assert expected.seconds.keys() == {task.name for task in tasks}
    assert expected.run_seconds == sum(expected.seconds.values())
    assert expected.line.startswith(f"this run will take about {in_words(expected.run_seconds)} (")
    assert expected.line.endswith("1.0 GB of memory")
    estimate.print_estimate(plans, expected)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    (folded,) = [line for line in lines if line[:2] == ["imagefolder", "0"]]
    (unfolded,) = [line for line in lines if line[:2] == ["unfolded", "0"]]
    assert "shared" not in folded
    assert unfolded[2:4] == ["shared", "shared"]


def test_nothing_is_timed_if_little_is_left(tmp_path: Path) -> None:
    way = Counting()
    assert estimate.estimate([], way) is None
    assert estimate.estimate(tasks_of(tmp_path, "vq"), way) is None
    assert way.timed == []


def test_stages_that_run_at_once_take_less_time_and_more_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "WORTH", 0)
    tasks = tasks_of(tmp_path, "imagefolder", "vq")
    one, two = (estimate.estimate(tasks, Counting(number)) for number in (1, 2))
    assert one is not None
    assert two is not None
    assert one.run_seconds / 2 <= two.run_seconds < one.run_seconds
    assert (one.run_memory, two.run_memory) == (1e9, 2e9)


def test_duration_follows_the_needs_of_tasks() -> None:
    tasks = [Task("a", print, ()), Task("b", print, (), ("a",)), Task("c", print, ()), Task("d", print, (), ("b", "c"))]
    seconds = {"a": 3.0, "b": 2.0, "c": 4.0, "d": 1.0}
    assert duration_of(tasks, seconds, 1) == 10
    assert duration_of(tasks, seconds, 2) == 6
    assert duration_of([], {}, 2) == 0


def test_the_longest_work_starts_first() -> None:
    names = {"a": (), "b": ("a",), "c": (), "d": ("c",), "e": ("b", "d"), "f": ("e",)}
    tasks = [Task(name, print, (), after) for name, after in names.items()]
    seconds = {"a": 1.0, "b": 2.0, "c": 5.0, "d": 1.0, "e": 0.0, "f": 0.0}
    ordered = longest_first(tasks, seconds)
    assert [task.name for task in ordered] == ["c", "a", "b", "d", "e", "f"]
    assert duration_of(tasks, {**seconds, "f": 3.0}, 1) == duration_of(ordered, {**seconds, "f": 3.0}, 1) == 12
    late = [Task("short", print, ()), Task("medium", print, ()), Task("long", print, ())]
    seconds = {"short": 1.0, "medium": 2.0, "long": 3.0}
    assert duration_of(late, seconds, 2) == 4
    assert duration_of(longest_first(late, seconds), seconds, 2) == 3


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        *((0.2, "1 s"), (42, "40 s"), (89, "90 s"), (91, "2 min"), (45 * 60, "45 min"), (3600, "1 h")),
        *((5700, "1 h 35 min"), (7790, "2 h 10 min"), (47 * 3600, "47 h"), (49 * 3600, "2 days"), (2e9, "23,148 days")),
    ],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_memory_in_words() -> None:
    assert [in_gigabytes(size) for size in (4e8, 2.96e9, 9.96e9, 2.5e10)] == ["0.4 GB", "3.0 GB", "10 GB", "25 GB"]


@pytest.mark.slow
def test_records_are_the_same_with_and_without_timing(
    tmp_path: Path,
    table: RunTable,
    records: Records,
    executed: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Here, the timing runs in the very process that trains afterwards."""
    assert table(tmp_path / "without", "unfolded") == 0
    assert "this run will take" not in capsys.readouterr().out
    monkeypatch.setattr(estimate, "WORTH", 0)
    assert table(tmp_path / "with", "unfolded") == 0
    assert capsys.readouterr().out.startswith("this run will take about ")
    kept = [
        {name: value for name, value in records(tmp_path / part)["unfolded"].items() if name not in ("cost", "run")}
        for part in ("without", "with")
    ]
    assert kept[0] == kept[1]


def test_timing_leaves_the_random_state_and_writes_nothing(tmp_path: Path) -> None:
    tasks = tasks_of(tmp_path, "unfolded")
    row: Row = tasks[0].arguments[0]
    before, files = torch.get_rng_state(), list(tmp_path.rglob("*"))
    for kind in ("extractor", "teacher", "tokenizer", "generator", "coding", "sampling", "features", "training images"):
        cost = time_piece(Piece(kind, row, 1))
        assert isinstance(cost, Cost), cost
        assert all(seconds > 0 for seconds in cost.seconds.values())
        assert cost.memory > 0
    assert torch.equal(torch.get_rng_state(), before)
    assert list(tmp_path.rglob("*")) == files


def test_a_failed_measurement_is_reported_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Dying(Counting):
        def map(self, function: Callable[[Item], Found], items: Sequence[Item]) -> list[Found]:
            raise InputError("a worker process died")

    monkeypatch.setattr(estimate, "WORTH", 0)
    assert estimate.estimate(tasks_of(tmp_path, "vq"), Dying()) is None
    assert capsys.readouterr().out == "how long this run will take could not be measured: a worker process died\n"


def test_a_dry_run_shows_the_time_of_every_row_and_trains_nothing(
    tmp_path: Path, executed: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(estimate, "WORTH", 0)
    assert run_table(table2.TABLE, Options(rows=("vq",), output=tmp_path, dry_run=True)) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("this run will take about ")
    assert "in all" in shown
    assert not list(tmp_path.rglob("*"))


def test_a_scale_that_is_too_much_names_one_that_is_not(
    tmp_path: Path, shrink: Callable[..., Scale], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "WORTH", 0)
    small = replace(SCALES["mini"], name="small")
    laptop = shrink(SCALES["mini"], threads=None)
    table = Table("table2", "Table 2", table2.rows, {"small": small, "laptop": replace(laptop, name="laptop")})
    options, way = Options(output=tmp_path, scale="small"), Counting()
    expected = estimate.estimate(graph(plan_rows(table, options)), way)
    assert expected is not None
    assert estimate.better_scale(table, options, expected, way) is None
    monkeypatch.setattr(estimate, "TOO_LONG", 0.0)
    line = estimate.better_scale(table, options, expected, way)
    assert line is not None
    assert line.startswith(f"scale small would take about {in_words(expected.run_seconds)} on this machine (CPU, ")
    assert "; --scale laptop takes about " in line
    assert line.endswith(" a row")


def test_a_dead_worker_ends_the_timing_and_not_the_run() -> None:
    workers = Workers(1, 1)
    with pytest.raises(InputError, match="died"):
        workers.map(os._exit, [1])
    assert workers.map(abs, [-1, 2]) == [1, 2]
    workers.finish()


@pytest.mark.parametrize(("fast", "precision"), [(torch.bfloat16, "bf16"), (torch.float32, "no")])
def test_trainings_use_bfloat16_where_the_processor_is_fast_at_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: torch.dtype, precision: str
) -> None:
    monkeypatch.setattr(plan, "fast_dtype", lambda device: fast)
    (mini,) = plan_rows(table2.TABLE, Options(rows=("vq",), output=tmp_path))
    assert mini.row.training.precision == "no"  # which its scale asks for
    asked = replace(mini.row.scale.tokenizer_training, precision="bf16")
    half = replace(asked, precision="fp16")
    monkeypatch.setitem(SCALES, "mini", replace(SCALES["mini"], tokenizer_training=asked, generator_training=half))
    (planned,) = plan_rows(table2.TABLE, Options(rows=("vq",), output=tmp_path))
    assert planned.row.training.precision == planned.row.tokenizer.identity["training"]["precision"] == precision
    assert planned.row.scale.generator_training.precision == "no"
    assert (planned.row.tokenizer.folder == mini.row.tokenizer.folder) == (precision == "no")
