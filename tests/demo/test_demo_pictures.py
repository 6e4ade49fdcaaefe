"""What the demo finds and shows, without its page."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run
from PIL import Image

from imagefolder.data.pictures import read_image
from imagefolder.demo.__main__ import main
from imagefolder.demo.models import Model, describe, find_models, load_model
from imagefolder.demo.pictures import GAP, TITLE, growing, reconstructed, sheet, swapped
from imagefolder.errors import InputError

SIDE = 96  # of a picture of 32 pixels on a sheet


@pytest.fixture
def two(runs: Path) -> Model:
    return load_model(find_models([runs])[str(runs / "generators" / "var")])


@pytest.fixture
def one(runs: Path) -> Model:
    return load_model(find_models([runs])[str(runs / "tokenizers" / "one")])


@pytest.fixture
def pictures(tmp_path: Path, image_at: Callable[..., Path]) -> list[Image.Image]:
    return [Image.open(image_at(tmp_path / f"{i}.png", seed=i, size=(50, 40))) for i in range(2)]


def tile(picture: Image.Image, row: int, column: int) -> torch.Tensor:
    """A picture of a sheet at its own size, uint8 (3, 32, 32)."""
    left, top = column * (SIDE + GAP), TITLE + row * (SIDE + GAP)
    pixels = np.asarray(picture)[top : top + SIDE, left : left + SIDE]
    return torch.from_numpy(pixels[::3, ::3].copy()).movedim(-1, 0)


def pixels_of(image: torch.Tensor) -> torch.Tensor:
    return (127.5 * image + 128).clamp(0, 255).to(torch.uint8)


def test_generators_are_found_with_their_tokenizers_and_hidden_folders_are_not(runs: Path) -> None:
    found = find_models([runs])
    assert list(found) == [str(runs / "generators" / "var"), str(runs / "tokenizers" / "one")]
    assert found[str(runs / "generators" / "var")].tokenizer == runs / "tokenizers" / "two"
    alone = find_models([runs / "tokenizers" / "two"])  # the folder of a single model
    assert list(alone) == [str(runs / "tokenizers" / "two")]


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        ("nowhere", "nowhere: no such folder"),
        ("empty", "empty: no trained tokenizer; name a folder"),
        ("generators", r"no trained tokenizer; the tokenizer of .*var is not there either"),
    ],
)
def test_a_folder_without_models_is_named(runs: Path, tmp_path: Path, place: str, problem: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=problem):
        find_models([runs / place if place == "generators" else tmp_path / place])


def test_a_model_is_described(two: Model, one: Model) -> None:
    assert "32 px, 2 branches of 14 tokens on the scales 1 x 1, 2 x 2, 3 x 3" in describe(two)
    assert "14 positions, 10 classes" in describe(two)
    assert "one branch of 16 tokens" in describe(one)
    assert describe(one).endswith("no generator")


def test_samples_grow_scale_by_scale(two: Model) -> None:
    assert two.generator is not None
    steps = list(growing(two, 3, number=2, seed=5))
    assert [step.size for step in steps] == [(3 * SIDE + 2 * GAP, TITLE + 2 * SIDE + GAP)] * 3
    assert (tile(steps[0], 0, 1) == 255).all()
    assert torch.equal(tile(steps[0], 1, 0), tile(steps[2], 1, 0))
    samples = two.generator.sample([3, 3], seed=5)
    expected = two.tokenizer.decode_progressively(samples.tokens)
    for row in range(2):
        for scale in range(3):
            assert torch.equal(tile(steps[2], row, scale), pixels_of(expected[scale, row]))


def test_a_tokenizer_without_generator_has_no_samples(one: Model) -> None:
    with pytest.raises(InputError, match="no generator"):
        next(growing(one, 0))


def test_a_picture_is_cropped_and_reconstructed(two: Model, pictures: list[Image.Image]) -> None:
    shown = reconstructed(two, pictures[0])
    image = read_image(pictures[0], size=32)
    assert torch.equal(tile(shown, 0, 0), pixels_of(image))
    assert torch.equal(tile(shown, 0, 3), pixels_of(two.tokenizer.reconstruct(image[None])[0]))


def test_branches_are_swapped(two: Model, pictures: list[Image.Image]) -> None:
    tokens = two.tokenizer.encode(torch.stack([read_image(picture, size=32) for picture in pictures]))
    for branch in range(2):
        shown = swapped(two, *pictures, branch)
        mixed = tokens.clone()
        mixed[:, branch] = tokens.flip(0)[:, branch]
        expected = two.tokenizer.decode(mixed)
        for row in range(2):
            assert torch.equal(tile(shown, row, 2), pixels_of(expected[row]))
    assert not torch.equal(tile(shown, 0, 1), tile(shown, 0, 2))


def test_a_single_branch_cannot_be_swapped(one: Model, pictures: list[Image.Image]) -> None:
    with pytest.raises(InputError, match="one branch"):
        swapped(one, *pictures, 0)


def test_large_pictures_keep_their_size() -> None:
    assert sheet(torch.zeros(2, 1, 3, 128, 128), ["title"]).size == (128, TITLE + 2 * 128 + GAP)


def test_the_command_says_what_is_missing(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)  # how Python marks what cannot be imported
    assert run(main, "--runs", runs) == 2
    assert capsys.readouterr().err == "error: the demo needs gradio, which is not installed; run: pip install gradio\n"
    assert run(main, "--port", 0) == 2
    assert "--port must lie in 1..65535, not 0" in capsys.readouterr().err
