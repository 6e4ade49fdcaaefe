"""MODELS.md is what the zoo and the reported numbers give now."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import run

import imagefolder
from imagefolder.zoo import GENERATORS, TOKENIZER_OF, TOKENIZERS
from reproductions.cards import generator_row, main, reported, tokenizer_row

MODELS = (Path(__file__).parent.parent / "MODELS.md").read_text()
PUBLISHED = {
    "VQ-4096": "0.91", "VQ-8192": "0.81", "RobustTok": "1.02", "VP2-4096": "0.90", "VP2-16384": "0.64",
    "MSVR10P2-4096": "0.80", "MSVR10P2-8192": "0.70", "MSVR10P2-16384": "0.67", "MSBR10P2-4096": "0.86",
    "MSBR10P2-16384": "0.78", "VAR-d17-MSVR10P2-4096": "0.80",
}  # fmt: skip


def test_every_model_has_a_card_and_every_published_one_its_numbers():
    assert set(PUBLISHED) <= set(imagefolder.list_models())
    assert {name: rfid for name in imagefolder.list_models() if (rfid := reported(name, "tokenizer_rfid"))} == PUBLISHED
    assert set(TOKENIZER_OF) == set(GENERATORS)
    for name in imagefolder.list_models():
        assert f"\n### {name}\n" in MODELS
    for row in ("MSVR10P2-4096", "MSBR10P2-16384", "RobustTok"):
        line = next(line for line in MODELS.splitlines() if line.startswith(f"| {row} |"))
        assert PUBLISHED[row] in line


@pytest.mark.parametrize("name", ["mini-MSVR3P2-256", "mini-VQ-256", "MSVR10P2-4096"])
def test_tokenizer_cards_are_up_to_date(name):
    for column, value in tokenizer_row(TOKENIZERS[name]).items():
        if value and column != "name":
            assert f"- {column}: {value}\n" in MODELS, "run: python -m reproductions.cards MODELS.md"


@pytest.mark.parametrize("name", ["VAR-mini-MSVR3P2-256", "VAR-mini-MSVR3P2-256-unfolded", "AR-mini-VQ-256"])
def test_generator_cards_are_up_to_date(name):
    for column, value in generator_row(GENERATORS[name]).items():
        if value and column != "name":
            assert f"- {column}: {value}\n" in MODELS, "run: python -m reproductions.cards MODELS.md"


def test_command_writes_the_file_that_it_is_given_and_nothing_else(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(main, "--help") == 0
    assert run(main) == 2
    assert "error: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("reproductions.cards.render", lambda: "cards\n")
    assert run(main, "MODELS.md") == 0
    assert (tmp_path / "MODELS.md").read_text() == "cards\n"
