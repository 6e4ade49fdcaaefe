"""What a run leaves on disk while it works, as `leaderboard.running` shows it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from imagefolder.interruption import clear_stop, request_stop
from leaderboard.running import Running, Runs
from reproductions.scales import SCALES, Scale

STEPS = 45


@contextmanager
def watched(output: Path, seen: Callable[[Running], object]) -> Iterator[list[list[Running]]]:
    """Look at what runs every few milliseconds; `seen` is called with every stage at every look."""
    looks: list[list[Running]] = []
    runs, stop = Runs(output), threading.Event()

    def look() -> None:
        while not stop.wait(0.01):
            looks.append(runs.now())
            for each in looks[-1]:
                seen(each)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield looks
    finally:
        stop.set()
        thread.join()


@pytest.mark.slow
def test_a_run_shows_its_rows_stages_steps_and_losses(
    tmp_path: Path,
    tiny_mini: Scale,
    table: Callable[..., int],
    executed: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainings = {
        name: replace(getattr(tiny_mini, name), steps=STEPS) for name in ("tokenizer_training", "generator_training")
    }
    monkeypatch.setitem(SCALES, "mini", replace(tiny_mini, **trainings))
    output = tmp_path / "runs"

    def stop_generator(found: Running) -> None:
        if found.stage == "training generator" and found.step:
            request_stop()

    try:
        with watched(output, stop_generator) as looks:
            assert table(output, "imagefolder") == 1
    finally:
        clear_stop()
    found = [each for look in looks for each in look if each.running]
    assert {each.stage for each in found} >= {"training proxy network", "training tokenizer", "training generator"}
    # For some milliseconds a lock is held before its note is there
    assert {each.row for each in found if each.stage.startswith("training")} - {""} == {"ImageFolder"}
    tokenizer = [each for each in found if each.stage == "training tokenizer" and each.step and each.row]
    assert {(each.table, each.seed, each.place, each.steps) for each in tokenizer} == {
        ("table2", 0, "mini · digits", STEPS)
    }
    assert 20 in {each.step for each in tokenizer}
    assert all(value > 0 for each in tokenizer for name, value in each.values if name == "reconstruction")
    assert all(each.plain()["elapsed"] >= 0 for each in tokenizer)

    (interrupted,) = Runs(output).now()
    assert (interrupted.running, interrupted.stage, interrupted.steps) == (False, "training generator", STEPS)
    assert 20 <= (interrupted.step or 0) < STEPS
    assert "cross_entropy" in dict(interrupted.values)

    with watched(output, lambda _: None) as looks:
        assert table(output, "imagefolder") == 0
    stages = {each.stage for look in looks for each in look if each.running}
    assert stages >= {"training generator", "evaluation", "timing"}
    assert "training tokenizer" not in stages
    assert Runs(output).now() == []
    assert list((output / "locks").glob("*.json")) == []
