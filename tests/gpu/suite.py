"""The tests that need a GPU, in a process of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.gpu.apart import run_apart
from tests.gpu.item import Needs, Outcome
from tests.gpu.lab import Lab

ROOT = Path(__file__).parent.parent.parent


def run(lab: Lab, files: tuple[str, ...]) -> Outcome:
    """Run the tests marked `gpu` in some files; those that end before the time is over count."""
    (seen,), problem = run_apart(lab.context, run_tests, [(files,)], lab.seconds_left)
    return outcome_of(seen, problem)


def outcome_of(seen: list[tuple[str, str]], problem: str) -> Outcome:
    """What tests have shown.

    Args:
        seen: (test, "passed", "failed" or "skipped") of each.
        problem: why others did not run; "": all did.
    """
    by_outcome = {kind: [name for name, outcome in seen if outcome == kind] for kind in ("passed", "failed", "skipped")}
    if by_outcome["skipped"] and not by_outcome["passed"] and not by_outcome["failed"]:
        raise Needs("CUDA")
    value = ", ".join(f"{len(names)} {kind}" for kind, names in by_outcome.items() if names) or "no test ran"
    if by_outcome["failed"]:
        value += f": {', '.join(by_outcome['failed'])}"
    return Outcome(
        f"{value}; {problem}" if problem else value,
        goal="all pass",
        met=bool(by_outcome["passed"]) and not by_outcome["failed"] and not problem,
        numbers={kind: float(len(names)) for kind, names in by_outcome.items()},
    )


class _Reporter:
    """A plugin of pytest that sends the outcome of every test as soon as it is known."""

    def __init__(self, send: Callable[[tuple[str, str]], None]) -> None:
        self.send = send

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":  # setup and teardown count if something is wrong
            self.send((report.nodeid, report.outcome))


def run_tests(send: Callable[[tuple[str, str]], None], files: tuple[str, ...]) -> None:
    options = ["-m", "gpu", "-p", "no:cacheprovider", "-q", "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml")]
    code = pytest.main([*options, *(str(ROOT / file) for file in files)], plugins=[_Reporter(send)])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise SystemExit(int(code))
