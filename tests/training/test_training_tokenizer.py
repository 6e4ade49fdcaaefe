"""Training of the tokenizer: it learns, the discriminator joins on time, the averaged weights are saved."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from stepping import take_step
from timm.layers.pos_embed import resample_abs_pos_embed
from tiny import RUN
from torch import Tensor

from imagefolder.checkpoints.native import read_about
from imagefolder.config import LossConfig, TokenizerConfig, TrainingConfig, from_dict
from imagefolder.data.images import ArrayImages, to_float
from imagefolder.tokenizer.losses import discriminator_loss
from imagefolder.tokenizer.semantic import Teacher
from imagefolder.training.loop import fit
from imagefolder.training.tokenizer import TokenizerTask, new_tokenizer, train_tokenizer
from imagefolder.zoo import TOKENIZERS


def curve(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]


def test_reconstructions_of_digits_improve_with_training(
    tmp_path: Path, tokenizer_config: TokenizerConfig, train_digits: ArrayImages, teacher: Teacher
) -> None:
    training = TrainingConfig(steps=100, batch_size=32, learning_rate=3e-3, warmup=0.1, clip=1.0, ema=0.9)
    loss = LossConfig(reconstruction=10.0, perceptual=0.0, adversarial=0.0)
    config = replace(tokenizer_config, quantizer_dropout=0.1)
    about = {"dataset": "digits", "code": {"imagefolder/tokenizer": "0" * 64, "versions": [1, 2.5, None, True]}}
    options = {"training": training, "loss": loss, "teacher": teacher, "seed": 0, "title": "tiny"}
    train_tokenizer(config, train_digits, tmp_path, **options, about=about)
    points = curve(tmp_path)
    assert [point["step"] for point in points] == [20, 40, 60, 80, 100]
    assert points[-1]["reconstruction"] < 0.8 * points[0]["reconstruction"]
    assert set(points[0]) == {"step", "reconstruction", "codebook", "commitment", "semantic"}

    stored = read_about(tmp_path)
    assert from_dict(TokenizerConfig, stored["config"], "test") == config
    assert {name: stored[name] for name in about} == about
    assert stored["seconds"] > 0
    assert stored["peak_memory_mib"] > 10
    assert stored["losses"] == {k: v for k, v in points[-1].items() if k != "step"}
    assert not (tmp_path / "state.pt").exists()


@pytest.fixture
def task(
    tokenizer_config: TokenizerConfig, training: TrainingConfig, whole_objective: LossConfig, teacher: Teacher
) -> TokenizerTask:
    torch.manual_seed(0)
    return TokenizerTask(new_tokenizer(tokenizer_config), training, whole_objective, teacher=teacher)


@pytest.fixture
def batch(train_digits: ArrayImages) -> tuple[Tensor, Tensor]:
    return train_digits.images[:8], train_digits.labels[:8]


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, value in after.items() if not torch.equal(before[name], value)}


def test_discriminator_does_not_learn_before_its_start_but_lecam_follows_its_logits(
    task: TokenizerTask, batch: tuple[Tensor, Tensor]
) -> None:
    weights = {name: value.detach().clone() for name, value in task.discriminator.named_parameters()}
    tokenizer = copy.deepcopy(task.model.state_dict())
    judge = copy.deepcopy(task.discriminator)
    shown: list[Tensor] = []
    task.model.register_forward_hook(lambda module, inputs, output: shown.append(output.images.detach()))
    losses = take_step(task, batch, number=1)
    assert set(losses) == {"reconstruction", "codebook", "commitment", "semantic"}
    assert not changed(weights, dict(task.discriminator.named_parameters()))
    assert changed(tokenizer, task.model.state_dict())
    with torch.no_grad():
        real, fake = judge(to_float(batch[0])).mean(), judge(shown[0]).mean()
    torch.testing.assert_close(task.lecam.real, 0.001 * real)
    torch.testing.assert_close(task.lecam.fake, 0.001 * fake)


def test_without_lecam_the_discriminator_is_not_run_before_its_start(
    tokenizer_config: TokenizerConfig,
    training: TrainingConfig,
    whole_objective: LossConfig,
    batch: tuple[Tensor, Tensor],
) -> None:
    loss = replace(whole_objective, lecam=0.0)
    task = TokenizerTask(new_tokenizer(tokenizer_config), training, loss, teacher=None)
    before = copy.deepcopy(task.discriminator.state_dict())
    take_step(task, batch, number=1)
    assert not changed(before, task.discriminator.state_dict())
    take_step(task, batch, number=2)
    assert changed(before, task.discriminator.state_dict())


def test_discriminator_learns_from_its_start(task: TokenizerTask, batch: tuple[Tensor, Tensor]) -> None:
    before = {name: copy.deepcopy(module.state_dict()) for name, module in task.modules.items()}
    losses = take_step(task, batch, number=2)
    assert {"adversarial", "adaptive_weight", "discriminator"} <= set(losses)
    assert all(math.isfinite(float(value)) for value in losses.values())
    assert 0 < float(losses["adaptive_weight"]) < 1e4
    after = {name: module.state_dict() for name, module in task.modules.items()}
    assert changed(before["lecam"], after["lecam"]) == {"real", "fake"}
    assert changed(before["discriminator"], after["discriminator"]) == set(after["discriminator"])


def test_discriminator_is_trained_only_on_its_own_loss(task: TokenizerTask, batch: tuple[Tensor, Tensor]) -> None:
    """The tokenizer's backward pass goes through the discriminator and must not leave gradients there."""
    task.training = replace(task.training, clip=0.0)
    before, lecam = copy.deepcopy(task.discriminator), copy.deepcopy(task.lecam)
    shown: list[Tensor] = []
    task.model.register_forward_hook(lambda module, inputs, output: shown.append(output.images.detach()))
    gradients: list[Tensor] = []
    parameters = list(task.discriminator.parameters())
    task.optimizers[1].step = lambda: gradients.extend(p.grad.clone() for p in parameters)
    take_step(task, batch, number=8)
    real, fake = before(to_float(batch[0])), before(shown[0])
    lecam.update(real.mean(), fake.mean())
    loss = discriminator_loss("hinge", real, fake) + task.loss.lecam * lecam(real, fake)
    for ours, expected in zip(gradients, torch.autograd.grad(loss, list(before.parameters())), strict=True):
        torch.testing.assert_close(ours, expected)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in parameters)


