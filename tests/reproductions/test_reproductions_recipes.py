"""The rows of every script: each differs from its neighbour only in what the paper changed."""

from __future__ import annotations

import csv
from dataclasses import asdict
from math import log2
from types import ModuleType
from typing import Any

import pytest

from imagefolder.config import LossConfig
from imagefolder.generator.sequence import build_sequence
from leaderboard.reported import REPORTED_CSV
from reproductions import ablation, branches, folding, guidance, linear_probe, table2, token_length
from reproductions.recipe import Recipe, loss_of
from reproductions.scales import SCALES, Scale

SCRIPTS = (table2, ablation, token_length, branches, folding, linear_probe, guidance)
EVERY_SCALE = pytest.mark.parametrize("scale", ["mini", "laptop", "small", "full"])


def differing(one: Any, other: Any) -> set[str]:
    """Names of the fields in which two dataclasses differ."""
    a, b = asdict(one), asdict(other)
    return {name for name in a if a[name] != b[name]} - {"name"}


@EVERY_SCALE
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__.split(".")[-1])
def test_rows_have_different_names_and_their_models_fit_together(script: ModuleType, scale: str) -> None:
    recipes: list[Recipe] = script.rows(SCALES[scale], 37)
    assert len({recipe.row for recipe in recipes}) == len({recipe.label for recipe in recipes}) == len(recipes)
    for recipe in recipes:
        assert recipe.note
        loss_of(recipe, SCALES[scale])
        if recipe.generator is None:
            assert "generation" not in recipe.measures
            continue
        assert recipe.generator.num_classes == 37
        for name in ("branches", "scales", "codebook_size", "code_dim"):
            assert getattr(recipe.generator, name) == getattr(recipe.tokenizer, name)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__.split(".")[-1])
def test_reported_counterparts_exist(script: ModuleType) -> None:
    with REPORTED_CSV.open(newline="") as file:
        systems = {name for line in csv.DictReader(file) for name in (line["system"], *line["also"].split("; "))}
    assert {recipe.reported for recipe in script.rows(SCALES["mini"], 10)} - {None} <= systems


@EVERY_SCALE
def test_each_step_of_the_ablation_changes_one_thing(scale: str) -> None:
    recipes = ablation.rows(SCALES[scale], 10)
    losses = [loss_of(recipe, SCALES[scale]) for recipe in recipes]
    changes = [
        (differing(before.tokenizer, after.tokenizer), differing(old, new))
        for before, after, old, new in zip(recipes, recipes[1:], losses, losses[1:], strict=False)
    ]
    assert changes == [
        ({"quantizer_dropout"}, set()),
        ({"scales"}, set()),
        ({"branches"}, set()),
        ({"semantic"}, set()),
        ({"semantic"}, set()),
        (set(), {"discriminator"}),
        (set(), {"lecam"}),
    ]
    assert [recipe.tokenizer.semantic for recipe in recipes] == ["none"] * 4 + ["all"] + ["last"] * 3


def test_ablation_at_full_ends_in_the_released_model_trained_as_published() -> None:
    last = ablation.rows(SCALES["full"], 1000)[-1]
    released = table2.rows(SCALES["full"], 1000)[0]
    assert last.tokenizer == released.tokenizer
    assert last.generator == released.generator
    assert loss_of(last, SCALES["full"]) == LossConfig()
    positions = [build_sequence(recipe.generator).length for recipe in ablation.rows(SCALES["full"], 1000)]
    assert positions == [680, 680] + [286] * 6


def test_ablation_at_mini_has_a_discriminator_in_every_row() -> None:
    for recipe in ablation.rows(SCALES["mini"], 10):
        assert loss_of(recipe, ablation.MINI).adversarial > 0


def test_token_lengths() -> None:
    lengths = {
        name: [recipe.tokenizer.length for recipe in token_length.rows(scale, 10)] for name, scale in SCALES.items()
    }
    assert lengths == {
        "mini": [6, 14, 21, 30],
        "laptop": [30, 57, 85, 130],
        "small": [105, 186, 286, 680],
        "full": [265, 286, 430, 680],
    }
    for recipe in token_length.rows(SCALES["full"], 1000):
        assert differing(recipe.tokenizer, token_length.rows(SCALES["full"], 1000)[1].tokenizer) <= {"scales"}


@EVERY_SCALE
def test_branches_have_equal_bits_and_positions(scale: str) -> None:
    recipes = branches.rows(SCALES[scale], 10)
    assert [recipe.tokenizer.branches for recipe in recipes] == [1, 2, 4]
    shapes = [recipe.tokenizer for recipe in recipes]
    assert len({shape.branches * shape.length * log2(shape.codebook_size) for shape in shapes}) == 1
    for recipe in recipes[1:]:
        assert differing(recipe.tokenizer, recipes[0].tokenizer) == {"branches", "codebook_size"}


@EVERY_SCALE
def test_folding_compares_equal_tokens(scale: str) -> None:
    folded, unfolded, one = folding.rows(SCALES[scale], 10)
    assert folded.tokenizer is unfolded.tokenizer
    tokens = {recipe.tokenizer.branches * recipe.tokenizer.length for recipe in (folded, unfolded, one)}
    assert len(tokens) == 1
    positions = [build_sequence(recipe.generator).length for recipe in (folded, unfolded, one)]
    assert positions[1] == positions[2] == 2 * positions[0]


@EVERY_SCALE
def test_probed_tokenizers_are_those_of_the_ablation(scale: str) -> None:
    probed = linear_probe.rows(SCALES[scale], 10)
    for recipe, step in zip(probed, ablation.rows(SCALES[scale], 10)[3:], strict=True):
        assert (recipe.row, recipe.tokenizer, recipe.loss) == (step.row, step.tokenizer, step.loss)
        assert "probe" in recipe.measures


@pytest.fixture
def full() -> Scale:
    return SCALES["full"]


def test_full_scale_has_the_published_schedules(full: Scale) -> None:
    images = 1_281_167
    tokenizer, generator = full.tokenizer_training, full.generator_training
    assert tokenizer.steps == 200 * (images // tokenizer.batch_size)
    assert generator.steps == 350 * (images // generator.batch_size)
    assert tokenizer.learning_rate == pytest.approx(3e-5 * tokenizer.batch_size / 128)
    assert generator.learning_rate == pytest.approx(8e-5 * generator.batch_size / 256)
    assert tokenizer.learning_rate * tokenizer.final_rate == pytest.approx(5e-5)
    assert full.samples == 50_000
