"""Miniature untrained models in folders, as trainings leave them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from imagefolder.checkpoints.native import save_checkpoint
from imagefolder.generator.model import Generator
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.zoo import GENERATORS, TOKENIZERS, for_tokenizer

TOKENIZER = replace(TOKENIZERS["mini-MSVR3P2-256"], depth=1)
ONE_BRANCH = replace(TOKENIZER, name="one", branches=1, scales=(4,), semantic="none", quantizer_dropout=0.0)

CLASSES = [f"digit {i}" for i in range(10)]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of two branches with its generator, one of one branch without, and one set aside."""
    folder = tmp_path_factory.mktemp("demo") / "runs"
    torch.manual_seed(0)
    tokenizer = Tokenizer(TOKENIZER).eval()
    sha256 = save_checkpoint(folder / "tokenizers" / "two", tokenizer, TOKENIZER)
    config = for_tokenizer(GENERATORS["VAR-mini-MSVR3P2-256"], TOKENIZER, depth=1)
    generator = Generator(config, tokenizer)
    save_checkpoint(
        folder / "generators" / "var", generator.transformer, config, tokenizer_sha256=sha256, classes=CLASSES
    )
    save_checkpoint(folder / "tokenizers" / "one", Tokenizer(ONE_BRANCH), ONE_BRANCH)
    save_checkpoint(folder / ".aside" / "old", Tokenizer(ONE_BRANCH), ONE_BRANCH)
    return folder
