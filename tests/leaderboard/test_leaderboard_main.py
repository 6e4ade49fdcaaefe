from __future__ import annotations

import subprocess
import sys

import pytest
from commands import run

from leaderboard.__main__ import command as report
from leaderboard.store import write_record


def test_command_builds_its_files(tmp_path, make):
    write_record(tmp_path / "runs/records", make())
    command = [sys.executable, "-m", "leaderboard", "--output", str(tmp_path / "runs")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    paths = [str(tmp_path / "runs" / name) for name in ("report.html", "report.md", "leaderboard.csv", "claims.csv")]
    assert result.stdout.splitlines() == paths
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == [
        ".records.lock",
        "charts",
        "claims.csv",
        "leaderboard.csv",
        "records",
        "report.html",
        "report.md",
    ]


@pytest.mark.parametrize("folder", ["missing", "empty"])
def test_no_records_is_one_line_with_the_command_to_run(tmp_path, capsys, folder):
    (tmp_path / "empty/records").mkdir(parents=True)
    assert run(report, "--output", tmp_path / folder) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert "python reproductions/table2.py" in err
    assert err.count("\n") == 1


def test_corrupt_record_is_one_line(tmp_path, make, capsys):
    path = write_record(tmp_path / "records", make())
    path.write_text("{")
    assert run(report, "--output", tmp_path) == 2
    _, err = capsys.readouterr()
    assert str(path) in err
    assert err.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


def test_missing_reported_file_is_one_line(tmp_path, make, capsys):
    write_record(tmp_path / "records", make())
    assert run(report, "--output", tmp_path, "--reported", tmp_path / "gone.csv") == 2
    _, err = capsys.readouterr()
    assert "gone.csv" in err
    assert err.count("\n") == 1


def test_output_that_cannot_be_written_is_one_line(tmp_path, make, capsys):
    write_record(tmp_path / "records", make())
    (tmp_path / "report.html").mkdir()  # a folder where the report should be
    assert run(report, "--output", tmp_path) == 2
    _, err = capsys.readouterr()
    assert "report.html" in err
    assert err.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == [".records.lock", "records", "report.html"]
