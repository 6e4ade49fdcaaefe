"""What training must survive: losses that are not finite, and files cut short."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from imagefolder.config import GeneratorConfig, TrainingConfig
from imagefolder.generator.transformer import Transformer
from imagefolder.training.generator import _decay_groups
from imagefolder.training.loop import Task, TrainingFailed, adamw, fit

TRAINING = TrainingConfig(steps=100, batch_size=1, checkpoint_every=30)


class Line(Task):
    """One weight, whose loss becomes NaN at a step."""

    def __init__(self, nan_from: int | None = None) -> None:
        self.model = torch.nn.Linear(1, 1, bias=False)
        self.frozen, self.modules = [], {}
        self.optimizers = [adamw(self.model.parameters(), TRAINING, 0.1, 0.0)]
        self.nan_from = nan_from

    def step(self, batch: tuple[Tensor, ...], progress: float, accelerator: object) -> dict[str, Tensor]:
        bad = self.nan_from is not None and round(progress * TRAINING.steps) >= self.nan_from
        loss = self.model.weight.sum().abs() * (float("nan") if bad else 1.0)
        loss.backward()
        self.optimizers[0].step()
        self.optimizers[0].zero_grad()
        return {"loss": loss.detach()}


def batches(start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
    return ((torch.zeros(1), torch.zeros(1)) for _ in range(start, stop))


def test_a_state_with_a_loss_that_is_not_finite_is_never_saved(tmp_path: Path):
    # 25 lies after the log at 20 and before the save at 30
    with pytest.raises(TrainingFailed, match="loss not finite"):
        fit(Line(nan_from=25), TRAINING, batches, tmp_path, 0, "line")
    assert not (tmp_path / "state.pt").exists()


def test_a_curve_line_cut_short_does_not_keep_training_from_going_on(tmp_path: Path):
    with pytest.raises(TrainingFailed):
        fit(Line(nan_from=35), TRAINING, batches, tmp_path, 0, "line")
    assert (tmp_path / "state.pt").exists()
    with (tmp_path / "curve.jsonl").open("a") as curve:
        curve.write('{"step": 40, "lo')
    fit(Line(), TRAINING, batches, tmp_path, 0, "line")
    steps = [int(line.split(",")[0].split(":")[1]) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert steps[-1] == 100


def test_biases_and_embeddings_do_not_decay():
    config = GeneratorConfig(depth=1, width=48, heads=2, num_classes=10, scales=(1, 2), branches=1)
    model = Transformer(config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, plain = ({names[id(p)] for p in group["params"]} for group in _decay_groups(model, 0.05))
    assert decayed == {
        "input_embed.weight",
        "layers.0.attn.qkv.weight",
        "layers.0.attn.proj.weight",
        "layers.0.mlp.0.weight",
        "layers.0.mlp.2.weight",
        "layers.0.ada.weight",
        "head_ada.weight",
        "head.weight",
    }
    assert decayed | plain == set(names.values())
