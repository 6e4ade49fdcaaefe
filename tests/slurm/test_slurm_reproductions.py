"""Rows of table 2 on a real Slurm: the numbers of a local run, whatever happens to their jobs on the way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from waiting import command, wait_for, wait_for_step

from imagefolder.config import SamplingConfig
from reproductions import runner, table2
from reproductions.recipe import SCALES, Recipe
from reproductions.runner import Options
from slurm.journal import Journal

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.usefixtures("cluster")]
PROFILE = "test-cluster"

_MINI = SCALES["mini"]
SHORT = replace(
    _MINI,
    tokenizer_training=replace(_MINI.tokenizer_training, steps=240, batch_size=8, checkpoint_every=1000),
    generator_training=replace(_MINI.generator_training, steps=240, batch_size=8, checkpoint_every=1000),
    sampling=SamplingConfig(guidance=1.0, top_k=0, top_p=0.95, batch_size=20),
    samples=40,
    proxy_steps=5,
)


def run_rows(output: Path, *rows: str, recipes: Any = table2.rows, **options: Any) -> int:
    chosen = Options(rows=rows, output=output, **options)
    return runner.run("table2", "Table 2", recipes, chosen, SCALES | {"mini": SHORT})


def records(output: Path) -> dict[str, dict[str, Any]]:
    """The records by row, without what differs between equal runs."""
    found = [json.loads(path.read_text()) for path in (output / "records").glob("*.json")]
    return {r["row"]: {name: value for name, value in r.items() if name not in ("cost", "run")} for r in found}


def stage(journal: Journal, kind: str) -> str:
    (name,) = (name for name in journal.graph()["stages"] if name.startswith(kind))
    return name


def test_signalled_and_requeued_trainings_end_in_the_numbers_of_a_local_run(
    run: Path, overrides: list[str], tmp_path: Path
) -> None:
    submitted = {"submit": True, "profile": PROFILE, "set": tuple(overrides)}
    assert run_rows(run, "unfolded", **submitted) == 0
    journal = Journal(run)
    tokenizer, generator = stage(journal, "tokenizer"), stage(journal, "generator")
    command("scancel", "--signal=USR2", wait_for_step(journal, tokenizer, 20, 120).job)
    assert run_rows(run, "unfolded", **submitted) == 0  # nothing is started twice
    command("scontrol", "requeue", wait_for_step(journal, generator, 20, 240).job)
    report = stage(journal, "report")
    statuses = wait_for(journal, {report: "finished"}, 240)
    assert {status.state for status in statuses.values()} == {"finished"}
    assert (statuses[tokenizer].restarts, statuses[generator].restarts) == (1, 1)
    submissions = [line["stage"] for line in journal.lines() if line["event"] == "submitted"]
    assert len(submissions) == len(set(submissions))
    assert (run / "report.html").exists()

    assert run_rows(tmp_path / "local", "unfolded") == 0
    assert records(run) == records(tmp_path / "local")


def breaking(scale: str, classes: int) -> list[Recipe]:
    """Table 2 with a commitment that is infinite in the raster row's tokenizer."""
    recipes = table2.rows(scale, classes)
    return [*recipes[:3], replace(recipes[3], tokenizer=replace(recipes[3].tokenizer, commitment=1e300))]


def test_failed_row_is_named_and_the_others_finish(run: Path, overrides: list[str]) -> None:
    """The one that is left trains on two nodes."""
    settings = (*overrides, "small.nodes=2")
    assert run_rows(run, "unfolded", "vq", recipes=breaking, submit=True, profile=PROFILE, set=settings) == 0
    journal = Journal(run)
    wait_for(journal, {stage(journal, "report"): "finished"}, 400)
    found = records(run)
    assert found["unfolded"]["status"] == "finished"
    assert found["vq"]["status"] == "failed"
    assert "commitment not finite" in found["vq"]["reason"]
    assert "log: " in found["vq"]["reason"]
    (document,) = (run / "records").glob("table2-unfolded-*.json")
    assert json.loads(document.read_text())["run"]["processes"] == 2
