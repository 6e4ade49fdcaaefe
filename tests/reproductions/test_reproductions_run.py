"""Rows from digits to the report: done once, reused, redone on request, and identical for equal seeds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import reproductions.command as command
import reproductions.source as source
from imagefolder.data.builtin import read_builtin
from imagefolder.errors import InputError
from imagefolder.files import file_sha256
from reproductions import ablation, folding, linear_probe, table2
from reproductions.command import run_table
from reproductions.options import Options
from reproductions.plan import plan_rows
from reproductions.recipe import Recipe, Table
from reproductions.scales import SCALES, Scale
from reproductions.stages import run_tokenizer

RunTable = Callable[..., int]
Records = Callable[[Path], dict[str, dict[str, Any]]]
WAY_HERE = command.way_here  # uses worker processes
pytestmark = pytest.mark.usefixtures("tiny_mini")


def weights(output: Path) -> dict[str, int]:
    return {str(p.relative_to(output)): p.stat().st_mtime_ns for p in sorted(output.rglob("*.safetensors"))}


def without_cost(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in ("cost", "run")}


@pytest.fixture
def whole_mini(tiny_mini: Scale, monkeypatch: pytest.MonkeyPatch) -> None:
    """All digits: worker processes read them without the patches of this process."""
    monkeypatch.setattr(source, "read_builtin", read_builtin)


@pytest.mark.slow
def test_equal_seeds_give_equal_records(
    tmp_path: Path,
    table: RunTable,
    records: Records,
    executed: list[str],
    monkeypatch: pytest.MonkeyPatch,
    whole_mini: None,
) -> None:
    """A row in this process, then in worker processes with another output folder: identical except for cost and run."""
    here, there = tmp_path / "here", tmp_path / "there"
    assert table(here, "unfolded") == 0
    kinds = [name.split("-")[0].split()[0] for name in executed]
    assert kinds == ["extractor", "teacher", "tokenizer", "tokens", "generator", "table2"]
    monkeypatch.setattr(command, "way_here", WAY_HERE)
    assert table(there, "unfolded") == 0
    made, again = records(here), records(there)
    assert made.keys() == again.keys() == {"unfolded"}
    for row in made:
        assert without_cost(made[row]) == without_cost(again[row])
    assert weights(here).keys() == weights(there).keys()
    assert (there / "report.html").exists()


def test_records_pictures_and_report(tmp_path: Path, table: RunTable, records: Records, executed: list[str]) -> None:
    assert table(tmp_path, "imagefolder", "var") == 0
    found = records(tmp_path)
    assert set(found) == {"imagefolder", "var"}
    for row, record in found.items():
        assert record["status"] == "finished"
        assert record["dataset"]["n_train"] == 150
        assert {metric["n_generated"] for metric in record["metrics"]} == {40, 60}
        shown = {path.rsplit("-", 1)[1] for path in record["pictures"].values()}
        assert ("swaps.png" in shown) is (row == "imagefolder")
        assert {"reconstruction.png", "scales.png", "nearest.png", "failures.png"} < shown
        for path in record["pictures"].values():
            assert (tmp_path / path).read_bytes().startswith(b"\x89PNG")
        for checkpoint in record["checkpoints"]:
            assert checkpoint["sha256"] == file_sha256(tmp_path / checkpoint["path"])
        assert record["cost"]["samples_per_second"] > 0
    roles = {row: {c["role"] for c in record["checkpoints"]} for row, record in found.items()}
    assert roles["imagefolder"] - roles["var"] == {"teacher"}
    assert found["imagefolder"]["size"]["positions"] == found["var"]["size"]["positions"] == 14
    assert (found["imagefolder"]["size"]["tokens"], found["var"]["size"]["tokens"]) == (28, 14)
    assert (found["imagefolder"]["order"], found["var"]["order"]) == (0, 2)
    extractors = {m["protocol"]["extractor_sha256"] for r in found.values() for m in r["metrics"]} - {None}
    assert len(extractors) == 1  # otherwise the rows could not be compared
    report = (tmp_path / "report.html").read_text()
    assert "ImageFolder" in report
    assert "VAR (one branch)" in report


@pytest.fixture
def finished(trained_row: Callable[[str], Path]) -> Path:
    return trained_row("vq")


def test_second_run_only_rebuilds_the_report(finished: Path, table: RunTable, executed: list[str]) -> None:
    before = weights(finished)
    assert len(before) == 3
    (finished / "report.html").unlink()
    assert table(finished, "vq") == 0
    assert executed == []
    assert weights(finished) == before
    assert (finished / "report.html").exists()


def test_lost_record_is_rebuilt_from_the_finished_models(
    finished: Path, table: RunTable, records: Records, executed: list[str]
) -> None:
    before, record = weights(finished), records(finished)["vq"]
    next((finished / "records").glob("*.json")).unlink()
    assert table(finished, "vq") == 0
    assert [name.split()[0] for name in executed] == ["table2"]
    assert weights(finished) == before
    assert without_cost(records(finished)["vq"]) == without_cost(record)


def test_other_seed_trains_other_models_with_the_same_extractor(
    finished: Path, table: RunTable, executed: list[str]
) -> None:
    before = weights(finished)
    assert table(finished, "vq", seed=1) == 0
    assert [name.split("-")[0] for name in executed] == ["tokenizer mini", "tokens mini", "generator AR", "table2 mini"]
    assert all(name.endswith("seed 1") for name in executed)
    after = weights(finished)
    assert before.items() <= after.items()
    assert len(after) == 5


@pytest.mark.parametrize("part", ["tokenizer_training", "generator_training"])
def test_changed_setting_retrains_only_what_it_affects(
    finished: Path, table: RunTable, executed: list[str], monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    scale: Scale = SCALES["mini"]
    changed = replace(scale, **{part: replace(getattr(scale, part), learning_rate=1e-4)})
    monkeypatch.setitem(SCALES, "mini", changed)
    before = weights(finished)
    assert table(finished, "vq") == 0
    kinds = [name.split()[0] for name in executed]
    assert kinds == (["tokenizer", "tokens"] if part == "tokenizer_training" else ["tokens"]) + ["generator", "table2"]
    assert before.items() <= weights(finished).items()


def test_fresh_trains_again_and_keeps_the_proxies(finished: Path, table: RunTable, executed: list[str]) -> None:
    before = weights(finished)
    assert table(finished, "vq", fresh=True) == 0
    assert [name.split()[0] for name in executed] == ["tokenizer", "tokens", "generator", "table2"]
    assert {name for name, time in weights(finished).items() if time == before[name]} == {
        name for name in before if "proxies" in name
    }


def test_rows_of_other_tables_use_the_same_models(finished: Path, table: RunTable, executed: list[str]) -> None:
    """The folded row of the folding table has the models of table 2's ImageFolder."""
    assert table(finished, "imagefolder") == 0
    before = weights(finished)
    executed.clear()
    options = Options(rows=("folded",), output=finished)
    assert run_table(folding.TABLE, options) == 0
    assert [name.split()[0] for name in executed] == ["folding"]
    assert weights(finished) == before


