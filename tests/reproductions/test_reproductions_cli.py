"""The command line of a script: exit codes, one line per error, and dry runs that change nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import reproductions.command as command
from imagefolder.data.builtin import BUILTIN
from reproductions import table2
from reproductions.cluster import processes_of_trainings
from reproductions.options import Options
from reproductions.plan import plan_rows
from reproductions.printing import console
from reproductions.scales import SCALES

ROOT = Path(__file__).parents[2]


@dataclass
class Result:
    """Exit code and output of a call."""

    code: int
    out: str
    err: str


Call = Callable[..., Result]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """`python reproductions/table2.py ARGUMENTS` in this process."""
    monkeypatch.setattr(console, "width", 200)

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["reproductions/table2.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            table2.main()
        return Result(caught.value.code, *capsys.readouterr())

    return run


def assert_one_line(result: Result, *parts: object) -> None:
    code, err = result.code, result.err
    assert code == 2, err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for part in parts:
        assert str(part) in err


def script(*arguments: object) -> Result:
    command = [sys.executable, "reproductions/table2.py", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return Result(done.returncode, done.stdout, done.stderr)


def test_script_runs_and_reports_an_error_in_one_line(tmp_path: Path) -> None:
    assert_one_line(
        script("--rows", "imagefolders", "--output", tmp_path / "out"), "imagefolders", *("unfolded", "var", "vq")
    )
    assert not (tmp_path / "out").exists()


def test_help(call: Call) -> None:
    result = call("--help")
    assert result.code == 0
    for option in (
        "--rows",
        "--scale",
        "--data",
        "--seed",
        "--seeds",
        "--output",
        "--fresh",
        "--skip-corrupt",
        "--dry-run",
        "--submit",
    ):
        assert option in result.out


@pytest.mark.parametrize("scale", ["mini", "laptop", "small", "full"])
def test_list_shows_every_row(call: Call, scale: str) -> None:
    result = call("--list", "--scale", scale)
    assert result.code == 0
    for recipe in table2.rows(SCALES[scale], 10):
        assert recipe.row in result.out
        assert recipe.label in result.out


def test_unknown_scale(call: Call) -> None:
    assert_one_line(call("--scale", "giant"), "giant", "mini", "small")


@pytest.mark.parametrize("arguments", [(), ("--data", "fashion")])
def test_full_without_a_folder(call: Call, arguments: tuple[str, ...]) -> None:
    name = arguments[-1] if arguments else "digits"
    assert_one_line(call("--scale", "full", *arguments), f"made for ImageNet, not for {name}", "--data")


@pytest.mark.parametrize("scale", ["mini", "small"])
def test_missing_data_folder(call: Call, tmp_path: Path, scale: str) -> None:
    place = tmp_path / "nowhere"
    assert_one_line(call("--scale", scale, "--data", place, "--output", tmp_path / "out"), place, *BUILTIN)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "meant"), [("fashon", "fashion"), ("CIFAR10", "cifar10"), ("digit", "digits")])
def test_misspelt_data_set(call: Call, name: str, meant: str) -> None:
    assert_one_line(call("--data", name), f"--data {name} (did you mean {meant}?)")


def test_data_of_no_name(call: Call) -> None:
    assert_one_line(call("--data", ""), "built-in", "digits")


@pytest.mark.parametrize("scale", ["mini", "small"])
def test_a_folder_may_have_the_name_of_a_built_in_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes_at: Callable[..., Path], scale: str
) -> None:
    classes_at(tmp_path / "digits", {"left": 26, "right": 25})
    monkeypatch.chdir(tmp_path)
    for data, train, classes in (("digits", 1347, 10), ("./digits", 41, 2)):
        options = Options(rows=("vq",), scale=scale, data=data, output=tmp_path / "out")
        dataset = plan_rows(table2.TABLE, options)[0].row.dataset
        assert (dataset.name, dataset.n_train, dataset.classes) == ("digits", train, classes)


def test_empty_data_folder(call: Call, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    assert_one_line(call("--data", tmp_path / "data"), tmp_path / "data", "empty")


@pytest.mark.parametrize("below", ["", "deeper"])
def test_output_that_cannot_be_written(call: Call, tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    output = tmp_path / "file" / below  # not even root can create this folder
    assert_one_line(call("--output", output), tmp_path / "file", "--output")


def test_unknown_option(call: Call) -> None:
    result = call("--colour", "red")
    assert result.code == 2
    assert "colour" in result.err + result.out


@pytest.mark.parametrize("arguments", [[], ["--rows", "vq", "--fresh"]])
def test_dry_run_shows_the_plan_and_changes_nothing(call: Call, tmp_path: Path, arguments: list[str]) -> None:
    (plan,) = plan_rows(table2.TABLE, Options(rows=("vq",), output=tmp_path / "out"))
    begun = plan.row.tokenizer.folder / "state.pt"
    begun.parent.mkdir(parents=True)
    begun.touch()
    result = call("--dry-run", "--output", tmp_path / "out", *arguments)
    assert result.code == 0
    assert begun.exists()
    assert "1000 steps" in result.out
    listed = {line.split()[1] for line in result.out.splitlines() if line.startswith("│")}
    assert listed == ({"vq"} if arguments else {recipe.row for recipe in table2.rows(SCALES["mini"], 10)})
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not (tmp_path / "out" / "records").exists()


def test_dry_run_of_a_submission_shows_every_job_and_creates_nothing(call: Call, tmp_path: Path) -> None:
    output = tmp_path / "out"
    settings = ("--profile", "slurm", "--set", "partition=gpu", "small.time=90")
    result = call("--submit", "--dry-run", "--rows", "imagefolder", "unfolded", "--output", output, *settings)
    assert result.code == 0, result.err
    assert result.out.count("==> ") >= 6  # proxies, tokenizer, tokens, two generators, two rows, report
    assert result.out.count("#SBATCH --partition=gpu") == result.out.count("#SBATCH --time=90")
    assert "afterok" in result.out
    assert "afterany" in result.out
    (line,) = (line for line in result.out.splitlines() if line.startswith("report table2"))
    assert line.count("tokenizer mini-MSVR3P2-256") == 1  # once for both rows
    assert not output.exists()


def test_a_submission_counts_the_processes_of_its_profile(call: Call, tmp_path: Path) -> None:
    """Batches of 32 and 64 divide by 2 x 2 processes, but not by 3."""
    arguments = ("--submit", "--dry-run", "--rows", "vq", "--output", tmp_path / "out", "--profile", "slurm", "--set")
    assert call(*arguments, "small.nodes=2", "small.tasks_per_node=2").code == 0
    assert_one_line(call(*arguments, "small.tasks_per_node=3"), "32 does not divide into 3 processes")


@pytest.mark.parametrize(("cluster", "processes"), [("local", 1), ("slurm", 6)])
def test_processes_are_counted_where_the_jobs_will_run(cluster: str, processes: int) -> None:
    """On this machine, which lacks the GPUs of the profile, a local job has one process."""
    settings = (f"cluster={cluster}", "nodes=2", "training.gpus_per_node=3")
    assert processes_of_trainings(SCALES["full"], "local" if cluster == "local" else "slurm", settings) == processes


def test_settings_of_a_submission_need_the_option_submit(call: Call, tmp_path: Path) -> None:
    assert_one_line(call("--set", "partition=gpu", "--output", tmp_path), "--submit")


def test_a_setting_of_a_submission_may_contain_commas(call: Call, tmp_path: Path) -> None:
    settings = ("--profile", "slurm", "--set", "partition=gpu,long")
    result = call("--submit", "--dry-run", "--rows", "vq", "--output", tmp_path / "out", *settings)
    assert result.code == 0, result.err
    assert "#SBATCH --partition=gpu,long" in result.out


def test_unknown_setting_of_a_submission_is_one_line(call: Call, tmp_path: Path) -> None:
    assert_one_line(call("--submit", "--set", "partitoin=gpu", "--output", tmp_path / "out"), "partitoin", "partition")


def test_interrupt_prints_how_to_continue(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "execute", interrupted)
    result = call("--rows", "vq", "--output", tmp_path)
    assert result.code == 130
    assert "same command" in result.err
    assert result.err.count("\n") == 1
