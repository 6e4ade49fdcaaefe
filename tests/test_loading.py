"""Saved models load without being named, and random weights are said to be random."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

import imagefolder
from imagefolder.files import read_json, write_json

TOKENIZER, GENERATOR = "mini-MSVR3P2-256", "VAR-mini-MSVR3P2-256"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders `tokenizer` and `generator` of two models that belong together."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    tokenizer = imagefolder.load_tokenizer(TOKENIZER, codebook_size=32)
    tokenizer.save_pretrained(root / "tokenizer")
    imagefolder.load_generator(GENERATOR, tokenizer).save_pretrained(root / "generator")
    return root


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_folder_says_what_it_holds(folders):
    tokenizer = imagefolder.load(folders / "tokenizer")
    assert isinstance(tokenizer, imagefolder.Tokenizer)
    assert tokenizer.config.codebook_size == 32
    assert not tokenizer.training
    assert same(tokenizer, imagefolder.load(str(folders / "tokenizer" / "model.safetensors")))
    generator = imagefolder.load(folders / "generator", tokenizer=tokenizer)
    assert isinstance(generator, imagefolder.Generator)
    assert generator.tokenizer is tokenizer
    assert not generator.training
    assert same(generator, imagefolder.load(folders / "generator", tokenizer=folders / "tokenizer"))


def test_models_are_cast_as_by_name(folders):
    generator = imagefolder.load(folders / "generator", folders / "tokenizer", dtype=torch.bfloat16)
    by_name = imagefolder.load_generator(
        GENERATOR,
        imagefolder.load_tokenizer(TOKENIZER, folders / "tokenizer", codebook_size=32, dtype=torch.bfloat16),
        folders / "generator",
        dtype=torch.bfloat16,
    )
    assert same(generator, by_name)
    assert torch.equal(generator.sample([1, 2]).tokens, by_name.sample([1, 2]).tokens)


def test_what_cannot_be_loaded_is_named(folders, tmp_path):
    for source, tokenizer, message in [
        (folders / "generator", None, r"generator is a generator; pass its tokenizer as well"),
        (folders / "generator", folders / "generator", r"generator is a generator; pass its tokenizer as well"),
        (folders / "tokenizer", folders / "tokenizer", r"tokenizer is a tokenizer itself"),
        (tmp_path / "none", None, r"none: no such file or folder$"),
        ("me/none", None, r"me/none: no such file or folder; on the hub, it is hf://me/none"),
        (folders, None, r"config.json: no such file"),
    ]:
        with pytest.raises(imagefolder.InputError, match=message):
            imagefolder.load(source, tokenizer=tokenizer)
    (tmp_path / "best_ckpt.pt").write_bytes(b"")
    with pytest.raises(
        imagefolder.InputError, match=r"best_ckpt.pt is not the folder .*load_tokenizer\(NAME, weights="
    ):
        imagefolder.load(tmp_path / "best_ckpt.pt")
    write_json(tmp_path / "config.json", {**read_json(folders / "tokenizer" / "config.json"), "kind": "Unknown"})
    with pytest.raises(imagefolder.InputError, match=r"neither a tokenizer nor a generator \(kind 'Unknown'\)"):
        imagefolder.load(tmp_path)


def test_random_weights_are_said_to_be_random(folders):
    with pytest.warns(UserWarning, match=f"{TOKENIZER} has random weights; pass weights=") as caught:
        tokenizer = imagefolder.load_tokenizer(TOKENIZER)
    with pytest.warns(UserWarning, match=f"{GENERATOR} has random weights") as again:
        imagefolder.load_generator(GENERATOR, tokenizer)
    assert [warning.filename for warning in [*caught, *again]] == [__file__] * 2


def test_given_weights_and_models_without_values_cause_no_warning(folders):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer = imagefolder.load_tokenizer(TOKENIZER, folders / "tokenizer", codebook_size=32)
        imagefolder.load_generator(GENERATOR, tokenizer, folders / "generator")
        imagefolder.load_generator(GENERATOR, tokenizer, device="meta")
        imagefolder.load(folders / "tokenizer")


def test_a_loop_shows_the_warning_once():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")  # Python's own setting, which shows a warning once per line of code
        for _ in range(3):
            imagefolder.load_tokenizer(TOKENIZER)
    assert len(caught) == 1
