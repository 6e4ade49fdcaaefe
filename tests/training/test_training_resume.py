"""A training that was stopped goes on as if it had not been."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import imagefolder.training.loop
from imagefolder.config import Execution, GeneratorConfig, LossConfig, TokenizerConfig, TrainingConfig
from imagefolder.data.images import ArrayImages
from imagefolder.data.order import Shard
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.tokenizer.semantic import Teacher
from imagefolder.training.generator import train_generator
from imagefolder.training.tokenizer import train_tokenizer


class Interrupted(Exception):
    """What a kill, a full disk or a lost machine is to a training."""


@pytest.fixture
def interrupt_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Stop a training when it asks for the batch of a step; None lets it run to the end."""
    original = imagefolder.training.loop.training_batches

    def until(limit: int | None) -> None:
        def batches(images: object, batch_size: int, seed: int, start: int, stop: int, shard: Shard) -> Iterator[tuple]:
            fetched = iter(original(images, batch_size, seed, start, stop, shard))  # draws a seed, before any step

            def interrupted() -> Iterator[tuple]:
                for number, batch in enumerate(fetched, start * shard.pieces):
                    if limit is not None and number == limit * shard.pieces:
                        raise Interrupted
                    yield batch

            return interrupted()

        monkeypatch.setattr(imagefolder.training.loop, "training_batches", batches)

    monkeypatch.setattr(imagefolder.training.loop, "LOG_EVERY", 1)
    return until


def interrupted_and_not(
    train: Callable[[Path], None], interrupt_after: Callable[[int | None], None], tmp_path: Path
) -> tuple[Path, Path]:
    """Folders of a training stopped at steps 5 and 7 (saved at 3 and 6) and of one never stopped."""
    for limit in (5, 7):
        interrupt_after(limit)
        with pytest.raises(Interrupted):
            train(tmp_path / "stopped")
        assert (tmp_path / "stopped" / "state.pt").is_file()
        assert not (tmp_path / "stopped" / "config.json").exists()
    interrupt_after(None)
    train(tmp_path / "stopped")
    train(tmp_path / "whole")
    return tmp_path / "stopped", tmp_path / "whole"


def assert_same(stopped: Path, whole: Path) -> None:
    weights, expected = (load_file(folder / "model.safetensors") for folder in (stopped, whole))
    assert weights.keys() == expected.keys()
    different = [name for name in weights if not torch.equal(weights[name], expected[name])]
    assert not different
    curves = [[json.loads(line) for line in (f / "curve.jsonl").read_text().splitlines()] for f in (stopped, whole)]
    assert [point["step"] for point in curves[0]] == list(range(1, 9))
    assert curves[0] == curves[1]
    assert not (stopped / "state.pt").exists()


def test_continued_tokenizer_is_bit_identical(
    tmp_path: Path,
    interrupt_after: Callable[[int | None], None],
    tokenizer_config: TokenizerConfig,
    training: TrainingConfig,
    whole_objective: LossConfig,
    train_digits: ArrayImages,
    teacher: Teacher,
) -> None:
    def train(folder: Path) -> None:
        train_tokenizer(tokenizer_config, training, whole_objective, train_digits, teacher, folder, 3, "tiny", {})

    stopped, whole = interrupted_and_not(train, interrupt_after, tmp_path)
    assert_same(stopped, whole)
    last = json.loads((stopped / "curve.jsonl").read_text().splitlines()[-1])
    assert {"adversarial", "discriminator", "semantic"} <= set(last)  # so everything took part


def test_continued_generator_is_bit_identical(
    tmp_path: Path,
    interrupt_after: Callable[[int | None], None],
    generator_config: GeneratorConfig,
    training: TrainingConfig,
    tokenizer: Tokenizer,
) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = ArrayImages(
        torch.randint(64, (50, 2, 14), generator=generator), torch.randint(10, (50,), generator=generator)
    )
    config = replace(training, weight_decay=0.05, schedule="linear")

    def train(folder: Path) -> None:
        execution = Execution(micro_batch=4, activation_checkpointing=True)
        train_generator(generator_config, config, tokenizer, tokens, folder, 3, "tiny", {}, execution)

    assert_same(*interrupted_and_not(train, interrupt_after, tmp_path))


def test_interrupt_before_the_first_save_starts_over(
    tmp_path: Path,
    interrupt_after: Callable[[int | None], None],
    tokenizer_config: TokenizerConfig,
    training: TrainingConfig,
    train_digits: ArrayImages,
) -> None:
    loss = LossConfig(perceptual=0.0, adversarial=0.0)

    def train() -> None:
        train_tokenizer(tokenizer_config, training, loss, train_digits, None, tmp_path, 3, "tiny", {})

    interrupt_after(2)
    with pytest.raises(Interrupted):
        train()
    interrupt_after(None)
    train()
    steps = [json.loads(line)["step"] for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 9))
