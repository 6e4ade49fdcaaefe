"""Two concurrent runs in one output folder both succeed, with the results of a single run."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path
from typing import Any

import lab
import pytest

PAIRS = 18
WAYS = {
    "same command": ({}, {}),
    "two rows": ({}, {"rows": ("unfolded",)}),
    "one fresh": ({}, {"fresh": True}),
    "fresh twice": ({"fresh": True}, {"fresh": True}),
    "one fresh, another row": ({"rows": ("unfolded",)}, {"fresh": True}),
    "workers": ({"workers": True}, {"workers": True, "rows": ("unfolded", "imagefolder")}),
}


def start(output: Path, rows: tuple[str, ...] = ("imagefolder",), **options: Any) -> lab.Process:
    return lab.start(output, *rows, **options)


def race(seed: int, way: str, finished: Path, both: Path, tmp_path: Path) -> list[lab.Run]:
    """Run a pair, the second after a random delay; in half of the cases, another run has finished before."""
    rng, output = random.Random(f"{seed} {way}"), tmp_path / "runs"
    if rng.random() < 0.5:
        shutil.copytree(finished, output)
    first, second = WAYS[way]
    processes = [start(output, **first)]
    time.sleep(rng.uniform(0, 1.8))
    processes.append(start(output, **second))
    runs = [process.wait() for process in processes]
    for run in runs:
        assert run.code == 0, "\n---\n".join(run.text for run in runs)
    wanted = lab.results(both)
    assert {name: wanted[name] for name in lab.results(output)} == lab.results(output)
    assert lab.leftovers(output) == []
    return runs


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(-(-PAIRS // len(WAYS))))
@pytest.mark.parametrize("way", WAYS)
def test_pairs_at_random_moments(seed: int, way: str, finished: Path, both: Path, tmp_path: Path, tally: Any) -> None:
    counts = tally(f"at once: {way}")
    try:
        race(seed, way, finished, both, tmp_path)
    except BaseException:
        counts.add("lost")
        raise
    counts.add("right")


def test_second_run_waits_and_reports_it(finished: Path, tmp_path: Path, tally: Any) -> None:
    """It starts while the first run saves a large state: no file is deleted, and nothing is trained twice."""

    def slow_saves() -> None:
        save = lab.torch.save

        def slowly(state: Any, path: Path) -> None:
            save(state, path)
            (tmp_path / "saving").touch()
            time.sleep(0.4)

        lab.torch.save = slowly

    output = tmp_path / "runs"
    first = lab.start(output, "imagefolder", hook=slow_saves)
    while not (tmp_path / "saving").exists():
        assert first.poll() is None
        time.sleep(0.01)
    second = lab.start(output, "imagefolder")
    runs = [first.wait(), second.wait()]
    assert [run.code for run in runs] == [0, 0], [run.text for run in runs]
    assert "another run is at work on this; waiting" in runs[1].text
    assert "training tokenizer" not in runs[1].text
    assert lab.results(output) == lab.results(finished)
    tally("at once: same command").add("right")


def test_lock_of_a_killed_run_is_free(finished: Path, tmp_path: Path, tally: Any) -> None:
    output = tmp_path / "runs"
    assert lab.run(output, "imagefolder", hook=lab.at_step(3, "Tokenizer", lambda _: lab.die())).code == -9
    run = lab.run(output, "imagefolder")
    assert run.code == 0, run.text
    assert "waiting" not in run.text
    assert lab.results(output) == lab.results(finished)
    tally("at once: owner killed").add("recovered")
