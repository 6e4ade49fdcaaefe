"""NaN, full disks, changing data, dying processes, and machines without memory, a home folder or a user."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lab
import pytest
import torch
from in_process import run_in_process

from slurm import launch

ROOT = Path(__file__).parents[2]
NAMES_OF_WRITES = ("state.pt", "config.json", "about.json", "records", "report.html", "extractor.json", "curve.jsonl")


def poison(task: Any) -> None:
    """One weight of the model becomes NaN."""
    with torch.no_grad():
        next(task.model.parameters()).view(-1)[0] = float("nan")


def poison_all(task: Any) -> None:
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.fill_(float("nan"))


def poison_moments(task: Any) -> None:
    state = task.optimizers[0].state
    next(iter(state.values()))["exp_avg"].fill_(float("inf"))


LAST = {"Tokenizer": lab.TOKENIZER_STEPS - 1, "Generator": lab.GENERATOR_STEPS - 1}


@pytest.mark.parametrize(
    ("task", "step", "act"),
    [
        ("Tokenizer", LAST["Tokenizer"], poison_all),
        ("Generator", LAST["Generator"], poison),
        ("Tokenizer", 11, poison_moments),
        *(
            pytest.param(task, step, act, marks=pytest.mark.faults)
            for task, step in (*LAST.items(), ("Tokenizer", 11), ("Generator", 3))
            for act in (poison, poison_all, poison_moments)
        ),
    ],
)
def test_nan_is_neither_saved_nor_recorded(
    finished: Path, tmp_path: Path, task: str, step: int, act: Callable[[Any], None], tally: Any
) -> None:
    output = tmp_path / "runs"
    run = lab.run(output, "imagefolder", hook=lab.at_step(step, task, act, after=True))
    assert run.code == 1, run.text
    assert any("not finite" in line for line in run.errors), run.errors
    assert [record["status"] for record in lab.results(output).values()] == ["failed"]
    again = lab.run(output, "imagefolder")
    assert again.code == 0, again.text
    assert lab.results(output) == lab.results(finished)
    tally("not a number").add("recovered")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A separate file system of 60 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = os.getuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", str(folder)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("mounting a small file system needs root, and a machine that allows it")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> None:
    if not (disk / "filler").exists():
        with (disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))


def filled_before(name: str, disk: Path) -> Callable[[], None]:
    """A hook: the disk is full from the moment when a file of this name is about to be written."""

    def install() -> None:
        with_name = Path.with_name  # called for the name of the temporary file

        def filling(self: Path, other: str) -> Path:
            if name in str(self) and other.endswith(".tmp"):
                fill(disk)
            return with_name(self, other)

        Path.with_name = filling

    return install


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.faults) for n in NAMES_OF_WRITES] + ["settings.json"]
)
def test_a_full_disk_is_named_and_nothing_is_lost(finished: Path, small_disk: Path, name: str, tally: Any) -> None:
    output = small_disk / "runs"
    at_once = lab.at_step(5, "Tokenizer", lambda _: fill(small_disk))
    hook = at_once if name == "curve.jsonl" else filled_before(name, small_disk)
    run = lab.run(output, "imagefolder", hook=hook)
    assert run.code in (1, 2), run.text
    assert not run.is_traceback, run.text
    assert any(str(output) in line for line in run.errors), run.errors
    (small_disk / "filler").unlink()
    again = lab.run(output, "imagefolder")
    assert again.code == 0, again.text
    assert lab.results(output) == lab.results(finished)
    assert lab.leftovers(output) == []
    tally("full disk").add("recovered")


@pytest.mark.parametrize("draw", ["train", "all"])
def test_images_replaced_during_a_training_are_noticed(tmp_path: Path, draw: str, tally: Any) -> None:
    data = lab.image_folder(tmp_path / "data")
    output = tmp_path / "runs"

    def replace(_: Any) -> None:
        times = {path: path.stat() for path in data.rglob("*.png")}
        lab.image_folder(data, draw=1)
        for path, status in times.items():  # like a copy that preserves times
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    task, step = ("Tokenizer", 5) if draw == "train" else ("Generator", lab.GENERATOR_STEPS - 1)
    run = lab.run(output, "vq", data=str(data), scale="small", hook=lab.at_step(step, task, replace))
    assert run.code == 1, run.text
    assert any("changed" in line and str(data) in line for line in run.errors), run.errors
    tally("images replaced").add("refused")


def test_an_image_removed_during_a_training_is_named(tmp_path: Path, tally: Any) -> None:
    data = lab.image_folder(tmp_path / "data")
    hook = lab.at_step(3, "Tokenizer", lambda _: shutil.rmtree(data / "class0"))
    run = lab.run(tmp_path / "runs", "vq", data=str(data), scale="small", hook=hook)
    assert run.code == 1, run.text
    (record,) = lab.results(tmp_path / "runs").values()
    assert "\n" not in record["reason"]
    assert any("class0" in line for line in run.errors), run.errors
    tally("images replaced").add("refused")


@pytest.mark.faults
def test_output_folder_removed_during_a_run(tmp_path: Path, tally: Any) -> None:
    output = tmp_path / "runs"
    run = lab.run(output, "imagefolder", hook=lab.at_step(6, "Tokenizer", lambda _: shutil.rmtree(output)))
    assert run.code in (0, 1, 2), run.text
    assert not run.is_traceback, run.text
    assert lab.run(output, "imagefolder").code == 0
    tally("output removed").add("recovered")


def test_output_folder_that_cannot_be_written(tmp_path: Path, tally: Any) -> None:
    (tmp_path / "file").write_text("")
    run = lab.run(tmp_path / "file", "imagefolder")
    assert run.code == 2, run.text
    assert any("cannot be written" in line for line in run.errors)
    tally("read-only output").add("refused")


@pytest.mark.faults
def test_out_of_memory_is_one_line(finished: Path, tmp_path: Path, tally: Any) -> None:
    def starve(_: Any) -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**20, used + 2**20))

    output = tmp_path / "runs"
    run = lab.run(output, "imagefolder", hook=lab.at_step(6, "Tokenizer", starve))
    assert run.code in (1, 2), run.text
    assert run.errors
    assert all(len(line) < 1000 for line in run.errors)
    again = lab.run(output, "imagefolder")
    assert again.code == 0, again.text
    assert lab.results(output) == lab.results(finished)
    tally("memory limit").add("recovered")


@pytest.mark.parametrize(
    "seed", [20241126120000, *(pytest.param(seed, marks=pytest.mark.faults) for seed in (2**63 - 1, -3))]
)
def test_large_and_negative_seeds(tmp_path: Path, seed: int) -> None:
    run = lab.run(tmp_path / "runs", "imagefolder", seed=seed)
    assert run.code == 0, run.text
    assert lab.run(tmp_path / "runs", "imagefolder", seed=seed).code == 0


def test_seed_of_more_than_64_bits_is_refused(tmp_path: Path) -> None:
    run = lab.run(tmp_path / "runs", "imagefolder", seeds=(0, 2**63))
    assert run.code == 2, run.text
    assert any(f"seed {2**63}" in line for line in run.errors)


def test_secret_of_the_jobs_is_not_in_records_or_the_report(tmp_path: Path, tally: Any) -> None:
    output, secret = tmp_path / "runs", "environment.HF_TOKEN=hf_secret123"
    (tmp_path / "here.yaml").write_text("cluster: local\n")

    def typed() -> None:
        sys.argv = ["table2.py", "--submit", "--set", secret]
        launch.run_local = run_in_process

    options = {"submit": True, "profile": str(tmp_path / "here.yaml"), "set": (secret,)}
    run = lab.run(output, "vq", hook=typed, **options)
    assert run.code == 0, run.text
    holders = [path for path in output.rglob("*") if path.is_file() and b"hf_secret123" in path.read_bytes()]
    assert all(path.is_relative_to(output / "slurm") for path in holders), holders
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in holders), holders
    assert "hf_secret123" not in run.text
    tally("secrets").add("right")


def script(folder: Path, *arguments: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """Run table2.py in a separate process; variables set to None are removed."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", **environment}
    return subprocess.run(
        [sys.executable, str(ROOT / "reproductions/table2.py"), "--rows", "vq", "--dry-run", *arguments],
        cwd=folder,
        env={name: value for name, value in variables.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.faults
def test_leftover_world_size_is_named(tmp_path: Path, tally: Any) -> None:
    found = script(tmp_path, WORLD_SIZE="8", RANK=None, MASTER_ADDR=None, MASTER_PORT=None)
    assert found.returncode == 2, found.stderr
    assert "WORLD_SIZE=8" in found.stderr
    assert "Traceback" not in found.stderr
    tally("machine").add("refused")


@pytest.mark.faults
def test_without_home_and_user(tmp_path: Path, tally: Any) -> None:
    missing = dict.fromkeys(("HOME", "USER", "LOGNAME", "USERNAME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"))
    found = script(tmp_path, "--submit", "--output", "runs[/x]", **missing)
    assert found.returncode == 0, found.stderr
    assert "runs[/x]" in found.stdout.replace("\n", "")
    tally("machine").add("right")


@pytest.mark.faults
def test_commit_of_a_surrounding_repository_is_not_recorded(tmp_path: Path, tally: Any) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    subprocess.run(["git", *who, "commit", "-q", "--allow-empty", "-m", "other"], cwd=tmp_path, check=True)
    copy = tmp_path / "project"
    shutil.copytree(ROOT / "imagefolder", copy / "imagefolder", ignore=shutil.ignore_patterns("__pycache__"))
    ask = "from imagefolder.environment import git_state; print(git_state())"
    other = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True).stdout.strip()
    for place, extra in ((copy, {}), (ROOT, {"GIT_DIR": str(tmp_path / ".git")})):
        environment = {**os.environ, "PYTHONPATH": str(place), **extra}
        command = [sys.executable, "-c", ask]
        shown = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert shown.returncode == 0, shown.stderr
        assert other not in shown.stdout
    tally("machine").add("right")


@pytest.mark.faults
def test_death_of_a_data_worker_is_reported(tmp_path: Path, tally: Any) -> None:
    data = lab.image_folder(tmp_path / "data")

    def kill_a_worker(_: Any) -> None:
        group = os.getpgrp()
        workers = [pid for pid in lab.Process(group, tmp_path).members() if pid != os.getpid()]
        for pid in workers:
            os.kill(pid, signal.SIGKILL)

    started = time.monotonic()
    hook = lab.at_step(4, "Tokenizer", kill_a_worker)
    run = lab.run(tmp_path / "runs", "vq", data=str(data), scale="small", hook=hook)
    assert time.monotonic() - started < 60
    assert run.code == 1, run.text
    assert run.errors
    assert lab.run(tmp_path / "runs", "vq", data=str(data), scale="small").code == 0
    tally("processes dying").add("recovered")


def of_two(rank: int, port: int, then: Callable[[], None] | None = None) -> Callable[[], None]:
    """A hook: the process is one of two that train together."""

    def install() -> None:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        if then is not None:
            then()

    return install


@pytest.mark.faults
@pytest.mark.parametrize("victim", [0, 1])
def test_death_of_a_rank_ends_the_others_with_a_reason(tmp_path: Path, victim: int, tally: Any) -> None:
    output = tmp_path / "runs"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    dies = lab.at_step(6, "Tokenizer", lambda _: lab.die())
    hooks = [of_two(rank, port, dies if rank == victim else None) for rank in range(2)]
    started = time.monotonic()
    processes = [lab.start(output, "imagefolder", hook=hook) for hook in hooks]
    runs = [process.wait() for process in processes]
    assert time.monotonic() - started < 60
    assert runs[victim].code == -signal.SIGKILL
    survivor = runs[1 - victim]
    assert survivor.code == 2, survivor.text
    assert any("another of the processes has ended" in line for line in survivor.errors), survivor.text
    again = lab.run(output, "imagefolder")
    assert again.code == 0, again.text
    tally("processes dying").add("recovered")
