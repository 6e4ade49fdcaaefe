"""Training of the generator: encoding, learning, classes dropped for guidance."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from encoding import encoded
from stepping import take_step
from torch import Tensor, nn

from imagefolder.config import GeneratorConfig, TrainingConfig
from imagefolder.data.images import ArrayImages
from imagefolder.generator.model import Generator
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.training.generator import GeneratorTask, train_generator


@pytest.fixture
def tokens(tokenizer: Tokenizer, train_digits: ArrayImages) -> ArrayImages:
    images = ArrayImages(train_digits.images[:300], train_digits.labels[:300])
    return encoded(tokenizer, images)


def test_training_lowers_the_cross_entropy(
    tmp_path: Path, generator_config: GeneratorConfig, tokenizer: Tokenizer, tokens: ArrayImages
) -> None:
    training = TrainingConfig(steps=60, batch_size=32, learning_rate=3e-3, schedule="linear", warmup=0.1, clip=2.0)
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    options = {"tokenizer": tokenizer, "training": training, "seed": 0, "title": "tiny"}
    train_generator(generator_config, tokens, tmp_path, **options, about={"a": 1})
    points = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert [point["step"] for point in points] == [20, 40, 60]
    assert points[0]["cross_entropy"] < math.log(64) + 0.1  # chance
    assert points[-1]["cross_entropy"] < points[0]["cross_entropy"] - 0.3
    assert points[-1]["accuracy"] > 0.1
    assert json.loads((tmp_path / "config.json").read_text())["a"] == 1
    assert not (tmp_path / "state.pt").exists()
    assert all(torch.equal(before[name], value) for name, value in tokenizer.state_dict().items())


class _Spy(nn.Module):
    """Stands in for the transformer and records its labels."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.labels: list[Tensor] = []

    def forward(self, labels: Tensor, inputs: Tensor) -> Tensor:
        self.labels.append(labels)
        return self.logits.expand(len(labels), -1, -1, -1)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_class_is_dropped_for_a_share_of_the_images(
    generator_config: GeneratorConfig, tokenizer: Tokenizer, tokens: ArrayImages, share: float
) -> None:
    config = replace(generator_config, class_dropout=share)
    task = GeneratorTask(Generator(config, tokenizer), TrainingConfig(steps=1, batch_size=300))
    task.model = spy = _Spy(torch.zeros(1, 2, 14, 64))
    losses = take_step(task, (tokens.images, tokens.labels))
    dropped = spy.labels[0] == 10
    assert float(dropped.float().mean()) == pytest.approx(share, abs=0.08)
    assert torch.equal(spy.labels[0][~dropped], tokens.labels[~dropped])
    assert float(losses["cross_entropy"]) == pytest.approx(math.log(64), rel=1e-5)


def test_training_task_minimises_the_loss_of_the_public_forward_pass(
    generator_config: GeneratorConfig, tokenizer: Tokenizer, tokens: ArrayImages
) -> None:
    config = replace(generator_config, class_dropout=0.0, drop_path=0.0)
    generator = Generator(config, tokenizer)
    with torch.no_grad():
        logits = generator(tokens.labels, tokens.images)
        expected = nn.functional.cross_entropy(logits.movedim(-1, 1), tokens.images)
    task = GeneratorTask(generator, TrainingConfig(steps=1, batch_size=300))
    losses = take_step(task, (tokens.images, tokens.labels))
    assert float(losses["cross_entropy"]) == pytest.approx(float(expected), rel=1e-5)
