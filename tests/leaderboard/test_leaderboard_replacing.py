"""What happens to earlier results and files that are replaced."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import pytest
from filelock import FileLock
from make_records import make_failed, make_record

from imagefolder.errors import one_line
from imagefolder.files import write_text
from leaderboard import store
from leaderboard.record import Record
from leaderboard.store import RecordError, read_records, write_record

NAME = "table2-imagefolder-mini-digits-d1d1d1d1-seed0"
FIRST = "1c1c1c1c"  # of its configuration's hash


def failed(reason: str = "no space") -> Record:
    return make_failed("imagefolder", 0, reason)


def is_line(text: str) -> bool:
    return text == one_line(text)


@pytest.mark.parametrize("status", ["failed", "not run"])
def test_finished_record_is_kept_if_a_later_run_does_not_finish(tmp_path, status):
    path = write_record(tmp_path, make_record())
    before = path.read_bytes()
    later = failed().model_copy(update={"status": status, "config_sha256": "ff" * 32})
    assert write_record(tmp_path, later) is None
    assert path.read_bytes() == before
    assert not (tmp_path / "earlier").exists()


def test_unfinished_record_is_replaced(tmp_path):
    for later in (failed(), failed("again"), make_record()):
        assert write_record(tmp_path, later) == tmp_path / f"{NAME}.json"
        assert read_records(tmp_path) == [later]
    assert not (tmp_path / "earlier").exists()


def test_replaced_result_of_other_settings_is_kept(tmp_path):
    write_record(tmp_path, make_record())
    before = (tmp_path / f"{NAME}.json").read_bytes()
    assert write_record(tmp_path, make_record(config_sha256="../../evil", note="quick")) is not None
    assert (tmp_path / f"earlier/{NAME}-{FIRST}.json").read_bytes() == before
    write_record(tmp_path, make_record(config_sha256="../../evil", note="again"))
    assert len(list((tmp_path / "earlier").iterdir())) == 1  # equal settings: only the latest is kept
    write_record(tmp_path, make_record())
    assert json.loads((tmp_path / f"earlier/{NAME}-------ev.json").read_text())["note"] == "again"
    assert read_records(tmp_path) == [make_record()]


@pytest.mark.parametrize("content", [b"{", bytes(100), b'{"schema_version": 0}'])
@pytest.mark.parametrize("later", [make_record(), failed()])
def test_unreadable_file_is_moved_aside(tmp_path, content, later):
    path = tmp_path / f"{NAME}.json"
    path.write_bytes(content)
    assert write_record(tmp_path, later) == path
    assert read_records(tmp_path) == [later]
    assert (tmp_path / f"earlier/{NAME}-damaged.json").read_bytes() == content


def test_record_of_a_newer_version_is_moved_aside_under_that_name(tmp_path):
    (tmp_path / f"{NAME}.json").write_text('{"schema_version": 2}')
    assert write_record(tmp_path, make_record()) is not None
    assert [path.name for path in (tmp_path / "earlier").iterdir()] == [f"{NAME}-newer.json"]


def test_result_that_cannot_be_copied_is_not_replaced(tmp_path):
    path = write_record(tmp_path, make_record())
    before = path.read_bytes()
    (tmp_path / "earlier").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="earlier") as caught:
        write_record(tmp_path, make_record(config_sha256="ff" * 32))
    assert is_line(str(caught.value))
    assert path.read_bytes() == before


def test_concurrent_runs_lose_no_result(tmp_path):
    def run(number: int) -> None:
        for i in range(5):
            write_record(tmp_path, make_record(config_sha256=f"{number}{i}" * 32) if number % 2 else failed())

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (last,) = read_records(tmp_path)
    earlier = {json.loads(path.read_text())["config_sha256"] for path in (tmp_path / "earlier").iterdir()}
    assert earlier | {last.config_sha256} == {f"{number}{i}" * 32 for number in (1, 3, 5) for i in range(5)}


def test_lock_that_is_never_released_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "LOCK_SECONDS", 0.05)
    with FileLock(tmp_path / ".records.lock"), pytest.raises(OSError, match="records cannot be written") as caught:
        write_record(tmp_path / "records", make_record())
    assert is_line(str(caught.value))
    assert write_record(tmp_path / "records", make_record()) is not None


def test_full_disk_is_named(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    write_text(tmp_path / "report.md", "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"report\.md cannot be written: .*No space left.* bytes are free") as caught:
        write_text(tmp_path / "report.md", "new")
    assert is_line(str(caught.value))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("report.md", "old")]


def test_only_leftovers_of_killed_processes_are_removed(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    host = os.uname().nodename
    dead = [f".report.md.{process.pid}.tmp", f".report.md.{host}-{process.pid}.tmp", f".report.md.{2**80}.tmp"]
    others = [
        f".report.md.{os.getppid()}.tmp",  # running
        f".report.md.elsewhere-{process.pid}.tmp",  # of another machine
        f".report.html.{process.pid}.tmp",
        ".report.md.mine.tmp",
    ]
    for name in (*dead, *others):
        (tmp_path / name).touch()
    path = write_text(tmp_path / "report.md", "half a character: \ud800")
    assert path.read_text() == "half a character: \\ud800"
    assert sorted(left.name for left in tmp_path.iterdir()) == sorted([*others, "report.md"])
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


def test_long_reason_of_a_failure_is_cut_and_written(tmp_path):
    write_record(tmp_path, failed("first line\nsecond \x1b[31mline " + "x" * 10**5))
    (record,) = read_records(tmp_path)
    assert record.reason.startswith("first line second \\x1b[31mline xxx")
    assert record.reason.endswith("x…")


@pytest.mark.parametrize("table", [".hidden", "a/b", "../up"])
def test_name_of_a_hidden_file_or_a_path_is_refused(tmp_path, table):
    with pytest.raises(RecordError, match="no file name") as caught:
        write_record(tmp_path, make_record(table=table))
    assert is_line(str(caught.value))
    assert list(tmp_path.iterdir()) == []