def test_row_without_a_generator_trains_only_its_tokenizer(
    tmp_path: Path, records: Records, executed: list[str]
) -> None:
    options = Options(rows=("step4",), output=tmp_path)
    assert run_table(Table("linear_probe", "Probe", linear_probe.rows), options) == 0
    assert [name.split()[0] for name in executed] == ["extractor", "tokenizer", "linear_probe"]
    names = {metric["protocol"]["name"] for metric in records(tmp_path)["step4"]["metrics"]}
    assert {"linear probe accuracy (continuous)", "linear probe accuracy (quantized)", "proxy-rFID"} <= names


def test_given_weights_are_evaluated_as_a_separate_row(
    finished: Path, table: RunTable, records: Records, executed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    made = records(finished)["vq"]
    models = {c["role"]: str((finished / c["path"]).parent) for c in made["checkpoints"]}
    assert (
        table(
            finished, "vq", tokenizer_weights=models["tokenizer"], generator_weights=models["generator"], num_samples=40
        )
        == 0
    )
    assert [name.split()[0] for name in executed] == ["table2"]
    given = records(finished)["vq-given"]
    same = {"proxy-gFID", "proxy-IS", "class accuracy"}  # as many samples; test images are fewer
    picked = [{m["protocol"]["name"]: m for m in r["metrics"] if m["protocol"]["name"] in same} for r in (made, given)]
    assert picked[0] == picked[1]
    assert {m["n_generated"] for m in given["metrics"]} == {40}
    assert {c["selection"] for c in given["checkpoints"] if c["role"] != "extractor"} == {"given, not selected here"}
    assert "tokenizer_training" not in given["config"]
    printed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith(("row ", "vq"))]
    assert printed == ["row", "vq", "row", "vq-given"]  # with columns of their own


