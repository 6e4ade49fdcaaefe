"""A training that was stopped goes on as if it had not been; one that diverged stops and keeps its state."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import imagefolder.training.generator
import imagefolder.training.loop
import imagefolder.training.tokenizer
from imagefolder.config import GeneratorConfig, LossConfig, TokenizerConfig, TrainingConfig
from imagefolder.data.images import ArrayImages
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.tokenizer.semantic import Teacher
from imagefolder.training.generator import TokenImages, train_generator
from imagefolder.training.loop import Task, TrainingFailed, adamw, fit
from imagefolder.training.tokenizer import train_tokenizer


class Interrupted(Exception):
    """What a kill, a full disk or a lost machine is to a training."""


@pytest.fixture
def interrupt_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Stop both trainings when they ask for the batch of a step; None lets them run to the end."""
    original = imagefolder.training.tokenizer.training_batches

    def until(limit: int | None) -> None:
        def batches(images: object, batch_size: int, seed: int, start: int, stop: int) -> Iterator[tuple]:
            for step, batch in enumerate(original(images, batch_size, seed, start, stop), start):
                if step == limit:
                    raise Interrupted
                yield batch

        for module in (imagefolder.training.tokenizer, imagefolder.training.generator):
            monkeypatch.setattr(module, "training_batches", batches)

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
    tokens = TokenImages(
        torch.randint(64, (50, 2, 14), generator=generator), torch.randint(10, (50,), generator=generator)
    )
    config = replace(training, weight_decay=0.05, schedule="linear")

    def train(folder: Path) -> None:
        train_generator(generator_config, config, tokenizer, tokens, folder, 3, "tiny", {})

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


class _Line(Task):
    """One weight drawn towards zero; its losses are what the test says."""

    def __init__(self, training: TrainingConfig, losses: Callable[[int], dict[str, float]]) -> None:
        self.model = nn.Linear(1, 1, bias=False)
        self.frozen, self.modules = [], {}
        self.optimizers = [adamw(self.model.parameters(), training, 0.1, 0.0)]
        self.losses, self.steps, self.rates = losses, training.steps, []

    def step(self, batch: tuple[Tensor, Tensor], progress: float, accelerator: object) -> dict[str, Tensor]:
        self.rates.append(self.optimizers[0].param_groups[0]["lr"])
        self.model.weight.sum().abs().backward()
        self.optimizers[0].step()
        self.optimizers[0].zero_grad()
        return {name: torch.tensor(value) for name, value in self.losses(round(progress * self.steps)).items()}


def nothing(start: int, stop: int) -> Iterable[tuple[Tensor, Tensor]]:
    return ((torch.zeros(1), torch.zeros(1)) for _ in range(start, stop))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_stops_the_training_and_keeps_the_state(tmp_path: Path, value: float) -> None:
    training = TrainingConfig(steps=100, batch_size=1, checkpoint_every=30)
    task = _Line(training, lambda step: {"fine": 1.0, "codebook": value if step >= 35 else 1.0})
    with pytest.raises(TrainingFailed, match="codebook") as caught:
        fit(task, training, nothing, tmp_path, 0, "line")
    assert "fine" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["step"] == 30
    assert all(torch.isfinite(weight).all() for weight in state["model"].values())


def test_learning_rates_of_a_continued_training_follow_the_schedule(tmp_path: Path) -> None:
    training = TrainingConfig(steps=40, batch_size=1, checkpoint_every=30)
    whole = _Line(training, lambda step: {"loss": 1.0})
    fit(whole, training, nothing, tmp_path / "whole", 0, "line")
    failing = _Line(training, lambda step: {"loss": float("nan") if step > 35 else 1.0})
    with pytest.raises(TrainingFailed):
        fit(failing, training, nothing, tmp_path / "stopped", 0, "line")
    continued = _Line(training, lambda step: {"loss": 1.0})
    fit(continued, training, nothing, tmp_path / "stopped", 0, "line")
    assert continued.rates == whole.rates[30:]
    assert max(whole.rates) == pytest.approx(0.1, rel=0.02)
    assert torch.equal(continued.model.weight, whole.model.weight)
