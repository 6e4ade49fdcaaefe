"""The parts of the objective that only some configurations have: binary codes, detail guidance, DINO, perturbation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor

from imagefolder.config import LossConfig, TokenizerConfig, TrainingConfig
from imagefolder.data.images import ArrayImages
from imagefolder.tokenizer.discriminator import DinoDiscriminator
from imagefolder.tokenizer.losses import semantic_loss
from imagefolder.tokenizer.semantic import Teacher, blank_teacher
from imagefolder.training.loop import Piece
from imagefolder.training.tokenizer import DINO, TokenizerTask, build_discriminator, new_tokenizer

PLAIN = LossConfig(perceptual=0.0, adversarial=0.0)


@pytest.fixture
def batch(train_digits: ArrayImages) -> tuple[Tensor, Tensor]:
    return train_digits.images[:8], train_digits.labels[:8]


def new_task(config: TokenizerConfig, training: TrainingConfig, loss: LossConfig, *teachers: Teacher) -> TokenizerTask:
    torch.manual_seed(0)
    return TokenizerTask(new_tokenizer(config, False), training, loss, *(teachers or (None,)))


def test_binary_codes_train_with_their_entropy(
    tokenizer_config: TokenizerConfig, training: TrainingConfig, batch: tuple[Tensor, Tensor]
) -> None:
    binary = replace(tokenizer_config, quantizer="bsq", code_dim=6)
    gradients = []
    for weight in (0.0, 5.0):
        task = new_task(binary, training, replace(PLAIN, entropy=weight))
        torch.manual_seed(1)
        seen: list[Tensor] = []
        convolution = task.model.quant_conv.weight
        task.optimizers[0].step = lambda seen=seen, convolution=convolution: seen.append(convolution.grad.clone())
        losses = task.step(batch, 0.0, Accelerator())
        assert set(losses) == {"reconstruction", "codebook", "commitment", "entropy"}
        gradients.append(seen[0])
    assert not torch.allclose(*gradients)


def test_detail_guidance_contrasts_the_first_branch_with_its_own_teacher(
    tokenizer_config: TokenizerConfig, training: TrainingConfig, teacher: Teacher, batch: tuple[Tensor, Tensor]
) -> None:
    torch.manual_seed(3)
    detail_teacher = blank_teacher(replace(tokenizer_config, width=48, drop_path=0.0))
    config = replace(tokenizer_config, detail_width=48)
    task = new_task(config, training, PLAIN, teacher, detail_teacher)
    losses = task.step(batch, 0.0, Accelerator())
    assert set(losses) == {"reconstruction", "codebook", "commitment", "semantic", "detail"}
    assert task.frozen == [teacher, detail_teacher]
    before = task.model.detail_projection.weight.detach().clone()
    task.step(batch, 0.5, Accelerator())
    assert not torch.equal(before, task.model.detail_projection.weight)


def test_semantic_scale_grows_geometrically_and_normalises_when_asked(
    tokenizer_config: TokenizerConfig, training: TrainingConfig, teacher: Teacher, batch: tuple[Tensor, Tensor]
) -> None:
    config = replace(tokenizer_config, quantizer_dropout=0.0, drop_path=0.0)
    loss = replace(PLAIN, semantic_normalise=True, semantic_scale=(1.0, 100.0))
    for progress, scale in ((0.0, 1.0), (0.5, 10.0), (1.0, 100.0)):
        task = new_task(config, training, loss, teacher)
        images = batch[0].float() / 127.5 - 1
        with torch.no_grad():
            task.model.train()
            projected, pooled = task.model(images, teacher(images)).semantic
        measured = task.step(batch, progress, Accelerator())["semantic"]
        torch.testing.assert_close(measured, semantic_loss(projected, pooled, scale, normalise=True))


def test_samples_touched_by_quantizer_dropout_are_left_out_of_the_contrastive_losses(
    tokenizer_config: TokenizerConfig, training: TrainingConfig, teacher: Teacher, batch: tuple[Tensor, Tensor]
) -> None:
    task = new_task(replace(tokenizer_config, drop_path=0.0, quantizer_dropout=0.5), training, PLAIN, teacher)
    images = batch[0].float() / 127.5 - 1
    task.model.train()
    kept = task.quantizer.draw_kept(8, images.device, torch.Generator().manual_seed(4))
    assert (kept[:4] < 3).any()
    with torch.no_grad():
        projected, pooled = task.model(images, teacher(images), kept=kept).semantic
    measured = task.step(batch, 0.0, Accelerator(), Piece(generator=torch.Generator().manual_seed(4)))["semantic"]
    torch.testing.assert_close(measured, semantic_loss(projected[4:], pooled[4:]))
    assert not torch.allclose(measured, semantic_loss(projected, pooled))


def test_where_all_samples_are_touched_there_is_nothing_to_contrast(
    tokenizer_config: TokenizerConfig, training: TrainingConfig, teacher: Teacher, batch: tuple[Tensor, Tensor]
) -> None:
    task = new_task(replace(tokenizer_config, quantizer_dropout=1.0), training, PLAIN, teacher)
    losses = task.step(batch, 0.0, Accelerator())
    assert float(losses["semantic"]) == 0
    assert all(torch.isfinite(weight).all() for weight in task.model.parameters())


def test_perturbation_falls_to_half_between_its_two_points(
    tokenizer_config: TokenizerConfig, training: TrainingConfig, batch: tuple[Tensor, Tensor]
) -> None:
    config = replace(
        tokenizer_config, branches=1, scales=(3,), semantic="none", perturbed_images=0.5, perturbation_depth=10
    )
    task = new_task(config, training, PLAIN)
    shares = []
    for progress in (0.0, 0.2, 0.4, 0.6, 1.0):
        task.step(batch, progress, Accelerator())
        shares.append(task.model.quantizer.branches[0].perturbed_images)
    assert shares == pytest.approx([0.5, 0.5, 0.375, 0.25, 0.25])


@pytest.mark.parametrize("kind", ["hinge", "vanilla", "non-saturating"])
def test_a_step_against_the_dino_discriminator(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tokenizer_config: TokenizerConfig,
    training: TrainingConfig,
    batch: tuple[Tensor, Tensor],
    kind: str,
) -> None:
    # The real loading path, on weights of the real shape
    torch.manual_seed(2)
    state = timm.create_model(DINO, num_classes=0).state_dict()
    save_file(state, tmp_path / f"{DINO}.safetensors")
    monkeypatch.setenv("IMAGEFOLDER_WEIGHTS", str(tmp_path))
    loss = LossConfig(perceptual=0.0, discriminator="dino", adversarial_kind=kind, adversarial_start=0.5)
    task = new_task(tokenizer_config, training, loss)
    assert isinstance(task.discriminator, DinoDiscriminator)
    few = (batch[0][:2], batch[1][:2])
    assert "discriminator" not in task.step(few, 0.4, Accelerator())
    heads = {name: value.clone() for name, value in task.discriminator.state_dict().items()}
    losses = task.step(few, 0.5, Accelerator())
    assert {"adversarial", "adaptive_weight", "discriminator"} <= set(losses)
    assert all(bool(torch.isfinite(value)) for value in losses.values())
    after = task.discriminator.state_dict()
    assert any(not torch.equal(value, after[name]) for name, value in heads.items())


def test_the_dino_discriminator_without_weights_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants as hub

    from imagefolder.errors import InputError

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"vit_small_patch16_224\.dino\.safetensors.*HF_HUB_OFFLINE"):
        build_discriminator(LossConfig(discriminator="dino"))
