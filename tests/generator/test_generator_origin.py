"""What a generator's checkpoint says besides its weights: its tokenizer, classes and sampling settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_generator_model import build

import imagefolder
from imagefolder.checkpoints.native import native_sha256, save_checkpoint
from imagefolder.files import file_sha256, read_json, write_json
from imagefolder.generator.__main__ import SampleOptions, run
from imagefolder.generator.export import export_samples
from imagefolder.generator.model import Generator
from imagefolder.generator.sampling import Sampling

OWN = Sampling(guidance=1.5, top_k=20, top_p=0.9, temperature=(1.0, 0.9, 0.8))
RELEASED = {"guidance": 3.25, "top_k": 750, "top_p": 0.95, "temperature": 1.0}
OWN_VALUES = {"guidance": 1.5, "top_k": 20, "top_p": 0.9, "temperature": (1.0, 0.9, 0.8)}
DIGITS = [f"digit {i}" for i in range(10)]
SHAPE = {"codebook_size": 32}


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Generator, Path]:
    """A generator with settings of its own, and the folder that holds it and its tokenizer."""
    built = build("folded")
    generator = Generator(built.config, built.tokenizer, classes=DIGITS, sampling=OWN).eval()
    generator.transformer.load_state_dict(built.transformer.state_dict())
    generator.save_pretrained(tmp_path / "generator")
    generator.tokenizer.save_pretrained(tmp_path / "tokenizer")
    return generator, tmp_path


def load(folder: Path, tokenizer: imagefolder.Tokenizer, way: str, **where: Any) -> Generator:
    if way == "by name":
        name = "VAR-mini-MSVR3P2-256"
        return imagefolder.load_generator(name, tokenizer, folder / "generator", **where)
    loaded = imagefolder.load(folder / "generator", tokenizer, **where)
    assert isinstance(loaded, Generator)
    return loaded


def change_document(folder: Path, **values: Any) -> None:
    """Change entries of a generator's document; None removes one."""
    path = folder / "generator" / "config.json"
    document = {**read_json(path), **values}
    write_json(path, {name: value for name, value in document.items() if value is not None})


@pytest.mark.parametrize("way", ["by name", "by folder"])
def test_a_saved_generator_comes_back_with_its_classes_and_settings(saved: tuple[Generator, Path], way: str) -> None:
    generator, folder = saved
    stored = json.loads((folder / "generator" / "config.json").read_text())
    assert stored["tokenizer_sha256"] == file_sha256(folder / "tokenizer" / "model.safetensors")
    assert stored["tokenizer_name"] == "mini-MSVR3P2-256"
    loaded = load(folder, generator.tokenizer, way)
    assert loaded.classes == tuple(DIGITS)
    assert loaded.sampling == OWN
    assert loaded.about() == generator.about()


def test_sampling_is_the_models_own_unless_settings_are_given(saved: tuple[Generator, Path], tmp_path: Path) -> None:
    generator, _ = saved
    own = generator.sample([1, 2], seed=3).tokens
    assert torch.equal(own, generator.sample([1, 2], seed=3, **OWN_VALUES).tokens)
    generator.sampling = Sampling()
    released = generator.sample([1, 2], seed=3).tokens
    assert torch.equal(released, generator.sample([1, 2], seed=3, **RELEASED).tokens)
    assert not torch.equal(own, released)
    generator.sampling = OWN
    other = generator.sample([1, 2], seed=3, guidance=0.0).tokens
    assert torch.equal(other, generator.sample([1, 2], seed=3, **{**OWN_VALUES, "guidance": 0.0}).tokens)
    export_samples(generator, [1], tmp_path / "samples")
    settings = read_json(tmp_path / "samples" / "samples.json")
    assert (settings["guidance"], settings["temperature"]) == (1.5, [1.0, 0.9, 0.8])


def test_a_generator_without_settings_of_its_own_has_those_of_the_release() -> None:
    assert build("folded").settings() == RELEASED


