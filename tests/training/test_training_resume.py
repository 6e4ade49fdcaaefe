"""An interrupted training resumes as if it had not been interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file
from tiny import RUN

import imagefolder.training.loop
from imagefolder.config import Execution, GeneratorConfig, LossConfig, TokenizerConfig, TrainingConfig
from imagefolder.data.images import ArrayImages, Images
from imagefolder.data.order import BatchPart
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.tokenizer.semantic import Teacher
from imagefolder.training.generator import train_generator
from imagefolder.training.tokenizer import train_tokenizer


class Interrupted(Exception):
    """Stands for a kill, a full disk or a lost machine."""


@pytest.fixture
def interrupt_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Interrupt a training when it asks for the batch of a step; None: let it finish."""
    original = imagefolder.training.loop.training_batches

    def until(limit: int | None) -> None:
        def batches(images: Images, batch_size: int, seed: int, start: int, stop: int, *, part: BatchPart) -> Iterator:
            fetched = iter(original(images, batch_size, seed, start, stop, part=part))  # draws a seed before any step

            def interrupted() -> Iterator:
                for number, batch in enumerate(fetched, start * part.pieces):
                    if limit is not None and number == limit * part.pieces:
                        raise Interrupted
                    yield batch

            return interrupted()

        monkeypatch.setattr(imagefolder.training.loop, "training_batches", batches)

    monkeypatch.setattr(imagefolder.training.loop, "LOG_EVERY", 1)
    return until


def interrupted_and_not(
    train: Callable[[Path], None], interrupt_after: Callable[[int | None], None], tmp_path: Path
) -> tuple[Path, Path]:
    """Folders of a training interrupted at steps 5 and 7 (saved at 3 and 6) and of an uninterrupted one."""
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


@pytest.mark.parametrize("precision", ["no", pytest.param("bf16", marks=pytest.mark.slow)])
def test_resumed_tokenizer_is_bit_identical(
    tmp_path: Path,
    interrupt_after: Callable[[int | None], None],
    tokenizer_config: TokenizerConfig,
    training: TrainingConfig,
    whole_objective: LossConfig,
    train_digits: ArrayImages,
    teacher: Teacher,
    precision: Literal["no", "bf16"],
) -> None:
    # Convolutions in bfloat16 take seconds each where it is emulated
    training = replace(training, precision=precision, batch_size=8 if precision == "no" else 4)

    def train(folder: Path) -> None:
        options = {"training": training, "loss": whole_objective, "teacher": teacher}
        train_tokenizer(tokenizer_config, train_digits, folder, **options, **RUN)

    stopped, whole = interrupted_and_not(train, interrupt_after, tmp_path)
    assert_same(stopped, whole)
    last = json.loads((stopped / "curve.jsonl").read_text().splitlines()[-1])
    assert {"adversarial", "discriminator", "semantic"} <= set(last)  # so every term took part


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_resumed_generator_is_bit_identical(
    tmp_path: Path,
    interrupt_after: Callable[[int | None], None],
    generator_config: GeneratorConfig,
    training: TrainingConfig,
    tokenizer: Tokenizer,
    precision: Literal["no", "bf16"],
) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = ArrayImages(
        torch.randint(64, (50, 2, 14), generator=generator), torch.randint(10, (50,), generator=generator)
    )
    config = replace(training, weight_decay=0.05, schedule="linear", precision=precision)

    def train(folder: Path) -> None:
        execution = Execution(micro_batch=4, activation_checkpointing=True)
        options = {"training": config, "execution": execution, **RUN}
        train_generator(generator_config, tokens, folder, tokenizer=tokenizer, **options)

    assert_same(*interrupted_and_not(train, interrupt_after, tmp_path))


def test_an_interruption_before_the_first_save_starts_over(
    tmp_path: Path,
    interrupt_after: Callable[[int | None], None],
    tokenizer_config: TokenizerConfig,
    training: TrainingConfig,
    train_digits: ArrayImages,
) -> None:
    loss = LossConfig(perceptual=0.0, adversarial=0.0)

    def train() -> None:
        options = {"training": training, "loss": loss, "teacher": None}
        train_tokenizer(tokenizer_config, train_digits, tmp_path, **options, **RUN)

    interrupt_after(2)
    with pytest.raises(Interrupted):
        train()
    interrupt_after(None)
    train()
    steps = [json.loads(line)["step"] for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 9))
