"""The rows of table 2 are comparable: equal budgets, sequence lengths and sizes."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from imagefolder.generator.sequence import build_sequence
from imagefolder.generator.transformer import Transformer
from reproductions.recipe import Recipe, resolved, sampling_of
from reproductions.scales import SCALES
from reproductions.table2 import rows

BOTH = pytest.mark.parametrize("scale", ["mini", "small", "full"])
ROWS = ["imagefolder", "unfolded", "var", "vq"]


def by_row(scale: str, classes: int = 10) -> dict[str, Recipe]:
    return {recipe.row: recipe for recipe in rows(SCALES[scale], classes)}


@BOTH
def test_rows_and_their_order(scale: str) -> None:
    assert [recipe.row for recipe in rows(SCALES[scale], 10)] == ROWS
    assert len({recipe.label for recipe in rows(SCALES[scale], 10)}) == len(ROWS)


@BOTH
def test_all_rows_have_the_same_budget(scale: str) -> None:
    settings = [resolved(recipe, SCALES[scale]) for recipe in rows(SCALES[scale], 10)]
    for name in ("tokenizer_training", "generator_training", "loss", "samples", "proxy_steps", "published"):
        assert all(s[name] == settings[0][name] for s in settings), name
    fixed = {field.name for field in fields(Recipe)}
    assert not {"training", "steps", "batch_size"} & fixed  # no row can have its own


@BOTH
def test_positions(scale: str) -> None:
    positions = {row: build_sequence(recipe.generator).length for row, recipe in by_row(scale).items()}
    assert positions["imagefolder"] == positions["var"]
    assert positions["unfolded"] == 2 * positions["imagefolder"]
    assert 0.75 < positions["vq"] / positions["imagefolder"] < 1.5


@BOTH
def test_tokenizers_differ_only_in_what_the_row_is_about(scale: str) -> None:
    recipes = by_row(scale)
    assert recipes["imagefolder"].tokenizer is recipes["unfolded"].tokenizer
    product, one_branch = (vars(recipes[row].tokenizer) for row in ("imagefolder", "var"))
    assert {n for n in product if product[n] != one_branch[n]} == {"name", "branches", "semantic", "quantizer_dropout"}
    folded, unfolded = (vars(recipes[row].generator) for row in ("imagefolder", "unfolded"))
    assert {n for n in folded if folded[n] != unfolded[n]} == {"name", "order"}
    assert recipes["vq"].generator.order == "raster"


@BOTH
def test_generators_have_parameter_counts_within_a_tenth(scale: str) -> None:
    counts = {}
    for row, recipe in by_row(scale, 100).items():
        with torch.device("meta"):
            model = Transformer(recipe.generator)
        counts[row] = sum(parameter.numel() for parameter in model.parameters())
    assert max(counts.values()) < 1.1 * min(counts.values()), counts


@BOTH
def test_generators_fit_the_classes_of_the_data_and_the_tokens_of_their_tokenizer(scale: str) -> None:
    for recipe in rows(SCALES[scale], 37):
        assert recipe.generator.num_classes == 37
        for name in ("branches", "scales", "codebook_size", "code_dim"):
            assert getattr(recipe.generator, name) == getattr(recipe.tokenizer, name)


@BOTH
def test_sampling_differs_only_in_the_guidance_of_raster_order(scale: str) -> None:
    recipes = by_row(scale)
    sampling = {row: sampling_of(recipe, SCALES[scale]) for row, recipe in recipes.items()}
    assert sampling["imagefolder"] == sampling["unfolded"] == sampling["var"] == SCALES[scale].sampling
    # Guidance grows over scales from 0 to its full strength; raster order has no scales and uses the mean
    sequence = build_sequence(recipes["imagefolder"].generator)
    last = len(sequence.blocks) - 1
    mean = (sequence.guidance(0, 1.0) + sequence.guidance(last, 1.0)) / 2
    assert sampling["vq"].guidance == mean * SCALES[scale].sampling.guidance
    assert sampling["vq"].top_p == SCALES[scale].sampling.top_p
