"""Profiles, graphs and batch texts, and the errors in them. None of this needs a Slurm."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import work
from in_process import slurm_command
from waiting import HERE

from slurm import SlurmError, Stage
from slurm.events import Submitted
from slurm.journal import Journal
from slurm.launch import submit
from slurm.profile import load_profile
from slurm.progress import last_point
from slurm.states import slurm_answers


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without Slurm; returns the empty folder of the user's own profiles."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    own = tmp_path / "config" / "imagefolder"
    own.mkdir(parents=True)
    return own


def test_own_profile_contains_only_what_differs(no_slurm: Path) -> None:
    (no_slurm / "default.yaml").write_text("partition: gpu\nkinds:\n  training: {nodes: 2, gres: 'gpu:a100:4'}\n")
    (no_slurm / "other.yaml").write_text("partition: cpu\n")
    assert load_profile("slurm").cluster == "slurm"
    training = load_profile().settings("training")
    assert (training.partition, training.nodes, training.gpus, training.tasks) == ("gpu", 2, 4, 4)
    assert training.time == 24 * 60  # from profiles/slurm.yaml
    assert load_profile("other").settings("small").partition == "cpu"
    assert load_profile(no_slurm / "other.yaml").settings("small").partition == "cpu"


def test_without_slurm_stages_run_on_this_machine() -> None:
    assert not slurm_answers()
    assert load_profile().cluster == "local"


@pytest.mark.parametrize(
    ("override", "kind", "key", "value"),
    [
        ("partition=x", "small", "partition", "x"),
        ("training.nodes=3", "training", "nodes", 3),
        ("time=1-02:03:04", "training", "time", 24 * 60 + 2 * 60 + 4),
        ("time=90", "small", "time", 90),
        ("environment.NCCL_DEBUG=INFO", "training", "environment", {"NCCL_DEBUG": "INFO"}),
        ("training.gres=gpu:a100:8", "training", "tasks", 8),
        ("training.gpus_per_node=0", "training", "tasks", 1),
        ("sbatch.exclusive=true", "small", "sbatch", {"exclusive": "true"}),
        ("setup=[module load a, module load b]", "small", "setup", ["module load a", "module load b"]),
        ("memory=", "small", "memory", None),
    ],
)
def test_overrides(override: str, kind: str, key: str, value: object) -> None:
    assert getattr(load_profile("slurm", [override]).settings(kind), key) == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("partion=x", r"unknown key 'partion'; known: partition, account"),
        ("training.node=2", r"kinds\.training: unknown key 'node'; known: partition, .*nodes"),
        ("training.nodes=two", r"kinds\.training: nodes: 'two': .*integer"),
        ("nodes=0", r"nodes: '0': .*greater than 0"),
        ("time=soon", r"time: 'soon'"),
        ("cluster=pbs", r"cluster: 'pbs': .*'slurm' or 'local'"),
        ("nodes", r"'nodes' is not KEY=VALUE"),
        ("sbatch.dependency=afterok:1", r"sbatch\.dependency is set by the launcher"),
        ("time=1", r"signal_delay 120 s leaves nothing of time 1 min"),
        ("time=3", r"signal_delay 120 s leaves nothing of time 3 min, .* up to 60 s early"),
    ],
)
def test_bad_values_are_one_line(override: str, message: str) -> None:
    with pytest.raises(SlurmError, match=message) as error:
        load_profile("slurm", [override])
    assert "\n" not in str(error.value)


def test_bad_files_are_one_line(no_slurm: Path) -> None:
    with pytest.raises(SlurmError, match=r"no profile 'nowhere': neither a file nor one of local, slurm$"):
        load_profile("nowhere")
    with pytest.raises(SlurmError, match=r"missing\.yaml cannot be read: No such file"):
        load_profile(no_slurm / "missing.yaml")
    broken = no_slurm / "broken.yaml"
    broken.write_text("a: [1\nb: 2")
    with pytest.raises(SlurmError, match=r"broken\.yaml is not YAML") as error:
        load_profile(broken)
    assert "\n" not in str(error.value)
    broken.write_text("just words")
    with pytest.raises(SlurmError, match="holds no keys"):
        load_profile("broken")


def test_bad_graphs_are_one_line(tmp_path: Path) -> None:
    def refused(*stages: Stage) -> str:
        with pytest.raises(SlurmError) as error:
            submit(tmp_path / "run", stages, profile="slurm", dry_run=True)
        return str(error.value)

    assert "two stages are called 'a'" in refused(Stage("a", work.sleep), Stage("a", work.sleep))
    assert "circle: " in refused(Stage("a", work.sleep, after=("b",)), Stage("b", work.sleep, after=("a",)))
    assert "'a' waits for 'b', which is not given" in refused(Stage("a", work.sleep, after=("b",)))
    assert "no kind 'gpu'; it has: training, evaluation, small" in refused(Stage("a", work.sleep, kind="gpu"))


def test_dry_run_without_slurm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    stages = [
        Stage("extractor", work.sleep, (0,)),
        Stage("row 0", work.sleep, (0,), after=("extractor",), kind="training"),
        Stage("row 1", work.sleep, (0,), after=("extractor",), kind="training"),
        Stage("report", work.sleep, (0,), after_any=("row 0", "row 1")),
    ]
    settings = ["account=me", "environment.A=b c", "training.nodes=2", "training.gres=gpu:a100:4"]
    settings += ["setup=[module load x]", "sbatch.exclusive=true", "sbatch.reservation=r"]
    submit(run, stages, profile="slurm", overrides=settings, dry_run=True)
    graph, first, rows, report = capsys.readouterr().out.split("\n==> ")
    assert graph.splitlines() == [
        "extractor  [small: 1 node(s) x 1 process(es), 0 GPU(s) per node]",
        "row 0  [training: 2 node(s) x 4 process(es), 4 GPU(s) per node]  after: extractor",
        "row 1  [training: 2 node(s) x 4 process(es), 4 GPU(s) per node]  after: extractor",
        "report  [small: 1 node(s) x 1 process(es), 0 GPU(s) per node]  after: row 0 (any end), row 1 (any end)",
    ]
    jobs = run / "slurm" / "jobs"
    srun = f"srun --unbuffered --output {jobs}/%A_%a_%t_log.out --kill-on-bad-exit=1 --cpus-per-task=8"
    assert (
        rows.rstrip()
        == f"""row 0, row 1
