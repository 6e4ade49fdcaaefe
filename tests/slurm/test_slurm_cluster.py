"""Graphs of stages on a real Slurm."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import time
from pathlib import Path

import pytest
import work
from in_process import slurm_command
from waiting import HERE, PROFILE, attempts, command, process_of, shorten_limit, wait_for, wait_for_step, wait_until

from slurm import SlurmError, Stage
from slurm.journal import Journal
from slurm.launch import resubmit, submit
from slurm.states import accounted, job_states

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("cluster")]


def counting(name: str, folder: Path, steps: int, seconds: float = 0.2, **more: object) -> Stage:
    return Stage(
        name,
        work.count,
        (folder, steps, seconds),
        request_stop=work.request_stop,
        progress=folder,
        steps=steps,
        **{"kind": "training", **more},
    )


def trace(folder: Path) -> list[int]:
    return [int(line) for line in (folder / "trace").read_text().split()]


def test_graph_finishes_in_order_and_is_not_started_twice(
    run: Path, overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shared = Stage("extractor", work.note, (run / "extractor",))
    rows = [counting(f"row {n}", run / f"row{n}", 3, after=("extractor",)) for n in range(3)]
    ends = [
        Stage(f"score {n}", work.fail_without, (run / f"row{n}" / "result", run / f"score{n}"), after=(f"row {n}",))
        for n in range(3)
    ]
    report = Stage("report", work.note, (run / "report",), after_any=tuple(stage.name for stage in ends))
    graph = [report, *ends, shared, *rows]
    submit(run, graph, profile=PROFILE, overrides=overrides)
    jobs = dict(re.findall(r"^(.+): job (\S+)$", capsys.readouterr().out, re.MULTILINE))
    assert set(jobs) == {stage.name for stage in graph}
    array = {jobs[stage.name].split("_")[0] for stage in rows}
    assert len(array) == 1  # rows of one kind are one array ...
    assert {jobs[stage.name].split("_")[1] for stage in rows} == {"0", "1", "2"}
    assert (
        len({jobs[stage.name].split("_")[0] for stage in ends}) == 3
    )  # ... stages that wait for different rows are not

    submit(run, graph, profile=PROFILE, overrides=overrides)  # while it runs
    kept = dict(re.findall(r"^(.+): already \S+, job (\S+)$", capsys.readouterr().out, re.MULTILINE))
    assert kept.items() <= jobs.items()
    assert "report" in kept

    journal = Journal(run)
    statuses = wait_for(journal, dict.fromkeys(jobs, "finished"))
    assert {name: status.job for name, status in statuses.items()} == jobs
    assert statuses["row 1"].step == statuses["row 1"].steps == 3
    assert statuses["row 1"].nodes
    submit(run, graph, profile=PROFILE, overrides=overrides)  # when all is done
    assert capsys.readouterr().out.count("already finished") == len(graph)
    assert (run / "report").read_text() == (run / "extractor").read_text() == "ran\n"
    assert slurm_command("status", run) == 0
    shown = capsys.readouterr().out
    assert "step 3 of 3, loss 0.333" in shown
    assert "score 0 (any end)" in shown


def test_failure_stops_what_depends_on_it_and_resubmit_does_only_that(
    run: Path, overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    graph = [
        Stage("bad", work.fail_without, (run / "key", run / "bad")),
        Stage("after bad", work.note, (run / "after-bad",), after=("bad",)),
        Stage("good", work.note, (run / "good",)),
        Stage("after good", work.note, (run / "after-good",), after=("good",)),
        Stage("report", work.note, (run / "report",), after_any=("after bad", "after good")),
    ]

    submit(run, graph, profile=PROFILE, overrides=overrides)
    journal = Journal(run)
    expected = {"bad": "failed", "after bad": "not run", "good": "finished", "after good": "finished"}
    statuses = wait_for(journal, expected | {"report": "finished"})
    assert statuses["bad"].reason == f"FileNotFoundError: {run}/key is missing"
    assert statuses["after bad"].reason == "bad did not finish"
    assert statuses["after bad"].blocked_by == "bad"
    capsys.readouterr()
    assert slurm_command("status", run) == 1
    assert f"reason: FileNotFoundError: {run}/key is missing" in capsys.readouterr().out
    assert slurm_command("logs", "bad", run) == 0
    assert "Traceback" in capsys.readouterr().out

    (run / "key").touch()
    resubmit(run)
    printed = capsys.readouterr().out
    assert "good: already finished" in printed
    assert "after good: already finished" in printed
    statuses = wait_for(journal, dict.fromkeys(expected, "finished") | {"report": "finished"})
    wait_for(journal, {"report": "finished"})
    assert (run / "good").read_text() == "ran\n"
    assert (run / "after-bad").read_text() == "ran\n"
    assert (run / "report").read_text() == "ran\nran\n"  # it has to show the new results


def test_requeued_jobs_resume_at_the_exact_step_and_stuck_ones_are_given_up(run: Path, overrides: list[str]) -> None:
    names = ("signalled", "preempted", "requeued")
    graph = [counting(name, run / name, 15, seconds=0.5) for name in names]
    graph.append(Stage("after", work.note, (run / "after",), after=("signalled",)))
    graph.append(Stage("idle", work.makes_no_progress, (run / "idle",), progress=run / "idle"))
    submit(run, graph, profile=PROFILE, overrides=[*overrides, "small.restarts_without_progress=2"])
    journal = Journal(run)
    jobs = {name: wait_for_step(journal, name, 3).job for name in names}
    assert len({job.split("_")[0] for job in jobs.values()}) == 1  # elements of one array, each requeued by itself
    command("scancel", "--signal=USR2", jobs["signalled"])
    command("scancel", "--signal=TERM", jobs["preempted"])  # both signals come, one after the other
    command("scancel", "--signal=USR2", jobs["preempted"])
    command("scontrol", "requeue", jobs["requeued"])
    statuses = wait_for(journal, dict.fromkeys((*names, "after"), "finished") | {"idle": "failed"})
    for name in names:
        assert statuses[name].job == jobs[name]
        assert statuses[name].restarts == 1
        assert trace(run / name) == list(range(1, 16))  # no step twice, none missing
        assert (run / name / "result").read_text() == str(sum(range(16)))
        first, second = attempts(journal, name)
        assert (first.step, first.restarts) == (0, 0)
        assert second.step is not None
        assert second.step >= 3
        assert second.restarts == 1
    assert (run / "after").read_text() == "ran\n"
    assert "given up after 2 restarts without progress" in statuses["idle"].reason
    assert (run / "idle" / "attempts").read_text() == "ran\nran\n"


def test_processes_on_two_nodes_know_each_other_and_leave_together(run: Path, overrides: list[str]) -> None:
    settings = [*overrides, "training.nodes=2", "environment.GREETING=a b'c"]
    environment = Stage("environment", work.write_environment, (run / "environment",), kind="training")
    submit(run, [environment, counting("training", run / "training", 15)], profile=PROFILE, overrides=settings)
    journal = Journal(run)
    wait_for(journal, {"environment": "finished"})
    seen = [json.loads((run / "environment" / f"{rank}.json").read_text()) for rank in range(2)]
    assert [(s["RANK"], s["WORLD_SIZE"], s["LOCAL_RANK"], s["GREETING"]) for s in seen] == [
        ("0", "2", "0", "a b'c"),
        ("1", "2", "0", "a b'c"),
    ]
    assert seen[0]["MASTER_ADDR"] == seen[1]["MASTER_ADDR"]
    assert seen[0]["MASTER_PORT"] == seen[1]["MASTER_PORT"]

    command("scancel", "--signal=USR2", wait_for_step(journal, "training", 3).job)
    status = wait_for(journal, {"training": "finished"})["training"]
    assert status.restarts == 1
    assert trace(run / "training") == list(range(1, 16))
    other = [int(step) for step in (run / "training" / "trace1").read_text().split()]
    assert max(other.count(step) for step in other) <= 2  # at most the step of the stop itself is repeated


def test_killed_process_ends_the_job_and_status_explains_it(run: Path, overrides: list[str]) -> None:
    settings = [*overrides, "training.tasks_per_node=2"]
    submit(run, [counting("training", run / "training", 1000)], profile=PROFILE, overrides=settings)
    journal = Journal(run)
    wait_for_step(journal, "training", 2)
    command("kill", "-9", process_of(journal, "training", 1))
    status = wait_for(journal, {"training": "failed"})["training"]
    assert "task 1: Killed" in status.reason, status.reason


def test_reason_of_a_killed_job_names_the_signal(run: Path, overrides: list[str]) -> None:
    submit(run, [counting("training", run / "training", 1000)], profile=PROFILE, overrides=overrides)
    journal = Journal(run)
    wait_for_step(journal, "training", 2)
    command("kill", "-9", process_of(journal, "training", 0))
    status = wait_for(journal, {"training": "failed"})["training"]
    assert "SIGKILL" in status.reason, status.reason


def test_cancelled_job_saves_its_state_and_is_not_requeued(run: Path, overrides: list[str]) -> None:
    folder = run / "training"
    after = Stage("after", work.note, (run / "after",), after=("training",))
    submit(run, [counting("training", folder, 1000), after], profile=PROFILE, overrides=overrides)
    journal = Journal(run)
    wait_for_step(journal, "training", 2)
    assert slurm_command("cancel", run) == 0
    statuses = wait_for(journal, {"training": "cancelled"})
    assert statuses["after"].state in ("cancelled", "not run")
    assert json.loads((folder / "state.json").read_text())[0] == trace(folder)[-1]
    assert len(attempts(journal, "training")) == 1
    assert slurm_command("status", run) == 1


def test_node_set_down_and_preemption(run: Path, overrides: list[str]) -> None:
    folder = run / "training"
    submit(run, [counting("training", folder, 30, seconds=0.3)], profile=PROFILE, overrides=overrides)
    journal = Journal(run)
    node = wait_for_step(journal, "training", 3).nodes
    command("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    try:
        wait_until(journal, lambda _: len(attempts(journal, "training")) == 2)
    finally:
        # refused if the node has already returned by itself (ReturnToService)
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], timeout=60, check=False)
    step = wait_for_step(journal, "training", 8).step or 0
    urgent = Journal(run / "urgent")
    settings = [*overrides, "partition=urgent", "nodes=2", "cpus_per_task=2"]
    submit(urgent.run, [Stage("urgent", work.sleep, (1,))], profile=PROFILE, overrides=settings)
    wait_for(urgent, {"urgent": "finished"})
    wait_for(journal, {"training": "finished"})
    assert (folder / "result").read_text() == str(sum(range(31)))
    start = attempts(journal, "training")[2].step
    assert start is not None
    assert start >= step
    taken = trace(folder)
    assert taken[taken.index(start) :] == list(range(start, 31))  # no step twice after the preemption


def test_impossible_request_is_one_line_and_leaves_no_job(run: Path, overrides: list[str]) -> None:
    graph = [Stage("first", work.sleep, (60,)), counting("training", run / "training", 3, after=("first",))]
    with pytest.raises(SlurmError, match=r"refused 'training'.*gpus_per_node=3") as error:
        submit(run, graph, profile=PROFILE, overrides=[*overrides, "training.gpus_per_node=3"])
    assert "\n" not in str(error.value)
    [job] = [event.job for event in Journal(run).events()]
    wait_until(Journal(run), lambda _: job_states([job])[job].state == "CANCELLED")  # Slurm may be slow


def test_a_typo_does_not_prepare_anything(run: Path, overrides: list[str]) -> None:
    graph, prepared = [Stage("a", work.sleep, (0,))], []

    def prepare() -> None:
        prepared.append(run)

    for typo in ("partition=gpuu", "constraint=fast", "sbatch.reservatoin=x", "gres=gpuu:1"):
        with pytest.raises(SlurmError, match=r"Slurm refused 'a': .*(nvalid|unrecognized)"):
            submit(run, graph, profile=PROFILE, overrides=[*overrides, typo], prepare=prepare)
    assert prepared == Journal(run).events() == []
    submit(run, graph, profile=PROFILE, overrides=overrides, prepare=prepare)
    assert prepared == [run]
    wait_for(Journal(run), {"a": "finished"})


def test_odd_folders_get_their_logs_and_stages_write_as_usual(tmp_path: Path, overrides: list[str]) -> None:
    run = tmp_path / 'it\'s "$HOME" `id` [a]{b}*?  #1;&(é) '
    rows = [Stage(f"row {n};\n$(id)", work.note, (run / f"note {n}",)) for n in range(2)]
    usual = os.umask(0o022)
    try:
        odd = ['environment.A=it\'s "$HOME" `id` #1;&  é ', "sbatch.comment=it's #1"]
        submit(run, rows, profile=PROFILE, overrides=[*overrides, *odd])
    finally:
        assert os.umask(usual) == 0o022
    statuses = wait_for(Journal(run), {stage.name: "finished" for stage in rows})
    for status in statuses.values():
        assert status.log is not None
        assert stat.S_IMODE(status.log.stat().st_mode) == 0o600
    assert stat.S_IMODE((run / "note 0").stat().st_mode) == 0o644


def test_gpus_are_given(run: Path, overrides: list[str]) -> None:
    stage = counting("training", run / "training", 1)
    submit(run, [stage], profile=PROFILE, overrides=[*overrides, "training.gpus_per_node=2", "training.time=01:00:00"])
    journal = Journal(run)
    wait_for(journal, {"training": "finished"})
    assert attempts(journal, "training")[0].nodes
    text = next(journal.jobs.glob("[0-9]*_submission.sh")).read_text()
    assert "--gpus-per-node=2" in text
    assert "--ntasks-per-node=2" in text


def test_dry_run_shows_what_is_submitted(run: Path, overrides: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    settings = [*overrides, "array_parallelism=1", "sbatch.exclusive=true", "setup=[date, 'echo \"a b\"']"]
    graph = [
        Stage("shared", work.sleep, (0,)),
        *(counting(f"row {n}", run / f"row{n}", 1, after=("shared",)) for n in range(2)),
        Stage("report", work.sleep, (0,), after_any=("row 0", "row 1")),
    ]
    submit(run, graph, profile=PROFILE, overrides=settings, dry_run=True)
    printed = capsys.readouterr().out
    assert not run.exists()
    submit(run, graph, profile=PROFILE, overrides=settings)
    ids = dict(re.findall(r"^(.+): job (\S+)$", capsys.readouterr().out, re.MULTILINE))
    for name, job in ids.items():
        printed = printed.replace(f"<{name}>", job)
    printed = re.sub(r"--dependency='(.+)'", r"--dependency=\1", printed)  # only < and > need quotes
    texts = {part.split("\n", 1)[0]: part.split("\n", 1)[1].strip() for part in printed.split("==> ")[1:]}
    assert list(texts) == ["shared", "row 0, row 1", "report"]
    for names, text in texts.items():
        job = ids[names.split(",")[0]].split("_")[0]
        written = (Journal(run).jobs / f"{job}_submission.sh").read_text().strip()
        assert f"export PYTHONPATH={HERE}" in written
        hidden = re.sub(r"^(export (?:PYTHONPATH|OMP_NUM_THREADS))=.*", r"\1='***'", written, flags=re.MULTILINE)
        assert text == hidden
    assert "--array=0-1%1" in texts["row 0, row 1"]
    assert "--kill-on-invalid-dep=yes" in texts["row 0, row 1"]


def test_unwritable_output_fails_the_stage(run: Path, overrides: list[str]) -> None:
    submit(run, [Stage("writer", work.touch, (Path("/proc/nowhere/file"),))], profile=PROFILE, overrides=overrides)
    reason = wait_for(Journal(run), {"writer": "failed"})["writer"].reason
    assert reason.startswith("FileNotFoundError: ")
    assert "/proc/nowhere" in reason


@pytest.mark.slow  # Slurm checks limits every 30 s, and the shortest is a minute
def test_time_limit(run: Path, overrides: list[str]) -> None:
    deaf = Stage("deaf", work.stuck, (600,), request_stop=work.request_stop)
    graph = [counting("training", run / "training", 300), deaf]
    submit(run, graph, profile=PROFILE, overrides=[*overrides, "signal_delay=15"])  # sent 15 to 45 s after the start
    journal = Journal(run)
    for status in wait_for(journal, dict.fromkeys(("training", "deaf"), "running")).values():
        shorten_limit(status)
    statuses = wait_for(journal, {"training": "finished", "deaf": "failed"})
    assert statuses["training"].restarts >= 1
    assert trace(run / "training") == list(range(1, 301))
    assert "time limit" in statuses["deaf"].reason


def test_accounting_agrees(run: Path, overrides: list[str]) -> None:
    """With SLURM_CI_ACCOUNTING=1: states of jobs according to accounting alone."""
    if subprocess.run(["sacct", "--noheader"], capture_output=True, timeout=60).returncode != 0:
        pytest.skip("this Slurm keeps no accounting")
    stages = [counting(f"row {n}", run / f"row{n}", 1) for n in range(2)]
    stages.append(Stage("bad", work.touch, (Path("/proc/nowhere/file"),)))
    submit(run, stages, profile=PROFILE, overrides=overrides)
    statuses = wait_for(Journal(run), {"row 0": "finished", "row 1": "finished", "bad": "failed"})
    jobs = [status.job for status in statuses.values()]
    end = time.monotonic() + 30
    while (states := accounted(jobs)).keys() != set(jobs) or any(state.live for state in states.values()):
        assert time.monotonic() < end, states
        time.sleep(0.5)
    assert {job: (s.state, s.exit_code) for job, s in states.items()} == {
        job: (s.state, s.exit_code) for job, s in job_states(jobs).items()
    }
