"""The losses of a training in tensorboard, wandb and trackio, and how a resumed training continues its run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from imagefolder.config import Logger
from imagefolder.errors import InputError
from imagefolder.training.curve import Curve
from reproductions.options import Options
from reproductions.plan import plan_rows
from reproductions.table2 import TABLE

RATES = {"learning_rate": 0.5}


def train(folder: Path, start: int, stop: int, logger: Logger = "tensorboard") -> None:
    """Log a point every 20 steps, as a training from `start` to `stop` does."""
    folder.mkdir(exist_ok=True)
    with Curve(folder, start, logger) as curve:
        for step in range(start + 20, stop + 1, 20):
            curve.add(step, {"loss": 1 / step}, RATES)


def test_tensorboard_has_every_step_of_a_resumed_training_once(tmp_path: Path) -> None:
    train(tmp_path, 0, 60)
    train(tmp_path, 40, 100)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["loss", "learning_rate"]
    points = {event.step: event.value for event in events.Scalars("loss")}
    assert points == pytest.approx({step: 1 / step for step in (20, 40, 60, 80, 100)})
    assert len(events.Scalars("loss")) == 5


@pytest.mark.parametrize("logger", ["wandb", "trackio"])
def test_a_missing_package_is_named_before_anything_is_written(
    logger: Logger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, logger, None)  # how Python marks what cannot be imported
    with pytest.raises(InputError, match=f"logger {logger} is not installed; run: pip install {logger}"):
        train(tmp_path, 0, 20, logger)
    assert list(tmp_path.iterdir()) == []


def test_the_logger_is_no_part_of_a_models_identity(tmp_path: Path) -> None:
    rows = [plan_rows(TABLE, Options(output=tmp_path, logger=logger))[0].row for logger in ("tensorboard", "wandb")]
    assert [row.execution.logger for row in rows] == ["tensorboard", "wandb"]
    assert rows[0].tokenizer.folder == rows[1].tokenizer.folder
    assert rows[0].config == rows[1].config


@pytest.fixture(scope="module")
def trackio_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Not the user's own; trackio reads it when it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(tmp_path_factory.mktemp("trackio")))
        yield


@pytest.mark.extras
@pytest.mark.usefixtures("trackio_folder")
def test_trackio_continues_the_run_of_a_resumed_training(tmp_path: Path) -> None:
    from trackio import Api
    from trackio.sqlite_storage import SQLiteStorage

    folder = tmp_path / "resumed tokenizer"
    train(folder, 0, 60, "trackio")
    train(folder, 40, 100, "trackio")
    train(tmp_path / "other", 0, 20, "trackio")
    runs = {run.id: run.name for run in Api().runs("imagefolder") if run.name.startswith(("resumed", "other"))}
    assert len(runs) == 2
    resumed = next(id for id, name in runs.items() if name.startswith("resumed tokenizer-"))
    points = {log["step"]: log for log in SQLiteStorage.get_logs("imagefolder", runs[resumed], run_id=resumed)}
    assert {step: point["loss"] for step, point in points.items()} == {s: 1 / s for s in (20, 40, 60, 80, 100)}
    assert points[100]["learning_rate"] == 0.5


@pytest.mark.extras
@pytest.mark.usefixtures("trackio_folder")
def test_training_again_from_the_start_is_a_new_run_of_trackio(tmp_path: Path) -> None:
    from trackio import Api

    for _ in range(2):
        train(tmp_path / "again", 0, 20, "trackio")
    assert len([run for run in Api().runs("imagefolder") if run.name.startswith("again-")]) == 2


@pytest.mark.extras
def test_wandb_works_offline_and_keeps_the_id_of_a_resumed_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(tmp_path / "model", 0, 60, "wandb")
    train(tmp_path / "model", 40, 100, "wandb")
    train(tmp_path / "other", 0, 20, "wandb")
    files = {name: list(tmp_path.glob(f"{name}/wandb/offline-run-*/run-*.wandb")) for name in ("model", "other")}
    ids = {name: {file.name for file in found} for name, found in files.items()}
    assert [len(found) for found in ids.values()] == [1, 1]
    assert ids["model"] != ids["other"]
    assert all(b"learning_rate" in file.read_bytes() for found in files.values() for file in found)


@pytest.mark.extras
def test_wandb_without_a_key_says_how_to_go_on(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "NETRC"))}
    command = [sys.executable, "-m", "reproductions.table2", "--logger", "wandb", "--output", tmp_path / "runs"]
    options = {"env": environment | {"HOME": str(tmp_path)}, "capture_output": True, "text": True, "check": False}
    done = subprocess.run(command, **options, stdin=subprocess.DEVNULL)
    assert done.returncode == 2
    assert re.fullmatch("error: wandb: .*(API key|api_key).*WANDB_MODE=offline.*", done.stderr.splitlines()[-1])
    assert not (tmp_path / "runs").exists()
