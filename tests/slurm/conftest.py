"""A real Slurm for the tests, and run folders."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from in_process import run_in_process
from waiting import HERE, START, command

from slurm.events import Submitted
from slurm.journal import Journal

OWN_CLUSTER = Path("/run/slurm-ci/etc/slurm.conf")


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A Slurm with two nodes: the one that answers, or, as root with SLURM_CI=1, one that is started here."""
    answers = shutil.which("sinfo") and subprocess.run(["sinfo"], capture_output=True, timeout=60).returncode == 0
    if answers:
        yield
    elif os.environ.get("SLURM_CI") != "1":
        pytest.skip("no Slurm answers; SLURM_CI=1 (as root) starts one")
    elif os.getuid() != 0:
        pytest.fail("SLURM_CI=1 needs root to start a Slurm")
    else:
        command(str(START), "start", seconds=300)
        os.environ["SLURM_CONF"] = str(OWN_CLUSTER)
        yield
        command(str(START), "stop", seconds=60)
        del os.environ["SLURM_CONF"]


@pytest.fixture
def overrides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Overrides with which jobs find the stages of the tests; the user's own profiles are not used."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return [f"environment.PYTHONPATH={HERE}:{HERE.parents[1]}"]


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages of cluster local run in this process."""
    monkeypatch.setattr("slurm.launch.run_local", run_in_process)


@pytest.fixture
def run(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A run folder; its jobs are cancelled at the end."""
    folder = tmp_path / "run"
    yield folder
    journal = Journal(folder)
    jobs = {event.job for event in journal.events() if isinstance(event, Submitted) and event.cluster == "slurm"}
    if jobs:
        subprocess.run(["scancel", *jobs], timeout=60, check=False)