def test_teacher_is_frozen(task: TokenizerTask, teacher: Teacher, batch: tuple[Tensor, Tensor]) -> None:
    before = copy.deepcopy(teacher.state_dict())
    take_step(task, batch)
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not changed(before, teacher.state_dict())
    own = {id(p) for optimizer in task.optimizers for group in optimizer.param_groups for p in group["params"]}
    assert not own & {id(p) for p in teacher.parameters()}


def test_without_adversarial_weight_there_is_no_discriminator(
    tokenizer_config: TokenizerConfig, training: TrainingConfig, batch: tuple[Tensor, Tensor]
) -> None:
    loss = LossConfig(perceptual=0.0, adversarial=0.0)
    task = TokenizerTask(new_tokenizer(tokenizer_config), training, loss, teacher=None)
    assert task.modules == {}
    assert len(task.optimizers) == 1
    assert set(take_step(task, batch, number=8)) == {"reconstruction", "codebook", "commitment"}


def test_averaged_weights_are_returned_and_saved(
    tmp_path: Path, task: TokenizerTask, training: TrainingConfig, train_digits: ArrayImages
) -> None:
    averaged, summary = fit(task, train_digits, tmp_path, seed=0, title="tiny")
    raw, mean = task.model.state_dict(), averaged.state_dict()
    assert not averaged.training
    assert changed(raw, mean) >= {"quant_conv.weight", "decoder.to_pixels.weight"}
    gap = (raw["quant_conv.weight"] - mean["quant_conv.weight"]).abs().max()
    assert 0 < float(gap) < 0.1
    assert set(summary) == {"seconds", "losses", "peak_memory_mib", "selected_step", "selected_value"}
    assert (summary["selected_step"], summary["selected_value"]) == (training.steps, None)


def test_weights_are_averaged_with_the_same_decay_from_the_first_step_on(
    tmp_path: Path, task: TokenizerTask, training: TrainingConfig, train_digits: ArrayImages
) -> None:
    weights = [task.model.quant_conv.weight.detach().clone()]
    step = task.step
    task.step = lambda *arguments: (
        step(*arguments),
        weights.append(task.tokenizer.quant_conv.weight.detach().clone()),
    )[0]
    task.training = replace(training, ema=0.75)
    averaged, _ = fit(task, train_digits, tmp_path, seed=0, title="tiny")
    expected = weights[0]
    for after in weights[1:]:
        expected = 0.75 * expected + 0.25 * after
    assert len(weights) == 1 + training.steps
    torch.testing.assert_close(averaged.quant_conv.weight, expected)


def test_saved_weights_are_the_averaged_ones(
    tmp_path: Path, tokenizer_config: TokenizerConfig, training: TrainingConfig, train_digits: ArrayImages
) -> None:
    """An average with decay 0 is the raw model: trainings with and without averaging must save different weights."""
    loss = LossConfig(perceptual=0.0, adversarial=0.0)
    for decay in (0.0, 0.9):
        config = replace(training, ema=decay)
        options = {"training": config, "loss": loss, "teacher": None}
        train_tokenizer(tokenizer_config, train_digits, tmp_path / str(decay), **options, **RUN)
    raw, mean = (load_file(tmp_path / decay / "model.safetensors") for decay in ("0.0", "0.9"))
    assert "quant_conv.weight" in changed(raw, mean)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    tmp_path: Path, tokenizer_config: TokenizerConfig, train_digits: ArrayImages
) -> None:
    training, loss = TrainingConfig(steps=2, batch_size=4), LossConfig(perceptual=0.0, adversarial=0.0)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.rand(seed * 7 + len(name))  # earlier draws must not matter
        options = {"training": training, "loss": loss, "teacher": None, "seed": seed, "title": name, "about": {}}
        train_tokenizer(tokenizer_config, train_digits, tmp_path / name, **options)
    a, b, c = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    assert not changed(a, b)
    assert changed(a, c)


@pytest.mark.parametrize("name", ["mini-MSVR3P2-256", "laptop-MSVR4P2-4096", "small-MSVR8P2-1024"])
def test_positions_of_latents_resemble_those_of_the_patches_below_them(name: str) -> None:
    config = TOKENIZERS[name]
    grid, side = config.image_size // config.patch_size, config.latent_side
    for vit in (new_tokenizer(config).encoder.vit, new_tokenizer(config).decoder.vit):
        positions = vit.pos_embed.detach()
        table = positions[0, vit.num_prefix_tokens :]
        assert float(table.square().mean().sqrt()) == pytest.approx(0.5, rel=1e-3)
        latents = resample_abs_pos_embed(positions, [side, side], num_prefix_tokens=vit.num_prefix_tokens)
        latents = latents[0, vit.num_prefix_tokens :, None]
        similarity, nearest = torch.cosine_similarity(latents, table, dim=-1).max(1)
        found = torch.stack([nearest // grid, nearest % grid], dim=1) + 0.5
        centres = torch.cartesian_prod(*[(torch.arange(side) + 0.5) * grid / side] * 2)
        assert (found - centres).abs().max() <= 1
        assert similarity.min() > 0.9  # of random positions: 0.5