def test_the_command_line_samples_by_the_folders_own_settings(saved: tuple[Generator, Path], tmp_path: Path) -> None:
    generator, folder = saved
    options = {
        "generator_weights": str(folder / "generator"),
        "tokenizer_weights": str(folder / "tokenizer"),
        "number": 3,
        "device": "cpu",
        "batch_size": 3,
    }
    run(SampleOptions(output=tmp_path / "own", **options))
    export_samples(generator, [0, 1, 2], tmp_path / "expected", **OWN_VALUES)
    run(SampleOptions(output=tmp_path / "given", guidance=0.0, temperature=(1.0,), **options))
    names = ("000000.png", "000001.png", "000002.png")
    own, expected, given = (
        [(tmp_path / part / name).read_bytes() for name in names] for part in ("own", "expected", "given")
    )
    assert own == expected
    assert given != own
    assert read_json(tmp_path / "given" / "samples.json")["top_k"] == 20


def test_names_and_folders_are_not_mixed_on_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(imagefolder.InputError, match="go with --generator"):
        run(SampleOptions(output=tmp_path, tokenizer="mini-MSVR3P2-256", number=1))


@pytest.mark.parametrize("way", ["by name", "by folder"])
def test_another_tokenizer_is_refused_by_both_names(saved: tuple[Generator, Path], way: str) -> None:
    _, folder = saved
    other = imagefolder.load_tokenizer("mini-MSVR3P2-256", **SHAPE)
    theirs, ours = file_sha256(folder / "tokenizer" / "model.safetensors"), native_sha256(other)
    other.config = imagefolder.TokenizerConfig(**{**vars(other.config), "name": "other"})
    message = (
        f"trained on the tokens of mini-MSVR3P2-256 with weights {theirs[:12]}, not of other with weights {ours[:12]}"
    )
    with pytest.raises(imagefolder.InputError, match=f"generator: {message}; load the tokenizer"):
        load(folder, other, way)


def test_the_own_tokenizer_is_known_in_any_precision(saved: tuple[Generator, Path]) -> None:
    generator, folder = saved
    half = load(folder, imagefolder.load(folder / "tokenizer", dtype=torch.bfloat16), "by folder", dtype=torch.bfloat16)
    assert half.about() == generator.about()
    other = imagefolder.load_tokenizer("mini-MSVR3P2-256", dtype=torch.bfloat16, **SHAPE)
    with pytest.raises(imagefolder.InputError, match="load the tokenizer it was trained with"):
        load(folder, other, "by folder")


def test_a_tokenizer_cast_by_hand_is_not_refused(saved: tuple[Generator, Path]) -> None:
    generator, folder = saved
    assert load(folder, generator.tokenizer.to(torch.bfloat16), "by name").classes == tuple(DIGITS)


def test_checkpoints_without_these_entries_accept_any_tokenizer(saved: tuple[Generator, Path]) -> None:
    generator, folder = saved
    other = imagefolder.load_tokenizer("mini-MSVR3P2-256", **SHAPE)
    save_checkpoint(folder / "generator", generator.transformer, generator.config)
    loaded = load(folder, other, "by name")
    assert loaded.classes is None
    assert loaded.settings() == RELEASED


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tokenizer_sha256": 7}, "tokenizer_sha256 7 is not a sha256"),
        ({"classes": ["a", "b"]}, "classes must be the 10 names"),
        ({"classes": list(range(10))}, "classes must be the 10 names"),
        ({"sampling": {"guidance": -1}}, "sampling: guidance -1: must be"),
        ({"sampling": {"temperature": [1.0, 1.0]}}, "sampling: 2 temperatures for the 3 scales"),
        ({"sampling": {"speed": 1}}, "sampling must hold guidance, temperature, top_k, top_p"),
        ({"sampling": [1]}, "sampling must hold"),
    ],
)
def test_impossible_entries_are_refused(saved: tuple[Generator, Path], values: dict[str, Any], message: str) -> None:
    generator, folder = saved
    change_document(folder, **values)
    with pytest.raises(imagefolder.InputError, match=f"generator: {message}"):
        load(folder, generator.tokenizer, "by folder")
