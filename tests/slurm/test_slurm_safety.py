"""Secrets, earlier results and unrecorded jobs, with programs that imitate Slurm's."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import work
from in_process import slurm_command
from waiting import HERE

from slurm import SlurmError, Stage, redacted
from slurm.batch import sbatch_text
from slurm.events import Submitted
from slurm.journal import Journal
from slurm.launch import submit
from slurm.profile import load_profile
from slurm.states import _exit_code, job_states
from slurm.status import _by_slurm, live_strays, read_status

SECRET = "hf_s3cret"
TOKEN = f"environment.HF_TOKEN={SECRET}"
PROGRAMS = {
    "sbatch": 'case "$*" in *--test-only*) cat >{log}/tested; cat {log}/wrong >&2; test ! -s {log}/wrong; exit;; esac\n'
    'grep -q "partition=gpuu" "$1" && { echo "sbatch: error: invalid partition specified: gpuu" >&2; exit 1; }\n'
    'number=$(( $(cat {log}/number) + 1 )); echo $number > {log}/number; echo "Submitted batch job $number"',
    "srun": "exit 0",
    "squeue": 'for job in $(cat {log}/live); do echo "$job|PENDING|Priority|"; done',
    "scontrol": "exit 1",
    "sacct": "exit 1",
    "scancel": 'echo "$*" >> {log}/cancelled; : > {log}/live',
    "sinfo": "echo main",
}


@pytest.fixture
def pretended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An imitated Slurm that counts submissions; returns the folder of its state, and of what it was asked."""
    log, programs = tmp_path / "log", tmp_path / "programs"
    log.mkdir()
    programs.mkdir()
    for name, text in {"number": "6\n", "live": "", "cancelled": "", "wrong": ""}.items():
        (log / name).write_text(text)
    for name, text in PROGRAMS.items():
        path = programs / name
        path.write_text("#!/bin/sh\n" + text.replace("{log}", str(log)) + "\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return log


@contextmanager
def usual(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        assert os.umask(before) == mask  # restored


def modes(folder: Path) -> dict[str, int]:
    """The permissions of group and others for each file of a folder."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {path.name: stat.S_IMODE(path.stat().st_mode) & 0o077 for path in found}


def test_only_the_owner_reads_what_is_submitted(
    tmp_path: Path, pretended: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    stages = [Stage(f"row {n}", work.sleep, (0,)) for n in range(2)]
    stages.append(Stage("last", work.sleep, (0,), after=("row 0",)))
    with usual(0o002):
        submit(run, stages, profile="slurm", overrides=[TOKEN])
    (script,) = (run / "slurm" / "jobs").glob("7_submission.sh")
    assert f"export HF_TOKEN={SECRET}\n" in script.read_text()
    found = modes(run / "slurm")
    assert {"graph.json", "graph.pkl", "jobs.jsonl", "7_submission.sh", "7_0_submitted.pkl"} <= found.keys()
    assert set(found.values()) == {0}
    assert stat.S_IMODE(run.stat().st_mode) & 0o070  # the run itself has the user's permissions
    capsys.readouterr()

    assert slurm_command("status", run) == 1
    assert slurm_command("resubmit", run, "--dry-run") == 0
    submit(tmp_path / "other", stages, profile="slurm", overrides=[TOKEN], dry_run=True)
    shown = capsys.readouterr()
    assert shown.out.count("export HF_TOKEN='***'") == 4
    assert SECRET not in shown.out + shown.err
    text = sbatch_text(Journal(run).jobs, load_profile("slurm", [TOKEN]).settings("small"), "row-0", "", 2)
    assert text.replace("--job-name=row-0", "--job-name=small") == script.read_text()

    with pytest.raises(SlurmError, match=r"refused 'row 0': invalid partition specified: gpuu \(kind small") as error:
        submit(tmp_path / "typo", stages, profile="slurm", overrides=[TOKEN, "partition=gpuu"])
    assert SECRET not in str(error.value)
    assert SECRET not in "".join(capsys.readouterr())


def test_stages_write_as_usual_and_their_logs_are_private(run: Path, overrides: list[str]) -> None:
    stages = [Stage("note", work.note, (run / "note",))]
    with usual(0o022):
        assert submit(run, stages, profile="local", overrides=overrides) == {}
    assert stat.S_IMODE((run / "note").stat().st_mode) == 0o644
    assert set(modes(run / "slurm").values()) == {0}


def test_commands_are_redacted() -> None:
    given = ["table2.py", "--set", TOKEN, "training.environment.A=x=y", "kinds.small.environment.A=", "nodes=2"]
    assert redacted(given)[2:] == [
        "environment.HF_TOKEN=***",
        "training.environment.A=***",
        "kinds.small.environment.A=***",
        "nodes=2",
    ]
    for whole in ("environment={A: b}", 'environment={"A": b}', "small={nodes: 1, environment: {A: b}}"):
        assert redacted([whole, f"--set={whole}"]) == [
            f"{whole.partition('=')[0]}=***",
            f"--set={whole.split('=')[0]}=***",
        ]
    kept = ["--output=/data/environment", "environment", "--fresh", "a=b", ""]
    assert redacted(kept) == kept


class Prepared:
    """Counts its calls, and checks that the run is locked and has no graph yet."""

    def __init__(self, run: Path) -> None:
        self.run, self.calls = run, 0

    def __call__(self) -> None:
        self.calls += 1
        assert not (self.run / "slurm" / "graph.json").exists()
        with pytest.raises(SlurmError, match="works on"):
            self._in_another_process()

    def _in_another_process(self) -> None:
        code = "import sys; from slurm.journal import Journal\nwith Journal(sys.argv[1]).lock(): pass"
        command = [sys.executable, "-c", code, str(self.run)]
        result = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parents[1])
        if result.returncode:
            raise SlurmError(result.stderr)


@pytest.mark.parametrize("cluster", ["slurm", "local"])
def test_prepare_is_called_once_and_before_anything_else(tmp_path: Path, pretended: Path, cluster: str) -> None:
    prepare, stages = Prepared(tmp_path / "run"), [Stage("a", work.sleep, (0,))]
    submit(prepare.run, stages, profile=cluster, dry_run=True, prepare=prepare)
    assert prepare.calls == 0
    submit(prepare.run, stages, profile=cluster, prepare=prepare)
    assert prepare.calls == 1
    (prepare.run / "other").write_text("")

    def fails() -> None:
        raise OSError("no room to set things aside")

    with pytest.raises(OSError, match="no room"):
        submit(tmp_path / "failing", stages, profile="slurm", prepare=fails)
    assert Journal(tmp_path / "failing").events() == []


def test_a_typo_does_not_prepare_anything(tmp_path: Path, pretended: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    prepare = Prepared(run)
    stages = [Stage("a", work.sleep, (0,)), Stage("b", work.sleep, (0,), after=("a",), kind="training")]

    def refused(
        match: str, profile: str = "slurm", sets: tuple[str, ...] = (), folder: Path = run, **more: Any
    ) -> None:
        graph = more.get("stages", stages)
        with pytest.raises(SlurmError, match=match):
            submit(folder, graph, profile=profile, overrides=sets, fresh=True, prepare=prepare)

    refused("no profile 'slrum'", "slrum")
    refused("unknown key 'partion'", sets=("partion=x",))
    refused("2 nodes need Slurm", "local", ("training.nodes=2",))
    refused("cannot be used", folder=tmp_path / "100%n")
    refused("circle", stages=[Stage("a", work.sleep, after=("a",))])
    (pretended / "wrong").write_text("sbatch: error: invalid partition specified: gpuu\n")
    refused("Slurm refused 'a': error: invalid partition specified: gpuu", sets=("partition=gpuu",))
    assert "--partition=gpuu" in (pretended / "tested").read_text()
    (pretended / "wrong").write_text("allocation failure: Requested node configuration is not available\n")
    submit(run, stages, profile="slurm")  # nodes that are down may come back
    (pretended / "live").write_text("7 8")
    refused("'a' still waits or runs .job 7.: before starting it afresh, wait, or python -m slurm cancel")
    monkeypatch.setenv("PATH", str(pretended))
    refused("sbatch is not on the path")
    assert prepare.calls == 0


def test_unrecorded_jobs_are_not_started_again(
    tmp_path: Path, pretended: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, stages = tmp_path / "run", [Stage(f"row {n}", work.sleep, (0,)) for n in range(2)]
    submit(run, stages, profile="slurm")
    (pretended / "live").write_text("7_0 7_1")
    journal = Journal(run)
    lines = (run / "slurm" / "jobs.jsonl").read_text()
    (run / "slurm" / "jobs.jsonl").write_text(lines.replace("7_1", "6_1"))  # like a flipped bit
    assert live_strays(journal) == {"7_1": "slurm"}
    assert {name: status.state for name, status in read_status(journal).items()} == {
        "row 0": "pending",
        "row 1": "not submitted",
    }
    for fresh in (False, True):
        with pytest.raises(SlurmError, match=r"job\(s\) 7_1 wait or run, but .*jobs.jsonl does not say for which"):
            submit(run, stages, profile="slurm", fresh=fresh)
    capsys.readouterr()
    assert slurm_command("status", run) == 0
    errors = capsys.readouterr().err
    assert "note: 1 damaged line(s) of " in errors
    assert "does not name job(s) 7_1 of this run" in errors
    assert (pretended / "number").read_text() == "7\n"
    assert slurm_command("cancel", run) == 0
    assert (pretended / "cancelled").read_text() == "7_0 7_1\n"
    submit(run, stages, profile="slurm")
    assert (pretended / "number").read_text() == "8\n"


def test_lost_local_process_is_found_by_any_name_of_its_run(tmp_path: Path, overrides: list[str]) -> None:
    run, other = tmp_path / "run", tmp_path / "other name"
    other.symlink_to(run)
    journal = Journal(run)
    with journal.lock():
        (journal.jobs / "4_submitted.pkl").write_bytes(b"")
    command = [sys.executable, "-c", "import sys, time; print(flush=True); time.sleep(30)", str(journal.jobs)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (journal.jobs / f"{process.pid}_submitted.pkl").write_bytes(b"")
        try:
            assert live_strays(Journal(other)) == {str(process.pid): "local"}
            with pytest.raises(SlurmError, match=f"job.s. {process.pid} wait or run"):
                submit(other, [Stage("a", work.sleep, (0,))], profile="local", overrides=overrides)
        finally:
            process.kill()
    assert live_strays(journal) == {}
    assert submit(other, [Stage("a", work.sleep, (0,))], profile="local", overrides=overrides) == {}


def test_line_after_a_truncated_one_is_complete(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with journal.lock():
        journal.append(Submitted(stage="a", job="1", cluster="slurm"))
        with (tmp_path / "slurm" / "jobs.jsonl").open("a") as file:
            file.write('{"event": "submitted", "sta')  # then the disk was full
        journal.append(Submitted(stage="b", job="2", cluster="slurm"))
    assert [event.stage for event in journal.events()] == ["a", "b"]
    right = {"event": "submitted", "stage": "c", "job": "3", "cluster": "slurm", "time": "2030-01-01T00:00:00"}
    wrongs = [{"stage": 1}, {"job": "../x"}, {"job": "-1"}, {"cluster": "pbs"}, {"time": "soon"}, {"event": "x"}]
    for wrong in ({}, *wrongs):
        (tmp_path / "slurm" / "jobs.jsonl").write_text(json.dumps(right | wrong) + "\n")
        assert len(journal.events()) == (not wrong)


def test_leftovers_of_killed_submissions_are_removed(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with journal.lock():
        pass
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = os.uname().nodename
    gone = [f".graph.json.{host}-{dead.pid}.tmp", f"jobs/.7_0_finished.json.{host}-{dead.pid}.tmp"]
    gone += [f"jobs/{'0' * 32}.pkl", "jobs/.submission_file_0.sh", "jobs/.8_0_finished.json.elsewhere-1.tmp"]
    kept = [f"jobs/.9_0_finished.json.{host}-{os.getpid()}.tmp", "jobs/.9_1_finished.json.elsewhere-1.tmp"]
    kept += ["jobs/7_submitted.pkl"]
    for name in gone + kept:
        (journal.folder / name).write_text("")
    os.utime(journal.folder / gone[-1], (0, time.time() - 1e6))  # nobody writes for that long
    with journal.lock():
        left = {str(path.relative_to(journal.folder)) for path in journal.folder.rglob("*") if path.is_file()}
    assert left == {*kept, "lock", "holder.json"}


def test_holder_of_the_lock_is_known_or_its_file_is_named_as_damaged(tmp_path: Path) -> None:
    journal, other = Journal(tmp_path), Journal(tmp_path)
    assert other.holder() is None
    with journal.lock():
        holder = other.holder()
        assert holder is not None
        assert (holder.pid, holder.host) == (os.getpid(), os.uname().nodename)
        assert journal.holder() is None  # this process, not another one
        for damage in ("", "[]", '{"pid": -1, "host": "n1"}', json.dumps({"pid": 1, "host": "n1", "checksum": "0"})):
            (tmp_path / "slurm" / "holder.json").write_text(damage)
            with pytest.raises(SlurmError, match=r"holder\.json is damaged"):
                other.holder()
    (tmp_path / "slurm" / "holder.json").write_text(holder.model_dump_json())  # of a process that was killed
    assert other.holder() is None


def test_unwritable_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)
    journal.finish("a", "7", 0, 1)
    path = journal.jobs / "7_0_finished.json"
    before = path.read_text()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        cause = r"\[Errno 28\] No space left on device \([0-9,]+ bytes are"
        with pytest.raises(OSError, match=rf"^{path} cannot be written: {cause}"):
            journal.finish("a", "7", 0, 2)
    assert [(left.name, left.read_text()) for left in journal.jobs.iterdir()] == [(path.name, before)]
    path = tmp_path / "file"
    path.touch()
    (tmp_path / "run" / "slurm").mkdir(parents=True)
    os.mkfifo(tmp_path / "run" / "slurm" / "lock")
    for where, match in (
        (path, "File exists"),
        (tmp_path / "run", "it is not a regular file"),
        (path / "in", "Not a dir"),
    ):
        with pytest.raises(SlurmError, match=rf"^run folder {where} cannot be written: {match}"), Journal(where).lock():
            pass


def test_states_are_read_from_odd_output(pretended: Path) -> None:
    programs = pretended.parent / "programs"
    assert [_exit_code(text) for text in ("0:0", "1:0", "0:9", "", "x:y", "3")] == [0, 1, 137, 0, 0, 3]
    (programs / "squeue").write_bytes(b"#!/bin/sh\nprintf '7|RUNNING\\n\\n\\377|x\\n8\\n'\n")
    (programs / "scontrol").write_text("#!/bin/sh\necho JobState=FAILED ExitCode=255:0\n")
    states = job_states(["7", "9"])
    assert (states["7"].state, states["9"].exit_code) == ("RUNNING", 255)
    status = _by_slurm("a", states["9"], started=False, blocker=None)
    assert (status.state, status.reason) == ("failed", "failed, exit code 255")  # which is not a signal


class Trap:
    """Unpickling it leaves a trace."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.makedirs, (str(self.path),)


def test_a_foreign_pickle_is_not_loaded(tmp_path: Path, overrides: list[str], in_process: None) -> None:
    run, first = tmp_path / "run", Stage("first", work.sleep, (0,))

    def run_here(*stages: Stage) -> dict[str, str]:
        return submit(run, stages, profile="local", overrides=overrides)

    assert run_here(first) == {}
    path = run / "slurm" / "graph.pkl"
    path.write_bytes(pickle.dumps([Trap(tmp_path / "trap")]))
    for attempt in (Journal(run).stages, lambda: run_here(Stage("second", work.sleep, (0,)))):
        with pytest.raises(SlurmError, match=re.escape(f"{path} is damaged")):
            attempt()
    assert not (tmp_path / "trap").exists()
    assert run_here(first, Stage("second", work.sleep, (0,))) == {}  # the whole run: the earlier stages are not needed
    assert [stage.name for stage in Journal(run).stages()] == ["first", "second"]
    shutil.copy(path, run / "earlier")
    with Journal(run).lock():
        Journal(run).save_graph([Stage("third", work.sleep)], load_profile("local"))
    shutil.copy(run / "earlier", path)  # as if killed between the two files
    assert len(Journal(run).stages()) == 2
    assert slurm_command("resubmit", run, "--nonsense") == 2
    assert slurm_command("resubmit", run) == 2  # the submission of third was interrupted
