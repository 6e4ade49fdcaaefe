"""After a kill at any point, the same command gives the same records and leaves no other files behind."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lab
import pytest

KILLS, QUICK_KILLS = 200, 3
OPERATIONS = ("replace", "fsync", "unlink", "rename", "mkdir")
PHASES = {
    "data check": "checking images",
    "proxies": "proxy extractor|semantic teacher|real .* features",
    "tokenizer": "training tokenizer",
    "cache": "encoding",
    "generator": "training generator",
    "evaluation": "reconstructing",
    "sampling": "sampling",
}


def dying_at(number: int) -> Callable[[], None]:
    """A hook: the process kills itself before its `number`-th change to the file system."""

    def install() -> None:
        count = 0
        for name in OPERATIONS:
            operation = getattr(os, name)

            def counting(*arguments: Any, operation: Any = operation, **options: Any) -> Any:
                nonlocal count
                count += 1
                if count == number:
                    print(f"killed before {operation.__name__} {arguments[0]}", flush=True)
                    os.kill(os.getpid(), signal.SIGKILL)
                return operation(*arguments, **options)

            setattr(os, name, counting)

    return install


def run_and_kill(
    rng: random.Random, output: Path, arguments: dict[str, Any], parents: list[lab.Process]
) -> tuple[lab.Run, bool]:
    """Run the command and kill it in one of several ways, unless it ends first; returns whether it was killed.

    Killed processes that may have left workers behind are added to `parents`.
    """
    way = rng.choice(["operation", "operation", "main", "main", "group", "worker", "main of workers"])
    if way == "operation":
        run = lab.start(output, "imagefolder", hook=dying_at(rng.randint(1, 60)), **arguments).wait()
        return run, run.code == -signal.SIGKILL
    process = lab.start(output, "imagefolder", workers=way not in ("main",), **arguments)
    deadline = time.monotonic() + rng.uniform(0.1, 1.9)
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    killed = process.poll() is None
    if killed and way == "worker":
        workers = [pid for pid in process.members() if pid != process.pid]
        killed = bool(workers)
        if workers:
            os.kill(rng.choice(workers), signal.SIGKILL)
            run = process.wait()
            if run.code == 0:  # the worker had nothing left to do
                return run, False
            assert run.code == 1, run.text  # named, recorded
            assert any(re.search("(worker process|reads images) (has )?died", line) for line in run.errors), run.text
            return run, True
    if killed and way == "group":
        process.kill_group()
    elif killed:
        os.kill(process.pid, signal.SIGKILL)
    if killed:
        parents.append(process)
    return process.wait(), killed


def require_no_orphans(parents: list[lab.Process]) -> None:
    """Workers notice the death of their parent within seconds, and exit."""
    deadline = time.monotonic() + 10
    while orphans := [pid for parent in parents for pid in parent.members()]:
        assert time.monotonic() < deadline, f"{orphans} still run"
        time.sleep(0.05)


def phase_of(run: lab.Run) -> str:
    """The phase in which a run was killed, from its last output."""
    text = run.text
    if match := re.search(r"killed before \w+ (\S+)", text):
        for name in ("state.pt", "records", "report", "pictures"):
            if name in match[1]:
                return name
    started = [line for line in text.splitlines() if line.endswith(": started")]
    last = started[-1] if started else "start"
    return next((phase for phase, pattern in PHASES.items() if re.search(pattern, last)), "start")


def kill_again_and_again(seed: int, kills: int, tmp_path: Path, wanted: dict[str, dict[str, Any]], tally: Any) -> None:
    """Repeat a command, on digits and on a folder of images in turn, until so many of its runs were killed."""
    rng, killed, phases, chain = random.Random(seed), 0, Counter(), 0
    data = lab.image_folder(tmp_path / "data")
    while killed < kills:
        on = ("digits", "folder")[chain % 2]
        chain += 1
        arguments = {} if on == "digits" else {"data": data, "scale": "small"}
        output = tmp_path / f"{on}{chain}"
        deaths, parents = 0, []
        while deaths < 30:
            run, was_killed = run_and_kill(rng, output, arguments, parents)
            if not was_killed:
                assert run.code in (0, -signal.SIGKILL), run.text
                break
            deaths += 1
            phases[phase_of(run)] += 1
        end = lab.run(output, "imagefolder", **arguments)
        same = end.code == 0 and lab.results(output) == wanted[on] and not lab.leftovers(output)
        for phase, number in phases.items():
            tally(f"killed: {phase}").add("recovered" if same else "lost", number)
        assert end.code == 0, end.text
        assert lab.results(output) == wanted[on]
        assert lab.leftovers(output) == []
        require_no_orphans(parents)
        killed += deaths
        phases.clear()
        shutil.rmtree(output)


@pytest.fixture(scope="module")
def wanted(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The results of undisturbed runs."""
    folder = tmp_path_factory.mktemp("wanted")
    run = lab.run(folder / "runs", "imagefolder", data=str(lab.image_folder(folder / "data")), scale="small")
    assert run.code == 0, run.text
    return {"digits": lab.results(finished), "folder": lab.results(folder / "runs")}


def test_killed_a_few_times(tmp_path: Path, wanted: dict[str, dict[str, Any]], tally: Any) -> None:
    kill_again_and_again(0, QUICK_KILLS, tmp_path, wanted, tally)


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(1, 9))
def test_killed_hundreds_of_times(seed: int, tmp_path: Path, wanted: dict[str, dict[str, Any]], tally: Any) -> None:
    kill_again_and_again(seed, KILLS // 8, tmp_path, wanted, tally)