#!/bin/bash

# Parameters
#SBATCH --account=me
#SBATCH --array=0-1%2
#SBATCH --cpus-per-task=8
#SBATCH --dependency='afterok:<extractor>'
#SBATCH --exclusive
#SBATCH --gres=gpu:a100:4
#SBATCH --job-name=training
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=64G
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output={jobs}/%A_%a_0_log.out
#SBATCH --requeue
#SBATCH --reservation=r
#SBATCH --signal=USR2@120
#SBATCH --time=1440
#SBATCH --wckey=submitit

# setup
export A='***'
module load x

# command
export SUBMITIT_EXECUTOR=slurm
{srun} {sys.executable} -u -m submitit.core._submit {jobs}"""
    )
    assert "#SBATCH --dependency" not in first
    assert "#SBATCH --dependency='afterany:<row 0>:<row 1>'" in report
    assert not run.exists()


def test_python_of_a_container(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["python=apptainer exec --nv image.sif python"]
    submit(tmp_path, [Stage("a", work.sleep)], profile="slurm", overrides=settings, dry_run=True)
    assert " apptainer exec --nv image.sif python -u -m submitit.core._submit " in capsys.readouterr().out


def test_commands_report_a_missing_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("status", "resubmit"):
        assert slurm_command(command, tmp_path) == 2
        assert f"{tmp_path} holds no submitted run" in capsys.readouterr().err
    assert slurm_command("logs", "a", tmp_path) == 2
    assert "has no stage 'a'" in capsys.readouterr().err
    assert slurm_command("cancel", tmp_path) == 0


def test_status_shows_what_it_knows_where_slurm_does_not_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = Journal(tmp_path)
    with journal.lock():
        stages = [Stage("done", work.sleep), Stage("open", work.sleep, progress=tmp_path, steps=9)]
        journal.save_graph(stages, load_profile("slurm"))
        journal.append(Submitted(stage="done", job="1", cluster="slurm"))
        journal.append(Submitted(stage="open", job="2", cluster="slurm"))
        journal.finish("done", "1", 0, 1)
    (tmp_path / "curve.jsonl").write_text('{"step": 4, "loss": 0.5}\n{"step": 5, "lo')  # the last line is truncated
    assert last_point(tmp_path) == {"step": 4, "loss": 0.5}
    assert slurm_command("status", tmp_path) == 0
    shown = capsys.readouterr().out
    assert "step 4 of 9, loss 0.5" in shown
    assert "no Slurm on this machine" in shown
    assert [line.split()[1] for line in shown.splitlines() if line.startswith(("done", "open"))] == [
        "finished",
        "unknown",
    ]


def test_stage_has_finished_when_all_its_processes_have(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.jobs.mkdir(parents=True)
    journal.finish("a", "7", 0, 2)
    assert journal.outcome("a", "7") is None
    journal.finish("a", "7", 1, 2)
    outcome = journal.outcome("a", "7")
    assert outcome is not None
    assert outcome.finished
    assert journal.outcome("b", "7") is None  # another stage, whose process had the same id
    journal.fail("a", "7", "first\nreason")
    journal.fail("a", "7", "second reason")
    outcome = journal.outcome("a", "7")
    assert outcome is not None
    assert outcome.reason == "first reason"


def test_slurm_knows_nothing_about_models() -> None:
    """Status and jobs must import neither torch nor any package that knows what the stages do."""
    code = "import sys, slurm.__main__, slurm.jobs, slurm.launch; print(*sys.modules, sep='\\n')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=HERE.parents[1])
    loaded = result.stdout.split()
    assert "slurm.launch" in loaded, result.stderr
    assert not {"torch", "torchvision", "leaderboard", "reproductions"} & set(loaded)
    allowed = {"errors", "cli", "files", "locks", "distributed", "interruption", "progress"}
    of_imagefolder = {name.split(".")[1] for name in loaded if name.startswith("imagefolder.")}
    assert {name for name in of_imagefolder if not name.startswith("_")} <= allowed


def test_graph_keeps_stages_of_earlier_submissions(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with journal.lock():
        journal.save_graph([Stage("a", work.sleep), Stage("b", work.sleep, after=("a",))], load_profile("slurm"))
        journal.save_graph([Stage("b", work.sleep, (1,)), Stage("c", work.sleep, after=("b",))], load_profile("slurm"))
    assert list(json.loads((tmp_path / "slurm" / "graph.json").read_text())["stages"]) == ["a", "b", "c"]
    assert [stage.arguments for stage in journal.stages()] == [(), (1,), ()]
