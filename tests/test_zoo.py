"""Names of the zoo follow from the fields of its configurations, and every saved model is recognised."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run

import imagefolder
from imagefolder.checkpoints.__main__ import main
from imagefolder.checkpoints.native import save_checkpoint
from imagefolder.config import TOKEN_FIELDS, GeneratorConfig, TokenizerConfig
from imagefolder.loading import build, fitting_models
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.zoo import (
    GENERATORS,
    TOKENIZER_OF,
    TOKENIZERS,
    for_tokenizer,
    generator_name,
    list_models,
    tokenizer_name,
    variant,
)

ZOO = TOKENIZERS | GENERATORS
MINI = [name for name in ZOO if "mini" in name]
# Trained differently, but of the same shape: only a native checkpoint's own configuration tells them apart
ALIKE = [{"VQ-4096", "RobustTok"}, {"mini-VQ-256", "mini-RobustTok"}]


def alike(name: str) -> set[str]:
    return next((names for names in ALIKE if name in names), {name})


def test_the_names() -> None:
    assert list_models() == [
        "MSVR10P2-4096", "MSVR10P2-8192", "MSVR10P2-16384", "MSBR10P2-4096", "MSBR10P2-16384", "VP2-4096", "VP2-16384",
        "VQ-4096", "VQ-8192", "RobustTok", "MSVR10-4096",
        "mini-MSVR3P2-256", "mini-MSVR3-256", "mini-MSBR3P2-256", "mini-VP2-256", "mini-VQ-256", "mini-RobustTok",
        "laptop-MSVR4P2-4096", "laptop-MSVR4-4096", "laptop-VQ-4096",
        "small-MSVR8P2-1024", "small-MSVR8-1024", "small-VQ-1024",
        "VAR-d17-MSVR10P2-4096", "VAR-d17-MSVR10P2-4096-unfolded", "VAR-d17-MSVR10-4096", "AR-d17-VQ-4096",
        "VAR-mini-MSVR3P2-256", "VAR-mini-MSVR3P2-256-unfolded", "VAR-mini-MSVR3-256", "AR-mini-VQ-256",
        "VAR-laptop-MSVR4P2-4096", "VAR-laptop-MSVR4P2-4096-unfolded", "VAR-laptop-MSVR4-4096", "AR-laptop-VQ-4096",
        "VAR-small-MSVR8P2-1024", "VAR-small-MSVR8P2-1024-unfolded", "VAR-small-MSVR8-1024", "AR-small-VQ-1024",
    ]  # fmt: skip


def test_every_name_follows_from_the_fields() -> None:
    for name, tokenizer in TOKENIZERS.items():
        assert tokenizer_name(replace(tokenizer, name="another")) == tokenizer.name == name
    for name, generator in GENERATORS.items():
        tokenizer = TOKENIZERS[TOKENIZER_OF[name]]
        assert generator_name(replace(generator, name="another"), tokenizer) == generator.name == name
        assert all(getattr(generator, field) == getattr(tokenizer, field) for field in TOKEN_FIELDS)


@pytest.mark.parametrize(
    ("base", "changes", "name", "order", "generator"),
    [
        ("mini-MSVR3P2-256", {"quantizer": "bsq", "code_dim": 8}, "mini-MSBR3P2-256", "folded", "VAR-mini-MSBR3P2-256"),
        ("mini-MSVR3P2-256", {"branches": 4, "codebook_size": 8}, "mini-MSVR3P4-8", "folded", "VAR-mini-MSVR3P4-8"),
        ("mini-MSVR3P2-256", {"branches": 1, "scales": (1, 4)}, "mini-MSVR2-256", "folded", "VAR-mini-MSVR2-256"),
        ("mini-MSVR3P2-256", {"semantic": "none"}, "mini-MSVR3P2-256-plain", "folded", "VAR-mini-MSVR3P2-256-plain"),
        ("MSBR10P2-4096", {}, "MSBR10P2-4096", "unfolded", "VAR-d17-MSBR10P2-4096-unfolded"),
        ("VQ-4096", {"semantic": "none"}, "VQ-4096-plain", "raster", "AR-d17-VQ-4096-plain"),
        ("VP2-4096", {"codebook_size": 64}, "VP2-64", "raster", "AR-d17-VP2-64"),
        ("mini-RobustTok", {"codebook_size": 64}, "mini-RobustTok", "raster", "AR-mini-RobustTok"),
        ("small-VQ-1024", {"image_size": 64}, "VQ-1024", "raster", "AR-d17-VQ-1024"),
    ],
)
def test_names_of_variants(base: str, changes: dict[str, Any], name: str, order: str, generator: str) -> None:
    tokenizer = variant(TOKENIZERS[base], **changes)
    assert tokenizer.name == name
    assert for_tokenizer(GeneratorConfig(), tokenizer, order=order).name == generator


def test_a_generator_for_a_tokenizer_derives_what_is_not_given() -> None:
    base, tokenizer = GENERATORS["VAR-mini-MSVR3P2-256"], TOKENIZERS["mini-MSVR3-256"]
    deeper = for_tokenizer(base, tokenizer, depth=6)
    assert (deeper.width, deeper.heads, deeper.drop_path) == (384, 6, 0.1 * 6 / 24)
    assert for_tokenizer(base, tokenizer, depth=6, width=96).width == 96
    wider = for_tokenizer(base, tokenizer, width=192, name="mine", branches=1)
    assert (wider.depth, wider.heads, wider.drop_path, wider.name) == (3, 3, 0.0, "mine")


@pytest.mark.parametrize("name", ZOO)
def test_every_model_is_recognised_by_its_shapes(name: str) -> None:
    with torch.device("meta"):
        state = build(ZOO[name]).state_dict()
    assert {config.name for config in fitting_models(state, type(ZOO[name]))} == alike(name)


@pytest.mark.parametrize("name", MINI)
def test_every_small_model_is_saved_recognised_and_loaded(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ZOO[name]
    model = build(config)
    torch.save(model.state_dict(), tmp_path / "x.pt")
    save_checkpoint(tmp_path / "native", model, config)
    assert run(main, "inspect", tmp_path / "native") == 0
    assert f"(native checkpoint of {name}" in capsys.readouterr().out
    choice = ["--model", name] if len(alike(name)) > 1 else []
    assert run(main, "convert", tmp_path / "x.pt", tmp_path / "converted", *choice) == 0
    assert f"{tmp_path / 'converted'}: {name}" in capsys.readouterr().out
    for folder in ("native", "converted"):
        if isinstance(config, TokenizerConfig):
            loaded = imagefolder.load_tokenizer(name, tmp_path / folder)
        else:
            tokenizer = Tokenizer(TOKENIZERS[TOKENIZER_OF[name]])
            loaded = imagefolder.load_generator(name, tokenizer, tmp_path / folder).transformer
        assert all(torch.equal(loaded.state_dict()[key], value) for key, value in model.state_dict().items())
