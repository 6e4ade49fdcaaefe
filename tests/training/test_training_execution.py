"""The way a training runs changes no number: in pieces, with recomputed activations, compiled, from images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from encoding import encoded
from safetensors.torch import load_file
from stepping import take_step
from timm.models.vision_transformer import Block
from tiny import RUN
from torch import nn

import imagefolder.training.loop
import imagefolder.training.tokenizer as tokenizer_training
from imagefolder.config import Execution, GeneratorConfig, LossConfig, TokenizerConfig, TrainingConfig
from imagefolder.data.images import ArrayImages
from imagefolder.generator.transformer import Layer
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.tokenizer.semantic import Teacher
from imagefolder.training.generator import train_generator
from imagefolder.training.tokenizer import TokenizerTask, new_tokenizer, train_tokenizer


@pytest.fixture(autouse=True)
def every_step_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagefolder.training.loop, "LOG_EVERY", 1)


@pytest.fixture
def images(train_digits: ArrayImages) -> ArrayImages:
    return ArrayImages(train_digits.images[:48], train_digits.labels[:48])


def curve(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]


def assert_close(folder: Path, expected: Path) -> None:
    for point, other in zip(curve(folder), curve(expected), strict=True):
        assert point == pytest.approx(other, rel=1e-3, abs=1e-6)


def test_generator_in_pieces_trains_as_on_the_whole_batch(
    tmp_path: Path,
    generator_config: GeneratorConfig,
    training: TrainingConfig,
    tokenizer: Tokenizer,
    images: ArrayImages,
) -> None:
    config = replace(generator_config, drop_path=0.0, class_dropout=0.4)
    tokens = encoded(tokenizer, images)
    for name, micro_batch, batch_size in (("whole", 0, 8), ("halves", 4, 8), ("nine", 0, 9), ("threes", 3, 9)):
        settings, execution = replace(training, batch_size=batch_size), Execution(micro_batch=micro_batch)
        options = {"tokenizer": tokenizer, "training": settings, "execution": execution}
        train_generator(config, tokens, tmp_path / name, **options, **RUN)
    assert_close(tmp_path / "halves", tmp_path / "whole")
    assert_close(tmp_path / "threes", tmp_path / "nine")


class Counted:
    """Counts forward passes of a kind of module in training mode while entered."""

    def __init__(self, kind: type[nn.Module]) -> None:
        self.kind, self.runs = kind, 0

    def __enter__(self) -> Counted:
        self.handle = nn.modules.module.register_module_forward_pre_hook(self.count)
        return self

    def __exit__(self, *_: object) -> None:
        self.handle.remove()

    def count(self, module: nn.Module, inputs: object) -> None:
        self.runs += isinstance(module, self.kind) and module.training


def test_recomputed_activations_train_the_tokenizer_bit_identically(
    tmp_path: Path,
    tokenizer_config: TokenizerConfig,
    training: TrainingConfig,
    whole_objective: LossConfig,
    teacher: Teacher,
    images: ArrayImages,
) -> None:
    """With stochastic depth, whose draws must be repeated. The hooks see the first of two blocks on each side."""
    config, runs = replace(tokenizer_config, depth=2, drop_path=0.5), []
    training = replace(training, steps=4)
    for name, recompute in (("plain", False), ("recomputed", True)):
        with Counted(Block) as counted:
            options = {"training": training, "loss": whole_objective, "teacher": teacher}
            execution = Execution(activation_checkpointing=recompute)
            train_tokenizer(config, images, tmp_path / name, **options, execution=execution, **RUN)
        runs.append(counted.runs)
    assert runs == [2 * 4, 2 * 2 * 4]
    plain, recomputed = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "recomputed"))
    assert all(torch.equal(plain[key], recomputed[key]) for key in plain)


def test_recomputed_activations_train_the_generator_bit_identically(
    tmp_path: Path,
    generator_config: GeneratorConfig,
    training: TrainingConfig,
    tokenizer: Tokenizer,
    images: ArrayImages,
) -> None:
    config, runs = replace(generator_config, depth=2, drop_path=0.5), []
    training, tokens = replace(training, steps=4), encoded(tokenizer, images)
    for name, recompute in (("plain", False), ("recomputed", True)):
        execution = Execution(activation_checkpointing=recompute)
        with Counted(Layer) as counted:
            options = {"tokenizer": tokenizer, "training": training, "execution": execution}
            train_generator(config, tokens, tmp_path / name, **options, **RUN)
        runs.append(counted.runs)
    assert runs == [2 * 4, 2 * 2 * 4]
    plain, recomputed = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "recomputed"))
    assert all(torch.equal(plain[key], recomputed[key]) for key in plain)


@pytest.mark.slow
def test_compiled_models_train_the_same(
    tmp_path: Path,
    tokenizer_config: TokenizerConfig,
    generator_config: GeneratorConfig,
    training: TrainingConfig,
    whole_objective: LossConfig,
    tokenizer: Tokenizer,
    teacher: Teacher,
    images: ArrayImages,
) -> None:
    """Without stochastic depth, which the compiler draws differently. The names of the weights stay the same too."""
    tokens = encoded(tokenizer, images)
    config, shape = replace(tokenizer_config, depth=2, drop_path=0.0), replace(generator_config, drop_path=0.0)
    for name, compiled in (("plain", False), ("compiled", True)):
        execution = Execution(compile=compiled, activation_checkpointing=True)
        options, folder = {"training": training, "execution": execution, **RUN}, tmp_path / name
        train_tokenizer(config, images, folder / "tokenizer", loss=whole_objective, teacher=teacher, **options)
        train_generator(shape, tokens, folder / "generator", tokenizer=tokenizer, **options)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2
    for kind in ("tokenizer", "generator"):
        assert_close(tmp_path / "compiled" / kind, tmp_path / "plain" / kind)
        plain, compiled = (load_file(tmp_path / name / kind / "model.safetensors") for name in ("plain", "compiled"))
        assert plain.keys() == compiled.keys()


def test_images_are_encoded_on_the_fly(
    tmp_path: Path,
    generator_config: GeneratorConfig,
    training: TrainingConfig,
    tokenizer: Tokenizer,
    images: ArrayImages,
) -> None:
    tokens = encoded(tokenizer, images)
    for name, data in (("tokens", tokens), ("images", images)):
        train_generator(generator_config, data, tmp_path / name, tokenizer=tokenizer, training=training, **RUN)
    ours, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("images", "tokens"))
    assert all(torch.equal(ours[key], expected[key]) for key in expected)


def test_the_discriminator_computes_in_the_training_precision_and_its_losses_in_float32(
    tokenizer_config: TokenizerConfig, training: TrainingConfig, whole_objective: LossConfig, images: ArrayImages
) -> None:
    task = TokenizerTask(new_tokenizer(tokenizer_config), training, whole_objective, teacher=None)
    seen: list[torch.dtype] = []
    task.discriminator[-1].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    half = Accelerator(mixed_precision="bf16")
    losses = take_step(task, (images.images[:4], images.labels[:4]), number=8, accelerator=half)
    assert seen == [torch.bfloat16] * 3
    assert {value.dtype for value in losses.values()} == {torch.float32}
    assert all(torch.isfinite(value) for value in losses.values())


def test_every_loss_of_a_bfloat16_training_is_computed_from_float32(
    tokenizer_config: TokenizerConfig,
    training: TrainingConfig,
    whole_objective: LossConfig,
    teacher: Teacher,
    images: ArrayImages,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names, seen = ("semantic_loss", "adversarial_loss", "discriminator_loss"), dict[str, set[torch.dtype]]()
    for name in names:
        original = getattr(tokenizer_training, name)

        def noting(*values: Any, name: str = name, original: Any = original, **options: Any) -> torch.Tensor:
            seen[name] = {value.dtype for value in values if isinstance(value, torch.Tensor)}
            return original(*values, **options)

        monkeypatch.setattr(tokenizer_training, name, noting)
    model, projected = new_tokenizer(tokenizer_config), set[torch.dtype]()
    model.quant_conv.register_forward_hook(lambda module, inputs, output: projected.add(output.dtype))
    task = TokenizerTask(model, training, whole_objective, teacher=teacher)
    half = Accelerator(mixed_precision="bf16")
    losses = take_step(task, (images.images[:8], images.labels[:8]), number=8, accelerator=half)
    assert projected == {torch.bfloat16}
    assert seen == {name: {torch.float32} for name in names}
    assert {value.dtype for value in losses.values()} == {torch.float32}
    assert all(torch.isfinite(value) for value in losses.values())
    assert {value.dtype for value in model.parameters()} == {torch.float32}


def test_a_discriminator_on_features_of_a_small_network(
    tokenizer_config: TokenizerConfig, training: TrainingConfig, teacher: Teacher, images: ArrayImages
) -> None:
    loss = LossConfig(perceptual=0.0, discriminator="dino", adversarial_start=0.0)
    task = TokenizerTask(new_tokenizer(tokenizer_config), training, loss, teacher=teacher, features=teacher.vit)
    assert len(task.discriminator.heads) == 2  # before and after its only block
    before = [value.clone() for value in teacher.parameters()]
    losses = take_step(task, (images.images[:8], images.labels[:8]), number=8)
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(torch.equal(value, now) for value, now in zip(before, teacher.parameters(), strict=True))
