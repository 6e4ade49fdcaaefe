"""MODELS.md is what the zoo says now, and its operation counts are those of the architecture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import imagefolder
from imagefolder.cards import generator_row, sampling_flops, tokenizer_cost, tokenizer_row
from imagefolder.config import RELEASED_SCALES
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


def test_operations_of_the_released_tokenizer_by_hand():
    length, width, depth = 257 + 242, 768, 12
    linear = depth * 2 * length * 12 * width**2
    attention = depth * 2 * 2 * length**2 * width
    patches, projection = 2 * 256 * 768 * width, 2 * 242 * width * 32
    scales = sum(side**2 for side in RELEASED_SCALES)
    search, phi = 2 * 2 * scales * 4096 * 32, 2 * 10 * 2 * 121 * 9 * 32 * 32
    cost = tokenizer_cost(TOKENIZERS["MSVR10P2-4096"])
    assert cost.encode == linear + attention + patches + projection + search + phi


def test_operations_of_a_sample_by_hand():
    with torch.device("meta"):
        tokenizer = imagefolder.load_tokenizer("mini-MSVR3P2-256", device="meta")
        generator = imagefolder.load_generator("VAR-mini-MSVR3P2-256", tokenizer=tokenizer, device="meta")
    width, depth, length, codes = 96, 3, 14, 256
    linear = depth * 2 * length * 12 * width**2
    seen = 1 * 1 + 4 * 5 + 9 * 14  # queries times keys of the three scales
    attention = depth * 2 * 2 * seen * width
    head = 2 * length * width * 2 * codes
    inputs = 2 * 13 * 32 * width
    condition = depth * 2 * width * 6 * width + 2 * width * 2 * width
    once = linear + attention + head + inputs + condition
    decode = tokenizer_cost(tokenizer.config).decode
    assert sampling_flops(generator, guided=False) == pytest.approx(once + decode, rel=1e-9)
    assert sampling_flops(generator) == pytest.approx(2 * once + decode, rel=1e-9)
