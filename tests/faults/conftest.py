"""Count faults by their outcome, and print one table at the end."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils.tensorboard

sys.path.insert(0, str(Path(__file__).parent))

import lab

OUTCOMES = ("right", "recovered", "refused", "lost")
_counts: dict[str, Counter[str]] = {}


class Tally:
    """Counts of the outcomes of one kind of fault.

    right: the run gave the same result as an undisturbed one; recovered: the same command did, when run again;
    refused: one line named the problem, and nothing else was changed; lost: anything else.
    """

    def __init__(self, kind: str) -> None:
        self.counts = _counts.setdefault(kind, Counter())

    def add(self, outcome: str, number: int = 1) -> None:
        assert outcome in OUTCOMES
        self.counts[outcome] += number


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Any:
    """`tally(kind)` returns the counts of a kind."""
    return Tally


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not _counts:
        return
    terminalreporter.section("faults")
    width = max(map(len, _counts))
    terminalreporter.write_line(f"{'kind':{width}}  tried  " + "  ".join(f"{outcome:>9}" for outcome in OUTCOMES))
    total: Counter[str] = Counter()
    for kind, counts in sorted(_counts.items()):
        terminalreporter.write_line(_line(kind, counts, width))
        total += counts
    terminalreporter.write_line(_line("all", total, width))


def _line(kind: str, counts: Counter[str], width: int) -> str:
    cells = "  ".join(f"{counts[outcome]:9}" for outcome in OUTCOMES)
    return f"{kind:{width}}  {sum(counts.values()):5}  {cells}"


@pytest.fixture(autouse=True)
def always_one_thread(one_thread: None) -> None:
    """In every test of this folder."""


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of an undisturbed run of one row. Do not modify it: copy it."""
    torch.set_num_threads(1)
    output = tmp_path_factory.mktemp("undisturbed") / "runs"
    run = lab.run(output, "imagefolder")
    assert run.code == 0, run.text
    return output


@pytest.fixture(scope="session")
def both(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a second row on the same tokenizer."""
    output = tmp_path_factory.mktemp("both") / "runs"
    shutil.copytree(finished, output)
    run = lab.run(output, "unfolded")
    assert run.code == 0, run.text
    return output
