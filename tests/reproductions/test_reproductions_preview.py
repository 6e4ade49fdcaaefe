"""What a row says of its samples beside FID: previews while it trains, and classes and nearest images in its record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reproductions import table2
from reproductions.graph import graph
from reproductions.measuring import preview_of_generator, preview_of_tokenizer
from reproductions.models import load_models
from reproductions.options import Options
from reproductions.pictures import NEAREST
from reproductions.plan import plan_rows
from reproductions.recipe import Table
from reproductions.recording import class_accuracies
from reproductions.row import Row
from reproductions.scales import Scale


def row_in(output: Path) -> Row:
    (plan,) = plan_rows(Table("table2", "Table 2", table2.rows), Options(rows=("imagefolder",), output=output))
    return plan.row


def test_a_record_has_the_classes_and_the_samples_nearest_to_training_images(
    imagefolder_row: Path, records: Callable[[Path], dict[str, dict[str, Any]]]
) -> None:
    record = records(imagefolder_row)["imagefolder"]
    values = {metric["protocol"]["name"]: metric for metric in record["metrics"]}
    found = record["class_accuracies"]
    assert list(found) == list("0123456789")
    assert min(found.values()) == values["worst class accuracy"]["value"]
    assert sum(found.values()) / 10 == pytest.approx(values["class accuracy"]["value"], abs=1e-6)  # 4 samples of each
    assert values["proxy-training neighbour ratio"]["floor"] == 1
    assert 0 <= values["proxy-mode coverage"]["value"] <= 1
    assert (imagefolder_row / record["pictures"][NEAREST]).is_file()
    assert record["pictures"][NEAREST] in record["picture_sha256"]
    html = (imagefolder_row / "report.html").read_text()
    assert "Accuracy of samples by class" in html
    assert NEAREST in html
    assert "Accuracy of samples by class" in (imagefolder_row / "report.md").read_text()


def test_both_trainings_of_a_row_are_previewed(imagefolder_row: Path) -> None:
    row = row_in(imagefolder_row)
    row = replace(row, scale=replace(row.scale, preview_every=5, preview_images=30))
    of_tokenizer, of_generator = preview_of_tokenizer(row), preview_of_generator(row)
    assert of_tokenizer is not None
    assert of_generator is not None
    assert (of_tokenizer.every, of_generator.every) == (5, 5)
    models = load_models(row)
    assert set(of_tokenizer.measure(models.tokenizer)) == {"proxy-rFID (30 images)", "proxy-rKID (30 images)"}
    assert set(of_generator.measure(models.generator)) == {"proxy-gFID (30 samples)", "proxy-gKID (30 samples)"}
    off = replace(row, scale=replace(row.scale, preview_every=0))
    assert preview_of_tokenizer(off) is preview_of_generator(off) is None


def test_previews_change_no_model_and_wait_for_the_extractor(tmp_path: Path, tiny_mini: Scale) -> None:
    (plan,) = plan_rows(Table("table2", "", table2.rows), Options(rows=("imagefolder",), output=tmp_path))
    other = replace(plan.row, scale=replace(tiny_mini, preview_every=1, preview_images=10))
    assert (other.tokenizer.folder, other.config) == (plan.row.tokenizer.folder, plan.row.config)
    tasks = {task.function.__name__: task for task in graph([plan])}
    for name in ("run_tokenizer", "run_generator"):
        assert tasks["make_extractor"].name in tasks[name].after


def test_equal_names_of_classes_are_told_apart() -> None:
    from imagefolder.evaluation.results import Result

    result = Result([], class_accuracies=[0.5, None, 0.25, 1.0])
    found = class_accuracies({"generation": result}, ["crane", "owl", "crane", "eel"])
    assert found == {"crane (0)": 0.5, "crane (2)": 0.25, "eel": 1.0}
