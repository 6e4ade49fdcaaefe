"""Trials: batches that grow to the whole one or stop before it, and steps that write nothing."""

from __future__ import annotations

import pytest
import torch

import imagefolder.training.trial as trial
from imagefolder.config import Execution, LossConfig, TokenizerConfig, TrainingConfig
from imagefolder.data.images import ArrayImages
from imagefolder.tokenizer.semantic import Teacher
from imagefolder.training.tokenizer import TokenizerTask, new_tokenizer
from imagefolder.training.trial import Trial, measure

CPU = torch.device("cpu")


def test_batches_grow_to_the_whole_one() -> None:
    sizes: list[int] = []
    measure(sizes.append, 20, 1, CPU)
    assert list(dict.fromkeys(sizes)) == [2, 8, 20]
    assert sizes.count(20) <= trial.MOST_TIMES


def test_batches_stay_small_if_larger_ones_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "free_memory", lambda device: 0)
    kept: list[torch.Tensor] = []
    found = measure(lambda size: kept.append(torch.ones(size, 2**22)), 200, 1e9, CPU)
    assert {len(tensor) for tensor in kept} == {2}
    assert found.seconds > 0
    assert found.memory > 200 * 2**24  # as much as a whole batch would take


def test_slow_work_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "MOST_SECONDS", 0.0)
    sizes: list[int] = []
    measure(sizes.append, 20, 1e9, CPU)
    assert sizes == [2]


@pytest.mark.parametrize("micro_batch", [0, 3])
@pytest.mark.parametrize("discriminator", ["patch", "dino"])
def test_steps_with_every_term_on_batches_of_any_size(
    tokenizer_config: TokenizerConfig,
    training: TrainingConfig,
    teacher: Teacher,
    train_digits: ArrayImages,
    discriminator: str,
    micro_batch: int,
) -> None:
    loss = LossConfig(perceptual=0.0, discriminator=discriminator, adversarial_start=0.5)  # pyright: ignore[reportArgumentType] (either literal)
    model = new_tokenizer(tokenizer_config)
    task = TokenizerTask(model, training, loss, teacher=teacher, features=teacher.vit)
    before = [value.clone() for value in model.parameters()]
    tried = Trial(task, Execution(micro_batch=micro_batch))
    batch = train_digits.images[:5], train_digits.labels[:5]
    for number in (0, training.steps - 1):
        assert tried.measure(batch, number, 1).seconds > 0
    assert all(torch.isfinite(value).all() for value in model.parameters())
    assert any(not torch.equal(value, now) for value, now in zip(before, model.parameters(), strict=True))
