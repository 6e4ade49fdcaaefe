"""Stages on this machine, without Slurm."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import work
from in_process import slurm_command
from waiting import HERE, wait_for

from slurm import SlurmError, Stage
from slurm.events import Started
from slurm.journal import Journal
from slurm.launch import submit
from slurm.status import read_status


def graph(run: Path) -> list[Stage]:
    """bad fails until the file `key` exists; good does not depend on it."""
    return [
        Stage("shared", work.note, (run / "shared",)),
        Stage("bad", work.fail_without, (run / "key", run / "bad"), after=("shared",)),
        Stage("after bad", work.note, (run / "after-bad",), after=("bad",)),
        Stage("good", work.fail_without, (run / "shared", run / "good"), after=("shared",)),
        Stage("report", work.note, (run / "report",), after_any=("after bad", "good")),
    ]


def test_failed_stage_stops_only_what_depends_on_it(
    run: Path, overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)]
    settings = [*overrides, "array_parallelism=4"]
    failed = submit(run, graph(run), profile="local", overrides=settings)
    reason = f"FileNotFoundError: {run}/key is missing"
    assert failed == {"bad": reason, "after bad": f"bad failed: {reason}"}
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)] == handlers
    assert (run / "good").exists()
    assert (run / "report").exists()
    capsys.readouterr()
    assert slurm_command("status", run) == 1
    shown = capsys.readouterr().out
    assert f"reason: {reason}" in shown
    assert "reason: bad did not finish" in shown
    assert read_status(Journal(run))["after bad"].blocked_by == "bad"

    (run / "key").touch()
    assert slurm_command("resubmit", run, "--set", "array_parallelism=3") == 0
    assert (run / "good").read_text() == (run / "shared").read_text() == "ran\n"
    assert (run / "report").read_text() == "ran\nran\n"
    assert slurm_command("status", run) == 0
    assert submit(run, graph(run), profile="local", overrides=settings) == {}
    assert (run / "report").read_text() == "ran\nran\n"  # all finished: nothing is repeated
    assert submit(run, graph(run)[:1], profile="local", overrides=settings, fresh=True) == {}
    assert (run / "shared").read_text() == "ran\nran\n"


def test_local_processes_know_each_other_and_requeue(run: Path, overrides: list[str]) -> None:
    folder = run / "training"
    stages = [
        Stage("environment", work.write_environment, (run / "environment",), kind="training"),
        Stage("idle", work.makes_no_progress, (run / "idle",), progress=run / "idle"),
    ]
    settings = [*overrides, "training.tasks_per_node=2", "restarts_without_progress=2", "training.gpus_per_node=0"]
    failed = submit(run, stages, profile="local", overrides=settings)
    assert failed["idle"] == "RuntimeError: given up after 2 restarts without progress beyond step 0; allow more time?"
    assert (run / "idle" / "attempts").read_text() == "ran\nran\n"
    assert not folder.exists()
    seen = json.loads((run / "environment" / "0.json").read_text())
    assert seen["WORLD_SIZE"] == "2"


@pytest.mark.parametrize("how", ["interrupt", "cancel"])
def test_interrupted_run_saves_and_continues(how: str, run: Path, overrides: list[str]) -> None:
    folder = run / "training"
    script = (
        "import signal, work; from pathlib import Path; from slurm import Stage; from slurm.launch import submit\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a test in the background ignores it
        f"folder = Path({str(folder)!r})\n"
        "stage = Stage('training', work.count, (folder, 40, 0.1), request_stop=work.request_stop, progress=folder)\n"
        f"print(submit({str(run)!r}, [stage], profile='local', overrides={overrides!r}))\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{HERE}:{HERE.parents[1]}"}
    launcher = subprocess.Popen([sys.executable, "-c", script], env=environment, start_new_session=True)
    journal = Journal(run)
    end = time.monotonic() + 20
    while not (folder / "trace").exists() and time.monotonic() < end:
        time.sleep(0.1)
    stage = Stage("training", work.count, (folder, 40, 0.0), request_stop=work.request_stop, progress=folder)
    with pytest.raises(SlurmError, match=f"another process .{launcher.pid} on .* works on"):
        submit(run, [stage], profile="local", overrides=overrides)
    if how == "interrupt":
        os.killpg(launcher.pid, signal.SIGINT)  # Ctrl-C reaches all processes of the terminal
    else:
        assert slurm_command("cancel", run) == 0
    assert launcher.wait(30) != 0
    step = json.loads((folder / "state.json").read_text())[0]
    assert 0 < step < 40
    assert wait_for(journal, {"training": "failed"}, 5)["training"].reason.startswith("ended by SIGTERM")
    assert submit(run, [stage], profile="local", overrides=overrides) == {}
    assert [int(line) for line in (folder / "trace").read_text().split()] == list(range(1, 41))


def test_stages_of_a_killed_launcher_are_taken_over(run: Path, overrides: list[str]) -> None:
    script = (
        "import work; from pathlib import Path; from slurm import Stage; from slurm.launch import submit\n"
        f"stage = Stage('note', work.sleep_and_note, (Path({str(run / 'note')!r}), 3.0))\n"
        f"submit({str(run)!r}, [stage], profile='local', overrides={overrides!r})\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{HERE}:{HERE.parents[1]}"}
    launcher = subprocess.Popen([sys.executable, "-c", script], env=environment)
    journal = Journal(run)
    end = time.monotonic() + 20
    while not journal.events() and time.monotonic() < end:
        time.sleep(0.1)
    launcher.kill()
    launcher.wait()
    stages = [
        Stage("note", work.sleep_and_note, (run / "note", 3.0)),
        Stage("after", work.fail_without, (run / "note", run / "after"), after=("note",)),
    ]
    assert submit(run, stages, profile="local", overrides=overrides) == {}
    assert (run / "note").read_text() == "ran\n"


def test_killed_process_is_noticed(run: Path, overrides: list[str]) -> None:
    stage = Stage("victim", work.kill_itself)
    failed = submit(run, [stage], profile="local", overrides=overrides)
    assert failed == {"victim": "its process exited without an error message (killed, or out of memory)"}


def test_parallelism_is_limited(run: Path, overrides: list[str]) -> None:
    spans = [Stage(f"span {n}", work.span, (run / f"span{n}",)) for n in range(3)]
    assert submit(run, spans, profile="local", overrides=[*overrides, "array_parallelism=1"]) == {}
    times = sorted(json.loads((run / f"span{n}").read_text()) for n in range(3))
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(times))


def test_stop_during_imports_requeues(run: Path, overrides: list[str]) -> None:
    """A signal that arrives while the stage's modules are being imported leads to a second attempt."""
    stage = Stage("slow import", work.Unpickles(run / "note", run / "first").run)
    assert submit(run, [stage], profile="local", overrides=overrides) == {}
    assert (run / "note").read_text() == "ran\n"
    assert len([event for event in Journal(run).events() if isinstance(event, Started)]) == 2


