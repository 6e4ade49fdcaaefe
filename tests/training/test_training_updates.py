"""What ends a step: clipping, the optimizer and the averages, against accelerate's and timm's."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate import Accelerator
from stepping import take_step
from timm.utils.model_ema import ModelEmaV3
from tiny import TOKENIZER

from imagefolder.config import LossConfig, TrainingConfig
from imagefolder.data.images import ArrayImages
from imagefolder.training.averages import Averages
from imagefolder.training.task import adamw, update
from imagefolder.training.tokenizer import TokenizerTask, new_tokenizer

TRAINING = TrainingConfig(steps=10, batch_size=4, clip=0.1, ema=0.9)


def test_averages_are_those_of_timm_bit_for_bit(train_digits: ArrayImages) -> None:
    torch.manual_seed(0)
    task = TokenizerTask(new_tokenizer(TOKENIZER), TRAINING, LossConfig(perceptual=0.0, adversarial=0.0), teacher=None)
    averages, expected = Averages(task.model, TRAINING.ema), ModelEmaV3(task.model, decay=TRAINING.ema)
    begun = copy.deepcopy(averages.module.state_dict())
    for number in range(3):
        take_step(task, (train_digits.images[:4], train_digits.labels[:4]), number=number)
        averages.update()
        expected.update(task.model)
    found, wanted = averages.module.state_dict(), expected.module.state_dict()
    assert found.keys() == wanted.keys()
    assert [name for name, value in found.items() if not torch.equal(value, wanted[name])] == []
    assert int(found["quantizer.branches.1.codebook.updates"]) == 3  # copied
    for name in ("quantizer.branches.0.codebook.hits", "decoder.to_pixels.weight"):
        assert not torch.equal(found[name], begun[name])
        assert not torch.equal(found[name], task.model.state_dict()[name])
    assert not averages.module.training


def test_averages_follow_a_model_that_is_loaded_or_moved() -> None:
    model = torch.nn.Linear(3, 2)
    averages = Averages(model, 0.5)
    start = copy.deepcopy(averages.module)
    model.load_state_dict({name: value + 2 for name, value in model.state_dict().items()})
    model.to("cpu").requires_grad_(False)
    averages.update()
    for ours, before in zip(averages.module.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(ours, before + 1)
    averages.module.load_state_dict(start.state_dict())
    averages.update()
    torch.testing.assert_close(averages.module.weight, start.weight + 1)


@pytest.mark.parametrize("clip", [0.0, 0.1, 1e6])
def test_gradients_are_clipped_as_accelerate_does_bit_for_bit(clip: float) -> None:
    results, accelerator = [], Accelerator(cpu=True)
    for clip_grad_norm in (None, accelerator.clip_grad_norm_):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3), torch.nn.Linear(3, 2))
        model[1].requires_grad_(False)
        optimizer = adamw(model.parameters(), TRAINING, rate=0.1, weight_decay=0.0)
        model(torch.randn(4, 5)).square().sum().backward()
        kept: list[torch.Tensor] = []
        optimizer.register_step_pre_hook(
            lambda optimizer, *_, kept=kept: kept.extend(
                p.grad.clone() for group in optimizer.param_groups for p in group["params"] if p.grad is not None
            )
        )
        if clip_grad_norm is None:
            update(optimizer, accelerator, clip=clip)
        else:
            if clip:
                clip_grad_norm(model.parameters(), clip)
            optimizer.step()
        results.append([*kept, *model.parameters()])
        assert len(kept) == 4
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))
    norm = torch.stack([gradient.norm() for gradient in results[0][:4]]).norm()
    assert (float(norm) == pytest.approx(0.1, rel=1e-4)) == (clip == 0.1)
