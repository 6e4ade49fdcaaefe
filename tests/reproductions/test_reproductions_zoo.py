"""The authors' zoo as rows: the released tokenizers at full, and small counterparts at the other scales."""

from __future__ import annotations

from math import log2

import pandas as pd
import pytest

from imagefolder.config import LossConfig, to_dict
from imagefolder.zoo import OBJECTIVES, TOKENIZERS
from leaderboard.reported import REPORTED_CSV, reported_frame
from reproductions.recipe import Recipe, loss_of, training_of
from reproductions.scales import SCALES
from reproductions.zoo import counterpart, rows

EVERY_SCALE = pytest.mark.parametrize("scale", ["mini", "small", "full"])


def by_row(scale: str) -> dict[str, Recipe]:
    return {recipe.row: recipe for recipe in rows(SCALES[scale], 1000)}


@EVERY_SCALE
def test_every_released_tokenizer_is_a_row_at_every_scale(scale: str) -> None:
    recipes = by_row(scale)
    assert list(recipes) == list(OBJECTIVES)
    assert len({recipe.tokenizer.name for recipe in recipes.values()}) == len(recipes)
    assert len({recipe.generator.name for recipe in recipes.values()}) == len(recipes)
    for name, recipe in recipes.items():
        released = TOKENIZERS[name]
        for field in ("quantizer", "branches", "semantic", "quantizer_dropout", "perturbed_images", "detail"):
            assert getattr(recipe.tokenizer, field) == getattr(released, field), (name, field)
        assert (len(recipe.tokenizer.scales) == 1) == (len(released.scales) == 1)
        assert recipe.generator.order == ("raster" if len(released.scales) == 1 else "folded")
        assert recipe.measures == ("reconstruction", "perturbation", "generation")


def test_tokenizers_at_full_are_trained_as_released() -> None:
    full = SCALES["full"]
    for name, recipe in by_row("full").items():
        assert recipe.tokenizer is TOKENIZERS[name]
        binary = name.startswith("MSBR")
        loss, training = loss_of(recipe, full), training_of(recipe, full)
        assert training.weight_decay == (5e-5 if binary else 0.0)
        assert loss.semantic_scale == ((1.0, 100.0) if binary else (1.0, 1.0))
        assert loss.semantic_normalise == binary
        if not binary:
            assert loss == LossConfig()


@pytest.mark.parametrize(
    ("released", "small"),
    [
        ("MSVR10P2-4096", "mini-MSVR3P2-256"), ("MSBR10P2-4096", "mini-MSBR3P2-256"), ("VP2-4096", "mini-VP2-256"),
        ("VQ-4096", "mini-VQ-256"), ("RobustTok", "mini-RobustTok"),
    ],
)  # fmt: skip
def test_counterparts_at_mini_are_the_small_models_of_the_zoo(released: str, small: str) -> None:
    assert to_dict(counterpart(released, SCALES["mini"])) == to_dict(TOKENIZERS[small])


@EVERY_SCALE
def test_codebooks_keep_their_proportions(scale: str) -> None:
    sizes = {name: recipe.tokenizer.codebook_size for name, recipe in by_row(scale).items()}
    for name, size in sizes.items():
        assert size * TOKENIZERS["MSVR10P2-4096"].codebook_size == (
            sizes["MSVR10P2-4096"] * TOKENIZERS[name].codebook_size
        )
        if name.startswith("MSBR"):
            assert by_row(scale)[name].tokenizer.code_dim == log2(size)


def test_every_row_has_its_reported_counterpart_and_pfid_where_there_is_one() -> None:
    reported = reported_frame(REPORTED_CSV, all_kinds=True)
    for name, recipe in by_row("full").items():
        (row,) = (row for row in reported.to_dict("records") if recipe.reported in (row["system"], *row["also"]))
        pfid = {"MSVR10P2-4096": 7.23, "VQ-4096": 6.98, "VQ-8192": 7.91, "RobustTok": 2.28}.get(name)
        found = row["tokenizer_pfid"]
        assert found == pfid if pfid is not None else pd.isna(found), name
        assert row["tokenizer_rfid"] > 0


def test_every_reported_pfid_is_of_one_system_and_has_a_source() -> None:
    systems = pd.read_csv(REPORTED_CSV)
    pfid = systems[systems["tokenizer_pfid"].notna()]
    assert len(pfid) == 8
    assert all(list(systems["system"]).count(system) == 1 for system in pfid["system"])
    assert pfid["source"].notna().all()