def test_several_nodes_require_slurm(run: Path, overrides: list[str]) -> None:
    with pytest.raises(SlurmError, match="2 nodes need Slurm"):
        submit(run, [Stage("a", work.sleep, (0,))], profile="local", overrides=[*overrides, "nodes=2"])


def test_missing_slurm_is_reported(run: Path, overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(run))
    with pytest.raises(SlurmError, match="sbatch is not on the path"):
        submit(run, [Stage("a", work.sleep, (0,))], profile="slurm", overrides=overrides)
    assert not run.exists()


def test_logs_are_followed(run: Path, overrides: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    stage = Stage("speaker", work.speak, (["first", "second"], 1.0))
    submit(run, [stage], profile="local", overrides=overrides)
    capsys.readouterr()
    assert slurm_command("logs", "speaker", run, "--follow") == 0
    shown = capsys.readouterr().out
    assert shown.index("first") < shown.index("second")
    assert slurm_command("logs", "speeker", run) == 2
    assert "it has: speaker" in capsys.readouterr().err


def test_a_stage_is_found_by_its_name_its_job_or_a_part_of_its_name(
    run: Path, overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    stages = [Stage(name, work.speak, ([word], 0.0)) for name, word in (("a", "one"), ("ab", "two"), ("cb", "three"))]
    assert submit(run, stages, profile="local", overrides=overrides) == {}
    capsys.readouterr()
    for text, word in (("a", "one"), ("ab", "two"), ("c", "three"), (read_status(Journal(run))["cb"].job, "three")):
        assert slurm_command("logs", text, run) == 0
        assert word in capsys.readouterr().out
    for wrong in (["logs", "b", run], ["cancel", run, "--stages", "a", "b"]):
        assert slurm_command(*wrong) == 2
        assert "'b' can be any of: ab, cb" in capsys.readouterr().err
