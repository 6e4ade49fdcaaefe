"""Tasks in worker processes, which run the functions below: order, failures and deaths."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from imagefolder.errors import InputError
from imagefolder.progress import Phase
from reproductions.command import way_here
from reproductions.executor import Task, attempt, execute
from reproductions.workers import Workers


def note(folder: Path, name: str) -> None:
    with (folder / "log").open("a") as log:
        log.write(f"{name}\n")


def refuse(message: str) -> None:
    raise InputError(message)


def break_down() -> None:
    raise KeyError("lost")


def die() -> None:
    os._exit(9)


def write_threads(path: Path) -> None:
    path.write_text(str(torch.get_num_threads()))


def show() -> None:
    with Phase("a phase in a worker", 2) as phase:
        phase.update(1)
    time.sleep(0.1)


def log_of(folder: Path) -> list[str]:
    return (folder / "log").read_text().split()


def test_order_failures_and_threads(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tasks = [
        Task("last", note, (tmp_path, "last"), ("middle", "first")),
        Task("middle", note, (tmp_path, "middle"), ("first",)),
        Task("after the broken", note, (tmp_path, "after the broken"), ("broken",)),
        Task("after that", note, (tmp_path, "after that"), ("after the broken", "first")),
        Task("first", note, (tmp_path, "first")),
        Task("broken", refuse, ("no such backbone",)),
        Task("bug", break_down, ()),
        Task("threads", write_threads, (tmp_path / "threads",)),
        Task("shown", show, ()),
    ]
    failed = execute(tasks, Workers(1, 3))
    assert log_of(tmp_path) == ["first", "middle", "last"]
    assert failed == {
        "broken": "no such backbone",
        "after the broken": "broken failed: no such backbone",
        "after that": "after the broken failed: broken failed: no such backbone",
        "bug": "KeyError: 'lost'",
    }
    assert (tmp_path / "threads").read_text() == "3"
    assert "a phase in a worker" in capfd.readouterr().out


def test_a_bug_leaves_its_traceback_and_a_known_error_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert attempt(Task("bug", break_down, ())) == "KeyError: 'lost'"
    assert attempt(Task("broken", refuse, ("no such backbone",))) == "no such backbone"
    err = capsys.readouterr().err
    assert "break_down" in err
    assert "no such backbone" not in err


def test_dead_worker_is_reported_and_independent_tasks_run(tmp_path: Path) -> None:
    tasks = [
        Task("dead", die, ()),
        Task("needs it", note, (tmp_path, "needs-it"), ("dead",)),
        Task("other", note, (tmp_path, "other")),
    ]
    started = time.monotonic()
    failed = execute(tasks, Workers(1, 1))
    assert time.monotonic() - started < 120
    assert set(failed) == {"dead", "needs it"}
    assert "died" in failed["dead"]
    assert log_of(tmp_path) == ["other"]


def test_later_workers_have_the_environment_of_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("first", "second"):
        monkeypatch.setenv("IMAGEFOLDER_TEST", value)
        workers = Workers(1, 1)
        assert workers.map(os.getenv, ["IMAGEFOLDER_TEST"]) == [value]
        workers.finish()


def test_one_worker_per_usable_cpu() -> None:
    tasks = [Task(str(number), time.time, ()) for number in range(1000)]
    usable = os.sched_getaffinity(0)
    assert way_here(tasks, 1).at_once == len(usable)
    os.sched_setaffinity(0, {min(usable)})  # as in a container or a job
    try:
        assert way_here(tasks, 1).at_once == 1
    finally:
        os.sched_setaffinity(0, usable)


@pytest.mark.slow
def test_what_workers_are_forked_from_has_not_asked_for_a_gpu() -> None:
    source = (
        "import torch\n"
        "def refuse(): raise AssertionError('CUDA cannot be used in a fork of what has used it')\n"
        "torch._C._cuda_getDeviceCount = torch._C._cuda_init = refuse\n"
        "import reproductions.stages\n"
    )
    subprocess.run([sys.executable, "-c", source], check=True)


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from reproductions.executor import Task, execute\n"
        "from reproductions.workers import Workers\n"
        "def stay(path):\n"
        "    Path(path).write_text(str(os.getpid()))\n"
        "    time.sleep(120)\n"
        "if __name__ == '__main__':\n"
        "    execute([Task('stay', stay, (sys.argv[1],))], Workers(1, 1))\n"
    )
    noted = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, str(script), str(noted)])
    try:
        wait_until(lambda: noted.exists() and noted.read_text() != "")
    finally:
        parent.kill()
        parent.wait()
    worker = Path(f"/proc/{noted.read_text()}")
    wait_until(lambda: not worker.exists() or "\nState:\tZ" in (worker / "status").read_text())


def wait_until(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened in time"
        time.sleep(0.1)
