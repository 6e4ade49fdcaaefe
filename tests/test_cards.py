"""MODELS.md is what the zoo says now."""

from __future__ import annotations

from pathlib import Path

import pytest

import imagefolder
from imagefolder.cards import generator_row, tokenizer_row
from imagefolder.zoo import GENERATORS, REPORTED, TOKENIZER_OF, TOKENIZERS

MODELS = (Path(__file__).parent.parent / "MODELS.md").read_text()
PUBLISHED = [
    "VQ-4096", "VQ-8192", "RobustTok", "VP2-4096", "VP2-16384", "MSVR10P2-4096", "MSVR10P2-8192", "MSVR10P2-16384",
    "MSBR10P2-4096", "MSBR10P2-16384", "VAR-d17-MSVR10P2-4096",
]  # fmt: skip


def test_every_model_has_a_card_and_every_published_one_its_numbers():
    assert set(PUBLISHED) <= set(imagefolder.list_models())
    assert set(REPORTED) == set(PUBLISHED)
    assert set(TOKENIZER_OF) == set(GENERATORS)
    for name in imagefolder.list_models():
        assert f"\n### {name}\n" in MODELS
    for row in ("MSVR10P2-4096", "MSBR10P2-16384", "RobustTok"):
        line = next(line for line in MODELS.splitlines() if line.startswith(f"| {row} |"))
        assert f"{REPORTED[row].rfid:.2f}" in line


@pytest.mark.parametrize("name", ["mini-MSVR3P2-256", "mini-VQ-256", "MSVR10P2-4096"])
def test_tokenizer_cards_are_up_to_date(name):
    for column, value in tokenizer_row(TOKENIZERS[name]).items():
        if value and column != "name":
            assert f"- {column}: {value}\n" in MODELS, "run: python -m imagefolder.cards MODELS.md"


@pytest.mark.parametrize("name", ["VAR-mini-MSVR3P2-256", "VAR-mini-MSVR3P2-256-unfolded", "AR-mini-VQ-256"])
def test_generator_cards_are_up_to_date(name):
    for column, value in generator_row(GENERATORS[name]).items():
        if value and column != "name":
            assert f"- {column}: {value}\n" in MODELS, "run: python -m imagefolder.cards MODELS.md"
