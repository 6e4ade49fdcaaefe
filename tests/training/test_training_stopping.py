"""A training that is asked to stop saves its state at that step, and the same call resumes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import RUN
from torch import Tensor

from imagefolder.config import GeneratorConfig, TrainingConfig
from imagefolder.data.images import ArrayImages, Key
from imagefolder.interruption import Stopped, clear_stop, request_stop, stop_requested
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.training.generator import train_generator


@pytest.fixture(autouse=True)
def no_request_left() -> Iterator[None]:
    yield
    clear_stop()


class Signalling(ArrayImages):
    """Sends SIGUSR1 to its own process while it fetches the batch of a step."""

    def __init__(self, tokens: Tensor, labels: Tensor, step: int) -> None:
        super().__init__(tokens, labels)
        self.left = step

    def __getitems__(self, keys: list[Key]) -> tuple[Tensor, Tensor]:
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGUSR1)
        self.left -= 1
        return super().__getitems__(keys)


@pytest.fixture
def handled() -> Iterator[None]:
    """SIGUSR1 requests a stop."""
    before = signal.signal(signal.SIGUSR1, lambda *_: request_stop())
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.usefixtures("handled")
def test_a_signal_stops_at_the_next_step_and_the_same_call_resumes(
    tmp_path: Path, generator_config: GeneratorConfig, training: TrainingConfig, tokenizer: Tokenizer
) -> None:
    draws = torch.Generator().manual_seed(0)
    data = torch.randint(64, (50, 2, 14), generator=draws), torch.randint(10, (50,), generator=draws)

    def train(folder: Path, tokens: ArrayImages) -> None:
        train_generator(generator_config, tokens, folder, tokenizer=tokenizer, training=training, **RUN)

    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    with pytest.raises(Stopped, match="tiny: stopped at step 5 of 8; the same command continues"):
        train(stopped, Signalling(*data, step=4))
    assert stop_requested()
    assert torch.load(stopped / "state.pt", weights_only=True)["step"] == 5
    assert not (stopped / "config.json").exists()
    clear_stop()
    train(stopped, ArrayImages(*data))
    train(whole, ArrayImages(*data))
    weights, expected = (load_file(folder / "model.safetensors") for folder in (stopped, whole))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert (stopped / "curve.jsonl").read_text() == (whole / "curve.jsonl").read_text()


def test_a_request_in_the_last_step_does_not_prevent_the_end(
    tmp_path: Path, generator_config: GeneratorConfig, training: TrainingConfig, tokenizer: Tokenizer
) -> None:
    tokens = ArrayImages(torch.zeros(8, 2, 14, dtype=torch.int64), torch.zeros(8, dtype=torch.int64))

    def evaluate(model: torch.nn.Module) -> float:
        request_stop()  # the only evaluation is that of the last step
        return 0.0

    options = {"tokenizer": tokenizer, "training": training, "evaluate": evaluate}
    train_generator(generator_config, tokens, tmp_path, **options, **RUN)
    assert json.loads((tmp_path / "config.json").read_text())["selected_step"] == training.steps
