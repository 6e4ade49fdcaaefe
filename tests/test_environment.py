"""Code, packages and machine as a record holds them, and the peak memory of a piece of work."""

from __future__ import annotations

import gc
import mmap
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
import torch

import imagefolder.environment as environment
from leaderboard.record import Run


def test_describe_fills_a_records_run_except_for_the_callers_part() -> None:
    described = environment.describe()
    of_the_caller = {"started", "finished", "command", "processes", "execution", "code"}
    assert set(described) == set(Run.model_fields) - of_the_caller
    run = Run(started="a", finished="b", command="c", **described)
    assert run.packages["torch"] == metadata.version("torch")
    assert run.packages["torch-fidelity"] == metadata.version("torch-fidelity")
    assert run.python == platform.python_version()
    assert run.threads == torch.get_num_threads()
    assert run.memory_gib > 0.5
    assert "cores" in run.cpu


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit that seems to contain the package."""

    def git(*arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "imagefolder").mkdir()
    (tmp_path / "imagefolder" / "environment.py").write_text("x = 1\n")
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-m", "one")
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "imagefolder" / "environment.py"))
    return tmp_path


def test_git_state_of_a_clean_and_a_changed_checkout(checkout: Path) -> None:
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=True)
    assert environment.git_state() == (head.stdout.strip(), False)
    (checkout / "imagefolder" / "environment.py").write_text("x = 2\n")
    assert environment.git_state() == (head.stdout.strip(), True)


def test_git_state_outside_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site-packages").mkdir()
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "site-packages" / "environment.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment.git_state() == (None, None)


def test_git_state_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert environment.git_state() == (None, None)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is reset on Linux only")
def test_peak_memory_sees_what_was_touched_since_the_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    environment.reset_peak_memory()
    before = environment.peak_memory_mib()
    block = mmap.mmap(-1, 200 * 2**20)  # an ordinary tensor may reuse freed memory that the process still holds
    torch.frombuffer(block, dtype=torch.uint8).fill_(1)
    grown = environment.peak_memory_mib() - before
    assert 190 < grown < 260
    gc.collect()  # drops the tensor's hold on the block
    block.close()
    assert environment.peak_memory_mib() - before > 190  # the peak, not the current use
    environment.reset_peak_memory()
    assert environment.peak_memory_mib() - before < 100  # until the next reset
