"""`--watch`: a real loop in a thread, over real records."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import run

from leaderboard import watch as watching
from leaderboard.__main__ import command as leaderboard
from leaderboard.store import write_record


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """Start the loop over a folder; `until(text)` waits for a line with it and returns the line."""
    monkeypatch.setattr(watching, "POLL_SECONDS", 0.02)
    lines, stop, threads = [], threading.Event(), []

    def start(build: Callable[[], object]) -> Callable[[str], str]:
        thread = threading.Thread(target=watching.watch, args=(tmp_path, build, stop), kwargs={"tell": lines.append})
        thread.start()
        threads.append(thread)

        def until(text: str) -> str:
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                if found := [line for line in lines if text in line]:
                    return found[0]
                time.sleep(0.01)
            raise AssertionError(f"no line with {text!r}: {lines}")

        return until

    yield start
    stop.set()
    for thread in threads:
        thread.join()


def test_every_change_is_built_and_named(tmp_path, watched, make):
    counts = []
    until = watched(lambda: counts.append(1))
    assert re.fullmatch(r"\d\d:\d\d:\d\d built in 0\.\d s \(first build\)", until("first build"))
    path = write_record(tmp_path / "records", make())
    assert until(f"record new: {path.stem}")
    write_record(tmp_path / "records", make(gfid=7.125))
    assert until(f"record changed: {path.stem}")
    (tmp_path / "pictures").mkdir()
    names = [tmp_path / "pictures" / f".{i}.tmp" for i in range(5)]
    for name in names:  # hidden ones are being written
        name.write_bytes(b"x")
    time.sleep(0.1)
    built = len(counts)
    (tmp_path / "pictures" / "one.png").write_bytes(b"x")
    assert until("picture new: one")
    assert len(counts) == built + 1
    path.unlink()
    assert until(f"record gone: {path.stem}")


def test_a_build_that_fails_is_one_line_and_the_next_one_is_tried(tmp_path, watched, make):
    problems = [OSError("the disk is full"), RuntimeError("not thought of\nat all"), None]

    def build() -> None:
        if problem := problems.pop(0):
            raise problem

    until = watched(build)
    assert until("not built: the disk is full")
    write_record(tmp_path / "records", make())
    assert "\n" not in until("not built: RuntimeError: not thought of at all")
    write_record(tmp_path / "records", make("var"))
    assert until("built in")


@pytest.mark.slow
def test_the_command_rebuilds_and_ends_with_the_usual_line(tmp_path, make):
    output = tmp_path / "runs"
    command = [sys.executable, "-u", "-m", "leaderboard", "--watch", "--output", str(output)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    assert "not built: no records yet (first build)" in process.stdout.readline()
    (output / "records").mkdir(parents=True)
    (output / "records" / "half.json").write_text('{"schema_version": 1, "run"')
    assert "not built: no records yet (record new: half)" in process.stdout.readline()
    path = write_record(output / "records", make())
    assert path is not None
    assert f"(record new: {path.stem})" in process.stdout.readline()
    assert make().label in (output / "report.html").read_text()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    left_out, last = errors.splitlines()  # the half record is named once
    assert str(output / "records" / "half.json") in left_out
    assert last == "interrupted; the same command continues"


@pytest.mark.parametrize(
    "options", [("--watch", "--serve"), ("--publish", "x", "--watch"), ("--serve", "--compare", "a")]
)
def test_one_way_at_a_time(options, capsys):

    assert run(leaderboard, *options) == 2
    assert "give only one of" in capsys.readouterr().err


def test_files_that_vanish_while_they_are_listed_do_not_end_the_loop(tmp_path: Path):
    (tmp_path / "records").mkdir()
    os.symlink(tmp_path / "nowhere", tmp_path / "records" / "broken.json")
    (tmp_path / "speed").write_text("not a folder")
    assert watching._files(tmp_path) == {}
