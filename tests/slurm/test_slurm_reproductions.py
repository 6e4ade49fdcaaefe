"""Rows of table 2 on a real Slurm: the numbers of a local run, whatever happens to their jobs on the way."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from waiting import PROFILE, attempts, command, hold, process_of, shorten_limit, wait_for, wait_for_attempt

from imagefolder.config import SamplingConfig
from reproductions import linear_probe, table2
from reproductions.command import run_table
from reproductions.options import Options
from reproductions.recipe import Recipe, Table
from reproductions.scales import SCALES, Scale
from slurm.events import Submitted
from slurm.journal import Journal
from slurm.launch import resubmit

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.usefixtures("cluster")]

_MINI = SCALES["mini"]
SHORT = replace(
    _MINI,
    tokenizer_training=replace(_MINI.tokenizer_training, steps=240, batch_size=8, checkpoint_every=1000),
    generator_training=replace(_MINI.generator_training, steps=240, batch_size=8, checkpoint_every=1000),
    sampling=SamplingConfig(guidance=1.0, top_k=0, top_p=0.95, batch_size=20),
    samples=40,
    proxy_steps=5,
)


BRIEF = replace(  # where nothing has to happen in the middle of a training
    SHORT,
    tokenizer_training=replace(SHORT.tokenizer_training, steps=20),
    generator_training=replace(SHORT.generator_training, steps=20),
)


def run_rows(output: Path, *rows: str, recipes: Any = table2.rows, mini: Scale = SHORT, **options: Any) -> int:
    chosen = Options(rows=rows, output=output, **options)
    return run_table(Table("table2", "Table 2", recipes, SCALES | {"mini": mini}), chosen)


def records(output: Path) -> dict[str, dict[str, Any]]:
    """The records by row, without what differs between equal runs."""
    found = [json.loads(path.read_text()) for path in (output / "records").glob("*.json")]
    return {r["row"]: {name: value for name, value in r.items() if name not in ("cost", "run")} for r in found}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the unfolded row on this machine, without Slurm."""
    output = tmp_path_factory.mktemp("local")
    assert run_rows(output, "unfolded") == 0
    return output


def stage(journal: Journal, kind: str) -> str:
    (name,) = (name for name in journal.graph().stages if name.startswith(kind))
    return name


def breaking(scale: Scale, classes: int) -> list[Recipe]:
    """Table 2 with a commitment that is infinite in the raster row's tokenizer."""
    recipes = table2.rows(scale, classes)
    return [*recipes[:3], replace(recipes[3], tokenizer=replace(recipes[3].tokenizer, commitment=1e300))]


def test_row_has_the_numbers_of_a_local_run_whatever_happens_and_another_fails_by_name(
    run: Path, overrides: list[str], undisturbed: Path
) -> None:
    settings = (*overrides, "signal_delay=15", "restarts_without_progress=10")
    submitted = {"recipes": breaking, "submit": True, "profile": PROFILE, "set": settings}
    assert run_rows(run, "unfolded", "vq", **submitted) == 0
    journal = Journal(run)
    tokenizer, generator = stage(journal, "tokenizer mini-MSVR"), stage(journal, "generator VAR")
    command("scancel", "--signal=USR2", wait_for_attempt(journal, tokenizer, 1).job)
    assert run_rows(run, "unfolded", "vq", **submitted) == 0  # what is alive or done is not started twice
    shorten_limit(wait_for_attempt(journal, tokenizer, 2))
    hold(process_of(journal, tokenizer))  # in the middle of training, until the end of its time is announced
    node = wait_for_attempt(journal, generator, 1).nodes
    command("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    try:
        again = wait_for_attempt(journal, generator, 2).job
    finally:
        # refused if the node has already returned by itself (ReturnToService)
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], timeout=60, check=False)
    command("scontrol", "requeue", again)
    statuses = wait_for(journal, {stage(journal, "report"): "finished"})

    assert statuses[tokenizer].restarts >= 2
    assert statuses[generator].restarts >= 2
    submissions = [event.stage for event in journal.events() if isinstance(event, Submitted)]
    assert submissions.count(tokenizer) == submissions.count(generator) == 1
    assert (run / "report.html").exists()
    assert records(run)["unfolded"] == records(undisturbed)["unfolded"]
    failed = records(run)["vq"]
    assert failed["status"] == "failed"
    assert "commitment not finite" in failed["reason"]
    assert "log: " in failed["reason"]


def test_killed_training_fails_its_row_and_resubmit_ends_it_with_the_same_numbers(
    run: Path, overrides: list[str], undisturbed: Path
) -> None:
    shutil.copytree(undisturbed, run)  # all but what comes from the generator on
    (generators,) = run.glob("*/seed0/generators")
    for results in (generators, run / "records"):
        shutil.rmtree(results)
    assert run_rows(run, "unfolded", submit=True, profile=PROFILE, set=tuple(overrides)) == 0
    journal = Journal(run)
    generator, report = stage(journal, "generator VAR"), stage(journal, "report")
    wait_for_attempt(journal, generator, 1)
    command("kill", "-9", process_of(journal, generator))
    wait_for(journal, {generator: "failed", report: "finished"})
    found = records(run)["unfolded"]
    assert found["status"] == "failed"
    assert "SIGKILL" in found["reason"]
    assert "ended by SIGKILL" in (run / "report.md").read_text()

    resubmit(run)
    wait_for(journal, {generator: "finished", report: "finished"})
    assert records(run)["unfolded"] == records(undisturbed)["unfolded"]


@pytest.fixture
def small_disk(run: Path) -> Iterator[Path]:
    """The run's folder on a disk of four megabytes."""
    run.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(run)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield run
    subprocess.run(["umount", "--lazy", str(run)], check=True)


def test_full_disk_is_the_reason(small_disk: Path, overrides: list[str]) -> None:
    assert run_rows(small_disk, "unfolded", mini=BRIEF, submit=True, profile=PROFILE, set=tuple(overrides)) == 0
    wait_for(Journal(small_disk), {stage(Journal(small_disk), "report"): "finished"})
    reason = records(small_disk)["unfolded"]["reason"]
    assert "No space left on device" in reason or "bytes are free on its disk" in reason  # what finds it first
    assert "\n" not in reason


def test_two_nodes_train_together(run: Path, overrides: list[str]) -> None:
    chosen = Options(rows=("step4",), output=run, submit=True, profile=PROFILE, set=(*overrides, "small.nodes=2"))
    assert run_table(Table("linear_probe", "Probe", linear_probe.rows, SCALES | {"mini": BRIEF}), chosen) == 0
    journal = Journal(run)
    wait_for(journal, {stage(journal, "report"): "finished"})
    (document,) = (run / "records").glob("linear_probe-step4-*.json")
    record = json.loads(document.read_text())
    assert record["status"] == "finished"
    assert record["run"]["processes"] == 2
    assert [attempt.nodes for attempt in attempts(journal, stage(journal, "tokenizer"))] == ["n[1-2]"]
