"""The script for GPUs (`tests/gpu`) runs to its end: in dry mode on a CPU, and whatever its items do."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from imagefolder.errors import InputError
from imagefolder.files import read_json
from leaderboard.store import read_speed
from tests.gpu.apart import run_apart
from tests.gpu.item import Item, Needs, Outcome, Result
from tests.gpu.items import ITEMS
from tests.gpu.lab import Lab
from tests.gpu.runner import run_items
from tests.gpu.suite import outcome_of
from tests.gpu.summary import write_summary
from tests.gpu.worker import run_item

ROOT = Path(__file__).parent.parent
NEED_CUDA = {"parity", "graphs", "curves-fp16", "training", "memory", "compile"}  # after what a CPU can do of them
TIMED = {item.name for item in ITEMS if re.match("latency|inception|sample|encode|reconstruct|train-", item.name)}


@pytest.mark.slow
def test_dry_mode_runs_every_item_and_stores_what_it_finds(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.gpu", "--device", "cpu", "--output", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    found = {item["name"]: item for item in read_json(tmp_path / "gpu" / "summary.json")["items"]}
    verdicts = {name: item["verdict"] for name, item in found.items()}
    log = (tmp_path / "gpu" / "log.txt").read_text()
    assert done.returncode == 0, f"{done.stdout}{done.stderr}{log}"
    assert list(found) == [item.name for item in ITEMS] == re.findall("^===== (.+)$", log, re.MULTILINE)
    assert {name for name, verdict in verdicts.items() if verdict == "needs"} == NEED_CUDA
    assert {found[name]["reason"] for name in NEED_CUDA} == {"CUDA"}
    # Times of tiny models on a CPU are measured, but have no goals; what is right must be right here as well
    assert {name for name, verdict in verdicts.items() if verdict == "measured"} == TIMED | {"peak"}
    assert {verdict for verdict in verdicts.values()} == {"needs", "measured", "met"}

    records = read_speed(tmp_path / "speed")
    assert not records.left_out
    assert {(record.stage, record.batch) for record in records} == {
        *(("sample", batch) for batch in (1, 2, 3, 4)),
        ("sample without CUDA graph", 1),
        *((stage, 3) for stage in ("encode", "reconstruct", "feature extraction")),
        *((stage, 3) for stage in ("train generator", "train tokenizer", "train tokenizer with discriminator")),
    }
    for record in records:
        assert record.device == "cpu"
        assert record.run.command.rpartition(" ")[2] in TIMED
        # Other work may slow the peak's measurement down and not the stage's
        assert 0 < (record.fraction_of_peak or 0) < 10
    seconds = {record.batch: record.median_seconds for record in records if record.stage == "sample"}
    assert found["latency"]["numbers"]["seconds"] == seconds[1]

    table = [line for line in (tmp_path / "gpu" / "summary.md").read_text().splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0].removeprefix("| ") for line in table[1:]] == [item.name for item in ITEMS]
    assert all(line.count(" | ") == table[0].count(" | ") for line in table)


@pytest.mark.slow
def test_an_interrupted_run_says_what_it_leaves(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.gpu", "--device", "cpu", "--output", str(tmp_path)]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    first = running.stdout.readline()
    running.send_signal(signal.SIGINT)
    rest, _ = running.communicate(timeout=60)
    summary = tmp_path / "gpu" / "summary.md"
    assert (first.split(":")[0], running.returncode) == ("peak", 130)
    assert rest.splitlines()[-1] == f"interrupted; {summary} has what was measured, and --only chooses what is missing"
    assert "| peak |" in summary.read_text()


def raises(lab: Lab) -> Outcome:
    raise ZeroDivisionError("no\nway")


def lacks(lab: Lab) -> Outcome:
    raise Needs("a moon")


def finds(lab: Lab, met: bool | None) -> Outcome:
    assert lab.seconds_left < 9
    return Outcome("3 | 4", goal="more", met=met, numbers={"n": 3.0})


def dies(lab: Lab) -> Outcome:
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError


def hangs(lab: Lab) -> Outcome:
    child = subprocess.Popen(["sleep", "1000"])
    (lab.output / "child").write_text(str(child.pid))
    time.sleep(1000)
    raise AssertionError


def item(name: str, seconds: float = 9.0, **arguments: Any) -> Item:
    return Item(name, f"one that {name}", seconds, f"tests.test_gpu.{name}", arguments)


@pytest.mark.parametrize(
    ("given", "verdict", "reason"),
    [
        (item("raises"), "failed", "ZeroDivisionError: no way"),
        (item("lacks"), "needs", "a moon"),
        (item("finds", met=True), "met", ""),
        (item("finds", met=False), "not met", ""),
        (item("finds", met=None), "measured", ""),
        (item("missing"), "failed", "AttributeError: module 'tests.test_gpu' has no attribute 'missing'"),
    ],
)
def test_what_becomes_of_an_item(tmp_path: Path, given: Item, verdict: str, reason: str) -> None:
    result = run_item(given, given.seconds, Lab("cpu", tmp_path))
    assert (result.verdict, result.reason) == (verdict, reason)
    assert (result.value, result.numbers) == (("3 | 4", {"n": 3.0}) if given.name == "finds" else ("", {}))


@pytest.mark.slow
def test_an_item_that_hangs_or_dies_does_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "gpu").mkdir()
    items = [item("hangs", seconds=1.0), item("dies"), item("finds", met=True), item("lacks", seconds=1000.0)]
    results: dict[str, Result] = {}
    machine: dict[str, Any] = {}
    run_items(items, "cpu", tmp_path, 100, machine, lambda given, result: results.update({given.name: result}))
    assert [(name, result.in_words) for name, result in results.items()] == [
        ("hangs", "failed: ended after 1 s"),
        ("dies", "failed: its process died: SIGSEGV"),
        ("finds", "met"),
        ("lacks", "not run: no time left"),
    ]
    assert "torch" in machine["packages"]
    child = Path("/proc") / (tmp_path / "child").read_text()
    assert not child.exists() or "State:\tZ" in (child / "status").read_text()


@pytest.mark.slow
def test_a_device_that_is_not_there_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "gpu").mkdir()
    with pytest.raises(InputError, match="torch finds no CUDA device here; --device cpu"):
        run_items(ITEMS[:1], "cuda", tmp_path, 100, {}, lambda *_: None)


def test_items_without_time_are_reported_as_such(tmp_path: Path) -> None:
    results: dict[str, Result] = {}
    run_items(ITEMS, "cpu", tmp_path, 0, {}, lambda given, result: results.update({given.name: result}))
    assert list(results) == [item.name for item in ITEMS]
    assert {result.in_words for result in results.values()} == {"not run: no time left"}


def test_a_summary_of_an_unfinished_run_lists_all_items(tmp_path: Path) -> None:
    result = Result("failed", value="3 | 4", reason="two\nlines", numbers={"n": 3.0})
    write_summary(tmp_path, [item("finds"), item("lacks")], {"finds": result}, {}, 12.3)
    text = (tmp_path / "summary.md").read_text()
    assert "1 failed, 1 not run; 12 s." in text
    assert r"| finds | one that finds | 3 \| 4 |  | failed: two lines | 0 |" in text
    assert "| lacks | one that lacks |  |  | not run: not reached | 0 |" in text
    first, second = read_json(tmp_path / "summary.json")["items"]
    assert (first["numbers"], second["verdict"]) == ({"n": 3.0}, "not run")


@pytest.mark.parametrize(
    ("seen", "problem", "value", "met"),
    [
        ([("a", "passed"), ("b", "passed"), ("c", "skipped")], "", "2 passed, 1 skipped", True),
        ([("a", "passed"), ("b", "failed")], "", "1 passed, 1 failed: b", False),
        ([("a", "passed")], "not done after 9 s", "1 passed; not done after 9 s", False),
        ([], "process 0 ended with exit code 4", "no test ran; process 0 ended with exit code 4", False),
    ],
)
def test_outcome_of_tests(seen: list[tuple[str, str]], problem: str, value: str, met: bool) -> None:
    outcome = outcome_of(seen, problem)
    assert (outcome.value, outcome.met) == (value, met)


def sends(send: Any, value: int, then: str) -> None:
    send((value, os.environ["NUMBER"]))
    if then == "fail":
        sys.exit(3)
    time.sleep(1000 if then == "hang" else 0)


@pytest.mark.parametrize(
    ("thens", "seconds", "problem"),
    [
        (("end", "end"), 60, ""),
        (("hang", "fail"), 60, "process 1 ended with exit code 3, see log.txt"),
        (("hang", "end"), 1, "not done after 1 s"),
    ],
)
def test_processes_of_an_item_end_in_time_and_what_they_sent_counts(
    tmp_path: Path, thens: tuple[str, str], seconds: float, problem: str
) -> None:
    arguments, environments = [(i, then) for i, then in enumerate(thens)], [{"NUMBER": str(i)} for i in range(2)]
    sent, found = run_apart(Lab("cpu", tmp_path).context, sends, arguments, seconds, environments)
    assert (sent, found) == ([[(0, "0")], [(1, "1")]], problem)
    assert "NUMBER" not in os.environ
