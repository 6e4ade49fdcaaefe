"""What needs a GPU: loss scaling in fp16, and the whole objective in bf16."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from tiny import RUN
from torch import Tensor

import imagefolder.training.loop
from imagefolder.config import Execution, GeneratorConfig, LossConfig, TokenizerConfig, TrainingConfig
from imagefolder.data.images import ArrayImages, Key
from imagefolder.interruption import Stopped, clear_stop, request_stop
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.tokenizer.semantic import Teacher
from imagefolder.training.generator import train_generator
from imagefolder.training.tokenizer import train_tokenizer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(autouse=True)
def cpu_with_one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Here the GPU stays visible."""
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(imagefolder.training.loop, "LOG_EVERY", 1)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class Stopping(ArrayImages):
    """Asks for a stop while it fetches the fifth batch."""

    fetched = 0

    def __getitems__(self, keys: list[Key]) -> tuple[Tensor, Tensor]:
        self.fetched += 1
        if self.fetched == 5:
            request_stop()
        return super().__getitems__(keys)


def curve(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]


def test_fp16_scales_its_loss_and_resumes_with_the_scale(
    tmp_path: Path, generator_config: GeneratorConfig, training: TrainingConfig, tokenizer: Tokenizer
) -> None:
    draws = torch.Generator().manual_seed(0)
    data = torch.randint(64, (50, 2, 14), generator=draws), torch.randint(10, (50,), generator=draws)
    half, tokenizer = replace(training, precision="fp16"), tokenizer.cuda()

    def train(name: str, config: TrainingConfig, tokens: ArrayImages) -> list[dict[str, float]]:
        train_generator(generator_config, tokens, tmp_path / name, tokenizer=tokenizer, training=config, **RUN)
        return curve(tmp_path / name)

    whole, full = train("whole", half, ArrayImages(*data)), train("full", training, ArrayImages(*data))
    with pytest.raises(Stopped):
        train("stopped", half, Stopping(*data))
    clear_stop()
    state = torch.load(tmp_path / "stopped" / "state.pt", weights_only=True)
    assert state["scaler"]["scale"] >= 1
    for points in (train("stopped", half, ArrayImages(*data)), full):
        for point, other in zip(points, whole, strict=True):
            assert point["cross_entropy"] == pytest.approx(other["cross_entropy"], rel=2e-2)


def test_tokenizer_trains_in_bf16_with_everything(
    tmp_path: Path,
    tokenizer_config: TokenizerConfig,
    training: TrainingConfig,
    whole_objective: LossConfig,
    teacher: Teacher,
    train_digits: ArrayImages,
) -> None:
    config, drawn = replace(training, precision="bf16"), replace(tokenizer_config, drop_path=0.0)
    execution = Execution(micro_batch=4, activation_checkpointing=True)
    for name, settings in (("bf16", config), ("float32", training)):
        options = {"training": settings, "loss": whole_objective, "teacher": teacher, "execution": execution, **RUN}
        options["evaluate"] = lambda model: float(model.quant_conv.weight.sum())
        train_tokenizer(drawn, train_digits, tmp_path / name, **options)
    for point, other in zip(curve(tmp_path / "bf16"), curve(tmp_path / "float32"), strict=True):
        assert point.keys() == other.keys()
        assert point["reconstruction"] == pytest.approx(other["reconstruction"], rel=5e-2)
    assert {"adversarial", "semantic", "discriminator", "evaluation"} <= point.keys()
