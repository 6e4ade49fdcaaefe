"""Benchmarks run only on request, and their file holds what a record needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "pytest", "tests/benchmarks", "-p", "no:cacheprovider", "-q", *arguments]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


def collected(*arguments: str) -> list[str]:
    return [line for line in run("--collect-only", *arguments).stdout.splitlines() if "::" in line]


@pytest.mark.slow
def test_selection():
    assert collected() == []
    plain = collected("--benchmark-only")
    large = collected("--benchmark-only", "-m", "large")
    assert any("released-1-" in name for name in plain)
    assert any("released-16-" in name for name in large)
    assert not set(plain) & set(large)


@pytest.mark.slow
def test_the_file_of_a_benchmark_holds_what_a_record_needs(tmp_path):
    file = tmp_path / "benchmarks.json"
    result = run("--benchmark-only", "--benchmark-json", str(file), "-k", "test_encode and mini-1- and float32")
    assert result.returncode == 0, result.stdout
    document = json.loads(file.read_text())
    assert {"git_commit", "packages", "cpu", "threads"} <= document["machine_info"]["imagefolder"].keys()
    (entry,) = (e for e in document["benchmarks"] if "cpu" in e["name"])
    about = entry["extra_info"]
    assert (about["stage"], about["model"], about["batch"], about["tokens"]) == ("encode", "mini-MSVR3P2-256", 1, 28)
    assert about["peak_flops"] > about["flops"] > 1e6
    assert about["peak_memory_mib"] > 50
    assert 0 < about["flops"] / entry["stats"]["median"] < about["peak_flops"]
