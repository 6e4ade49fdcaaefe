"""Budgets on the command line, the scale laptop, and the number of proxy steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from imagefolder.errors import InputError
from imagefolder.generator.sequence import build_sequence
from imagefolder.loading import build
from leaderboard.store import read_record, read_records
from leaderboard.tables import group_tables
from reproductions import ablation, table2
from reproductions.budget import FIELDS, with_budget, with_proxy_steps
from reproductions.options import Options
from reproductions.plan import RowPlan, plan_rows
from reproductions.proxies import is_proxy_done
from reproductions.scales import SCALES, proxy_steps_for

RunTable = Callable[..., int]
MINI = SCALES["mini"]
LAPTOP = SCALES["laptop"]
SCRIPTS = ("table2", "ablation", "token_length", "branches", "folding", "zoo", "linear_probe", "guidance")


def planned(output: Path, *budget: str, row: str = "imagefolder", **options: Any) -> RowPlan:
    (plan,) = plan_rows(table2.TABLE, Options(rows=(row,), output=output, budget=budget, **options))
    return plan


def test_laptop_has_57_positions_and_between_3_and_4_million_parameters() -> None:
    recipes = {recipe.row: recipe for recipe in table2.rows(LAPTOP, 10)}
    positions = {}
    for row, recipe in recipes.items():
        assert recipe.generator is not None
        positions[row] = build_sequence(recipe.generator).length
        with torch.device("meta"):
            tokenizer = build(recipe.tokenizer)
        assert 3e6 < sum(parameter.numel() for parameter in tokenizer.parameters()) < 4e6
    assert positions == {"imagefolder": 57, "unfolded": 114, "var": 57, "vq": 64}
    assert LAPTOP.tokenizer.image_size == 64


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_has_its_rows_at_laptop(script: str) -> None:
    table = import_module(f"reproductions.{script}").TABLE
    at_mini, at_laptop = (table.rows(table.scales[scale], 10) for scale in ("mini", "laptop"))
    assert [recipe.row for recipe in at_laptop] == [recipe.row for recipe in at_mini]
    for recipe in at_laptop:
        assert recipe.tokenizer.image_size == 64
        assert recipe.tokenizer.latent_side <= 64 // recipe.tokenizer.patch_size


def test_ablation_at_laptop_has_a_discriminator_in_every_row() -> None:
    assert ablation.TABLE.scales["laptop"].loss.adversarial > 0


@pytest.mark.parametrize(
    ("budget", "shown"),
    [
        ([], ""),
        (["steps=300"], "steps=300"),
        (["tokenizer_steps=300", "generator_steps=300"], "steps=300"),
        (["steps=500"], "tokenizer_steps=500"),  # the generator's own number
        (["steps=300", "generator_steps=200"], "tokenizer_steps=300 generator_steps=200"),
        (["tokenizer_steps=1000", "samples=1000", "image_size=32"], ""),
        (["samples=200", "batch_size=16"], "batch_size=16 samples=200"),
        (["learning_rate=1e-4", "image_size=48"], "learning_rate=0.0001 image_size=48"),
    ],
)
def test_a_budget_is_what_differs_from_the_scale(budget: list[str], shown: str) -> None:
    changed = with_budget(MINI, budget)
    assert changed.budget_text == shown
    assert (changed == MINI) == (shown == "")
    assert with_budget(MINI, shown.split()) == changed


def test_a_budget_changes_what_it_names() -> None:
    changed = with_budget(
        MINI, ["steps=200", "tokenizer_batch_size=16", "generator_learning_rate=0.001", "image_size=64", "samples=50"]
    )
    tokenizer, generator = changed.tokenizer_training, changed.generator_training
    assert (tokenizer.steps, generator.steps, changed.samples) == (200, 200, 50)
    assert (tokenizer.batch_size, generator.batch_size) == (16, MINI.generator_training.batch_size)
    assert (tokenizer.learning_rate, generator.learning_rate) == (MINI.tokenizer_training.learning_rate, 0.001)
    assert changed.tokenizer.image_size == changed.single_scale.image_size == 64
    assert tokenizer.ema == pytest.approx(0.95)  # an average over the last tenth of the steps, as at 1000


def test_a_short_budget_at_full_still_changes_the_learning_rate() -> None:
    training = with_budget(SCALES["full"], ["steps=100"]).tokenizer_training
    assert training.epoch_steps == 1
    assert 0 < training.evaluate_every <= 100


@pytest.mark.parametrize(
    ("scale", "budget", "parts"),
    [
        ("mini", ["stpes=3"], ["stpes", "did you mean steps?", *FIELDS]),
        ("mini", ["steps"], ["steps=100"]),
        ("mini", ["steps=many"], ["many", "whole number"]),
        ("mini", ["steps=1.5"], ["1.5", "whole number"]),
        ("mini", ["steps=0"], ["from 1"]),
        ("mini", ["batch_size=-4"], ["from 2"]),
        ("mini", ["samples=9"], ["from 10"]),
        ("mini", ["learning_rate=nan"], ["nan"]),
        ("mini", ["learning_rate=3"], ["to 1"]),
        ("mini", ["steps=3", "steps=4"], ["steps is given twice"]),
        ("mini", ["image_size=36"], ["36", "multiple of 8"]),
        ("mini", ["image_size=24"], ["24", "4 x 4", "32"]),
        ("mini", ["image_size=8192"], ["8192", "too large"]),
        ("full", ["image_size=128"], ["256"]),
        ("full", ["proxy_steps=10"], ["proxies"]),
    ],
)
def test_a_wrong_budget_is_refused_in_one_sentence(scale: str, budget: list[str], parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        with_budget(SCALES[scale], budget)
    text = str(caught.value)
    assert text.startswith("--budget")
    assert "\n" not in text
    for part in parts:
        assert part in text


def test_a_budget_does_not_fit_given_weights(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--num-samples"):
        planned(tmp_path, "samples=100", tokenizer_weights="tokenizer.pt")


def test_digits_have_500_proxy_steps_and_the_number_grows_with_the_images() -> None:
    assert proxy_steps_for(1347) == 500
    steps = [proxy_steps_for(images) for images in (320, 1347, 60_000)]
    assert steps == sorted(steps)
    assert steps[0] < 500
    assert 3 < steps[-1] * 64 / 60_000 < 6  # epochs
    settled = with_proxy_steps(MINI, MINI, 320)
    assert (settled.proxy_steps, settled.budget) == (steps[0], ())
    chosen = with_proxy_steps(with_budget(MINI, ["proxy_steps=50"]), MINI, 320)
    assert (chosen.proxy_steps, chosen.budget_text) == (50, "proxy_steps=50")
    usual = with_proxy_steps(with_budget(MINI, [f"proxy_steps={steps[0]}"]), MINI, 320)
    assert usual == settled
    assert with_proxy_steps(SCALES["full"], SCALES["full"], 1_281_167).proxy_steps == 0


def test_identities_of_the_digits_at_mini_stay_as_they_are(tmp_path: Path) -> None:
    row = planned(tmp_path).row
    assert row.config["proxy_steps"] == 500
    assert row.tokenizer.folder == row.shared / "seed0/tokenizers/mini-MSVR3P2-256-7afd7f90"
    assert row.record.name.startswith("table2-imagefolder-mini-digits-")


@pytest.mark.parametrize(
    ("budget", "tokenizer", "proxies"),
    [
        ("generator_steps=7", False, False),
        ("samples=50", False, False),
        ("tokenizer_steps=7", True, False),
        ("proxy_steps=7", True, True),
        ("image_size=40", True, True),
    ],
)
def test_a_budget_is_part_of_the_identity_of_what_it_changes(
    tmp_path: Path, budget: str, tokenizer: bool, proxies: bool
) -> None:
    before, after = planned(tmp_path).row, planned(tmp_path, budget).row
    assert (after.tokenizer.folder != before.tokenizer.folder) == tokenizer
    assert (after.extractor != before.extractor) == proxies
    assert before.generator is not None
    assert after.generator is not None
    assert (after.generator.folder != before.generator.folder) == (budget != "samples=50")
    assert after.record != before.record
    assert after.full_name != before.full_name
    assert after.dataset.image_size == (40 if "image_size" in budget else 32)


@pytest.mark.usefixtures("executed", "tiny_mini")
def test_rows_of_different_budgets_share_no_table_and_no_record(
    tmp_path: Path, table: RunTable, capsys: pytest.CaptureFixture[str]
) -> None:
    assert table(tmp_path, "vq") == 0
    assert table(tmp_path, "vq", budget=("samples=30", "generator_steps=4")) == 0
    assert "budget generator_steps=4 samples=30" in " ".join(capsys.readouterr().out.split())
    records = read_records(tmp_path / "records")
    assert not records.left_out
    assert [record.budget for record in records] == ["", "generator_steps=4 samples=30"]
    assert len(group_tables(list(records))) == 2
    assert len(list((tmp_path / "records").glob("table2-vq-mini-generator_steps=4-samples=30-digits-*.json"))) == 1
    assert {record.config["samples"] for record in records} == {40, 30}
    report = (tmp_path / "report.md").read_text()
    assert "table2 · mini · digits" in report
    assert "generator_steps=4 samples=30]" in report.replace("\\", "")
    plan = planned(tmp_path, "samples=30", "generator_steps=4", row="vq")
    assert plan.recorded
    assert is_proxy_done(plan.row.extractor, plan.row)


def test_a_record_without_a_budget_is_read(tmp_path: Path) -> None:
    """Earlier versions wrote none."""
    earlier = Path(__file__).parents[1] / "leaderboard/earlier/table2-imagefolder-mini-digits-d1d1d1d1-seed0.json"
    assert "budget" not in json.loads(earlier.read_text())
    assert read_record(earlier).budget == ""