def test_generator_trained_on_new_crops_needs_no_cached_tokens(
    finished: Path, table: RunTable, records: Records, executed: list[str]
) -> None:
    before = weights(finished)
    assert table(finished, "vq", views=0) == 0
    assert [name.split()[0] for name in executed] == ["generator", "table2"]
    assert len(weights(finished)) == len(before) + 1
    assert records(finished)["vq"]["config"]["views"] == 0
    executed.clear()
    assert table(finished, "vq", views=2) == 0  # the cache of one view stays
    assert [name.split()[0] for name in executed] == ["tokens", "generator", "table2"]


@pytest.mark.parametrize(("micro_batch", "together"), [(0, 8), (4, 4)])
def test_effect_of_micro_batches_is_part_of_models_and_records(
    tmp_path: Path,
    tiny_mini: Scale,
    records: Records,
    executed: list[str],
    capsys: pytest.CaptureFixture[str],
    micro_batch: int,
    together: int,
) -> None:
    """PatchGAN normalises the images of a micro-batch together; the batch size is 8."""
    scales = {"mini": replace(tiny_mini, loss=replace(tiny_mini.loss, adversarial=0.1, patch_width=8, patch_layers=2))}
    options = Options(rows=("step1",), output=tmp_path, micro_batch=micro_batch)
    assert run_table(Table("ablation", "Ablation", ablation.rows, scales), options) == 0
    record = records(tmp_path)["step1"]
    assert record["config"]["images_normalised_together"] == together
    settings = json.loads(next(tmp_path.glob("mini-*/seed0/tokenizers/*/settings.json")).read_text())
    assert settings["images_normalised_together"] == together
    assert ("normalises 4 images together instead of 8; this trains different models" in capsys.readouterr().out) == (
        together == 4
    )
    whole = Options(rows=("step1",), output=tmp_path)
    (plan,) = plan_rows(Table("ablation", "Ablation", ablation.rows, scales), whole)
    assert plan.tokenizer_done == (together == 8)  # a model trained in micro-batches is another one


def test_other_number_of_processes_than_planned_is_refused(tmp_path: Path, tiny_mini: Scale) -> None:
    """Its models would be stored under the identity of the planned ones."""
    scale = replace(tiny_mini, loss=replace(tiny_mini.loss, adversarial=0.1, patch_width=8, patch_layers=2))
    options = Options(rows=("step1",), output=tmp_path, micro_batch=4)
    (plan,) = plan_rows(Table("ablation", "Ablation", ablation.rows, {"mini": scale}), options)
    planned = replace(plan.row, processes=2)
    with pytest.raises(InputError, match=r"planned for 2 process\(es\) but has 1"):
        run_tokenizer(planned)


def test_without_a_discriminator_micro_batches_change_no_model(
    finished: Path, table: RunTable, records: Records, executed: list[str]
) -> None:
    before = records(finished)["vq"]
    assert table(finished, "vq", micro_batch=4) == 0
    assert executed == []
    assert "images_normalised_together" not in before["config"]


@pytest.mark.parametrize(("micro_batch", "message"), [(3, "8 does not divide into 1 processes x 3 pieces"), (-1, "-1")])
def test_impossible_micro_batches_are_refused_before_anything_is_trained(
    tmp_path: Path, table: RunTable, executed: list[str], micro_batch: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        table(tmp_path, "vq", micro_batch=micro_batch)
    assert executed == []


def breaking(scale: Scale, classes: int) -> list[Recipe]:
    """Table 2 with a commitment loss that overflows in the raster row's tokenizer."""
    recipes = table2.rows(scale, classes)
    broken = replace(recipes[3].tokenizer, name="broken", commitment=1e300)
    return [*recipes[:3], replace(recipes[3], tokenizer=broken)]


def test_row_that_diverges_is_recorded_as_failed_and_others_finish(
    tmp_path: Path, table: RunTable, records: Records, executed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert table(tmp_path, "var", "vq", recipes=breaking) == 1
    found = records(tmp_path)
    assert found["var"]["status"] == "finished"
    assert found["vq"]["status"] == "failed"
    assert "commitment not finite" in found["vq"]["reason"]
    assert found["vq"]["metrics"] == []
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "vq seed 0" in errors[0]
    assert "commitment" in (tmp_path / "report.html").read_text()

    executed.clear()  # the failed row is tried again, the finished one is not
    assert table(tmp_path, "var", "vq", recipes=breaking) == 1
    assert [name.split()[0] for name in executed] == ["tokenizer", "tokens", "generator", "table2"]
