"""Miniature models on the digits, trained in seconds on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from accelerate.state import AcceleratorState
from tiny import TOKENIZER

from imagefolder.config import GeneratorConfig, LossConfig, TokenizerConfig, TrainingConfig
from imagefolder.data.digits import digits
from imagefolder.data.images import ArrayImages
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.tokenizer.semantic import Teacher, blank_teacher


@pytest.fixture(autouse=True)
def cpu_with_one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Only the CPU gives bit-identical results; one thread is fastest for models this small."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    AcceleratorState._reset_state(reset_partial_state=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def tokenizer_config() -> TokenizerConfig:
    return TOKENIZER


@pytest.fixture
def generator_config() -> GeneratorConfig:
    tokens = {name: getattr(TOKENIZER, name) for name in ("branches", "scales", "codebook_size", "code_dim")}
    return GeneratorConfig(name="tiny", depth=1, width=48, heads=2, num_classes=10, drop_path=0.1, **tokens)


@pytest.fixture
def tokenizer(tokenizer_config: TokenizerConfig) -> Tokenizer:
    torch.manual_seed(5)
    return Tokenizer(tokenizer_config).eval()


@pytest.fixture
def teacher(tokenizer_config: TokenizerConfig) -> Teacher:
    torch.manual_seed(6)
    return blank_teacher(replace(tokenizer_config, drop_path=0.0))


@pytest.fixture
def training() -> TrainingConfig:
    return TrainingConfig(steps=8, batch_size=8, learning_rate=1e-3, ema=0.9, checkpoint_every=3, clip=1.0)


@pytest.fixture
def whole_objective() -> LossConfig:
    """All terms except LPIPS, whose weights are not available offline; the discriminator joins at step 2 of 8."""
    return LossConfig(perceptual=0.0, adversarial_start=0.25, discriminator="patch", lecam=0.1)


@pytest.fixture(scope="session")
def train_digits() -> ArrayImages:
    return digits(32).train
