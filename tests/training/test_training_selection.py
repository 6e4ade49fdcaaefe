"""Evaluations during training: the best weights are kept, and the training itself is unaffected."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file
from tiny import RUN

from imagefolder.config import GeneratorConfig, TrainingConfig
from imagefolder.data.images import ArrayImages
from imagefolder.generator.model import Generator
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.training.generator import train_generator
from imagefolder.training.sanity import TrainingFailed

Evaluate = Callable[[Generator], float] | None
Train = Callable[[Path, Evaluate], dict[str, torch.Tensor]]


@pytest.fixture
def select_by() -> Literal["averaged", "raw"]:
    return "averaged"


@pytest.fixture
def train(
    generator_config: GeneratorConfig,
    training: TrainingConfig,
    tokenizer: Tokenizer,
    select_by: Literal["averaged", "raw"],
) -> Train:
    """Train for 8 steps into a folder, evaluating every 2; returns the written weights."""
    draws = torch.Generator().manual_seed(0)
    tokens = ArrayImages(torch.randint(64, (50, 2, 14), generator=draws), torch.randint(10, (50,), generator=draws))
    config = replace(training, evaluate_every=2, select_by=select_by)
    shape = replace(generator_config, depth=2, drop_path=0.5)  # training differs from evaluation

    def run(folder: Path, evaluate: Evaluate) -> dict[str, torch.Tensor]:
        options = {"tokenizer": tokenizer, "training": config, "evaluate": evaluate}
        train_generator(shape, tokens, folder, **options, **RUN)
        return load_file(folder / "model.safetensors")

    return run


class Values:
    """Evaluates to the given values in turn, records the weights it sees, and draws random numbers."""

    def __init__(self, *values: float) -> None:
        self.values, self.seen = list(values), []

    def __call__(self, generator: Generator) -> float:
        assert not any(module.training for module in generator.modules())
        self.seen.append({name: value.clone() for name, value in generator.transformer.state_dict().items()})
        torch.manual_seed(99)
        torch.rand(7)
        return self.values.pop(0)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def about(folder: Path) -> dict[str, object]:
    return json.loads((folder / "config.json").read_text())


def test_the_first_of_the_best_averaged_weights_is_kept(tmp_path: Path, train: Train) -> None:
    values = Values(3.0, 1.0, 1.0, 2.0)
    weights = train(tmp_path, values)
    assert same(weights, values.seen[1])
    assert not same(weights, values.seen[3])
    assert (about(tmp_path)["selected_step"], about(tmp_path)["selected_value"]) == (4, 1.0)
    points = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert {point["step"]: point["evaluation"] for point in points if "evaluation" in point} == {
        2: 3.0,
        4: 1.0,
        6: 1.0,
        8: 2.0,
    }
    assert "evaluation" not in about(tmp_path)["losses"]
    assert not list(tmp_path.glob("*.pt"))


@pytest.mark.parametrize("select_by", ["averaged", "raw"])
def test_evaluations_do_not_disturb_the_training(tmp_path: Path, train: Train) -> None:
    last_is_best = train(tmp_path / "evaluated", Values(4.0, 3.0, 2.0, 1.0))
    assert same(last_is_best, train(tmp_path / "not", None))
    assert about(tmp_path / "not")["selected_step"] == 8
    assert about(tmp_path / "not")["selected_value"] is None


def test_the_best_weights_so_far_survive_an_interruption(
    tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States are saved after steps 3 and 6. Resumed from 3, step 4 is selected again; resumed from 6, it is kept."""
    whole = train(tmp_path / "whole", Values(3.0, 1.0, 2.0, 2.0))
    for name, before, after in (("at 6", (3.0, 1.0), (1.0, 2.0, 2.0)), ("at 8", (3.0, 1.0, 2.0), (2.0,))):
        with pytest.raises(IndexError):  # the third and the fourth evaluation fail
            train(tmp_path / name, Values(*before))
        assert (tmp_path / name / "best.pt").is_file()
        assert same(train(tmp_path / name, Values(*after)), whole)
        assert (about(tmp_path / name)["selected_step"], about(tmp_path / name)["selected_value"]) == (4, 1.0)


def test_an_evaluation_that_is_not_finite_stops_the_training(tmp_path: Path, train: Train) -> None:
    with pytest.raises(TrainingFailed, match="evaluation not finite"):
        train(tmp_path, Values(3.0, float("nan")))


def test_without_an_interval_only_the_last_weights_are_evaluated(
    tmp_path: Path, generator_config: GeneratorConfig, training: TrainingConfig, tokenizer: Tokenizer
) -> None:
    tokens = ArrayImages(torch.zeros(8, 2, 14, dtype=torch.int64), torch.zeros(8, dtype=torch.int64))
    values = Values(5.0)
    options = {"tokenizer": tokenizer, "training": training, "evaluate": values}
    train_generator(generator_config, tokens, tmp_path, **options, **RUN)
    assert (about(tmp_path)["selected_step"], about(tmp_path)["selected_value"]) == (8, 5.0)
    assert same(load_file(tmp_path / "model.safetensors"), values.seen[0])
