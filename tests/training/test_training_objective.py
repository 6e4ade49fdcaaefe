"""Parts of the objective that only some configurations have: binary codes, detail guidance, DINO, perturbation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from stepping import take_step
from tiny import RUN
from torch import Tensor

from imagefolder.config import LossConfig, TokenizerConfig, TrainingConfig
from imagefolder.data.images import ArrayImages, to_float
from imagefolder.errors import InputError
from imagefolder.tokenizer.discriminator import DinoDiscriminator, build_discriminator
from imagefolder.tokenizer.losses import semantic_loss
from imagefolder.tokenizer.semantic import Teacher, blank_teacher
from imagefolder.training.tokenizer import TokenizerTask, new_tokenizer, train_tokenizer
from imagefolder.weights import DINO

PLAIN = LossConfig(perceptual=0.0, adversarial=0.0)


@pytest.fixture
def batch(train_digits: ArrayImages) -> tuple[Tensor, Tensor]:
    return train_digits.images[:8], train_digits.labels[:8]


def new_task(
    config: TokenizerConfig,
    training: TrainingConfig,
    loss: LossConfig,
    teacher: Teacher | None = None,
    detail_teacher: Teacher | None = None,
) -> TokenizerTask:
    torch.manual_seed(0)
    return TokenizerTask(new_tokenizer(config), training, loss, teacher=teacher, detail_teacher=detail_teacher)


def test_binary_codes_train_with_their_entropy(
    tokenizer_config: TokenizerConfig, training: TrainingConfig, batch: tuple[Tensor, Tensor]
) -> None:
    binary = replace(tokenizer_config, quantizer="bsq", code_dim=6)
    gradients = []
    for weight in (0.0, 5.0):
        task = new_task(binary, training, replace(PLAIN, entropy=weight))
        seen: list[Tensor] = []
        convolution = task.model.quant_conv.weight
        task.optimizers[0].step = lambda seen=seen, convolution=convolution: seen.append(convolution.grad.clone())
        losses = take_step(task, batch)
        assert set(losses) == {"reconstruction", "codebook", "commitment", "entropy"}
        gradients.append(seen[0])
    assert not torch.allclose(*gradients)


def test_detail_guidance_contrasts_the_first_branch_with_patch_features_of_its_teacher(
    tokenizer_config: TokenizerConfig, training: TrainingConfig, teacher: Teacher, batch: tuple[Tensor, Tensor]
) -> None:
    torch.manual_seed(3)
    detail_teacher = Teacher(blank_teacher(replace(tokenizer_config, drop_path=0.0)).vit, read="patches")
    config = replace(tokenizer_config, detail=True, drop_path=0.0)
    task = new_task(config, training, replace(PLAIN, detail=0.3), teacher, detail_teacher)
    assert task.frozen == [teacher, detail_teacher]
    images = to_float(batch[0])
    task.model.train()
    kept = task.tokenizer.quantizer.draw_kept(8, torch.Generator().manual_seed(0))
    with torch.no_grad():
        patches = detail_teacher.vit.forward_features((images / 2 + 0.5 - teacher.mean) / teacher.std)[:, 1:]
        out = task.model(images, semantic=teacher(images), detail=patches.mean(1), kept=kept)
        projected = task.model.quant_conv(patches).mean(1)  # projecting before averaging is the same
        pooled = out.quantized.z.mean((2, 3))[:, : config.code_dim]
        expected = semantic_loss(projected[4:], pooled[4:])
    losses = take_step(task, batch)
    assert set(losses) == {"reconstruction", "codebook", "commitment", "semantic", "detail"}
    torch.testing.assert_close(losses["detail"], expected)


def test_detail_guidance_is_reached_from_train_tokenizer_and_needs_its_teacher(
    tmp_path: Path,
    tokenizer_config: TokenizerConfig,
    training: TrainingConfig,
    teacher: Teacher,
    train_digits: ArrayImages,
) -> None:
    config, patches = replace(tokenizer_config, detail=True), Teacher(teacher.vit, read="patches")
    options = {"training": training, "loss": PLAIN, "teacher": teacher, **RUN}
    train_tokenizer(config, train_digits, tmp_path, **options, detail_teacher=patches)
    assert json.loads((tmp_path / "config.json").read_text())["losses"]["detail"] > 0
    for wrong, given in ((config, None), (tokenizer_config, patches)):
        with pytest.raises(InputError, match="needs both"):
            train_tokenizer(wrong, train_digits, tmp_path, **options, detail_teacher=given)


@pytest.mark.parametrize("place", ["last branch", "first branch"])
def test_a_teacher_of_another_width_is_rejected(
    tokenizer_config: TokenizerConfig, training: TrainingConfig, teacher: Teacher, place: str
) -> None:
    wider = blank_teacher(replace(tokenizer_config, width=48))
    with pytest.raises(InputError, match=r"width 48.*tokenizer's 32"):
        new_task(tokenizer_config, training, PLAIN, *((wider,) if place == "last branch" else (teacher, wider)))


def test_semantic_scale_grows_linearly_by_epochs_and_normalises_when_asked(
    tokenizer_config: TokenizerConfig, training: TrainingConfig, teacher: Teacher, batch: tuple[Tensor, Tensor]
) -> None:
    config = replace(tokenizer_config, quantizer_dropout=0.0, drop_path=0.0)
    loss = replace(PLAIN, semantic_normalise=True, semantic_scale=(1.0, 100.0))
    by_epochs = replace(training, steps=200, epoch_steps=20)
    for number, scale in ((0, 1.0), (19, 1.0), (20, 10.9), (100, 50.5), (119, 50.5), (199, 90.1)):
        task = new_task(config, by_epochs, loss, teacher)
        images = to_float(batch[0])
        with torch.no_grad():
            task.model.train()
            projected, pooled = task.model(images, semantic=teacher(images)).semantic
        measured = take_step(task, batch, number=number)["semantic"]
        torch.testing.assert_close(measured, semantic_loss(projected, pooled, logit_scale=scale, normalise=True))


def test_samples_touched_by_quantizer_dropout_are_left_out_of_the_contrastive_losses(
    tokenizer_config: TokenizerConfig, training: TrainingConfig, teacher: Teacher, batch: tuple[Tensor, Tensor]
) -> None:
    task = new_task(replace(tokenizer_config, drop_path=0.0, quantizer_dropout=0.5), training, PLAIN, teacher)
    images = to_float(batch[0])
    task.model.train()
    kept = task.tokenizer.quantizer.draw_kept(8, torch.Generator().manual_seed(4))
    assert (kept[:4] < 3).any()
    with torch.no_grad():
        projected, pooled = task.model(images, semantic=teacher(images), kept=kept).semantic
    measured = take_step(task, batch, seed=4)["semantic"]
    torch.testing.assert_close(measured, semantic_loss(projected[4:], pooled[4:]))
    assert not torch.allclose(measured, semantic_loss(projected, pooled))


@pytest.mark.parametrize(("dropout", "batch_size"), [(0.9, 8), (0.0, 1)])
def test_a_semantic_loss_over_fewer_than_two_images_is_rejected(
    tokenizer_config: TokenizerConfig, training: TrainingConfig, teacher: Teacher, dropout: float, batch_size: int
) -> None:
    """It would be zero whatever the images."""
    config = replace(tokenizer_config, quantizer_dropout=dropout)
    with pytest.raises(InputError, match=r"^(0|1) image\(s\) are left for the semantic loss"):
        new_task(config, replace(training, batch_size=batch_size), PLAIN, teacher)
    new_task(config, replace(training, batch_size=batch_size), PLAIN)


def test_a_single_scale_tokenizer_leaves_its_share_out_of_the_semantic_loss_and_drops_nothing(
    tokenizer_config: TokenizerConfig, training: TrainingConfig, teacher: Teacher, batch: tuple[Tensor, Tensor]
) -> None:
    """VP2 is trained like this, with a share of 0.1; VQ and RobustTok are not."""
    config = replace(tokenizer_config, scales=(3,), quantizer_dropout=0.5, drop_path=0.0)
    task, images = new_task(config, training, PLAIN, teacher), to_float(batch[0])
    with torch.no_grad():
        out = task.model.train()(images, semantic=teacher(images))
    losses = take_step(task, batch)
    torch.testing.assert_close(losses["semantic"], semantic_loss(*(side[4:] for side in out.semantic)))
    torch.testing.assert_close(losses["codebook"], out.quantized.codebook_loss.detach())


def test_alpha_and_delta_of_the_perturbation_fall_to_half_together(
    tokenizer_config: TokenizerConfig, training: TrainingConfig, batch: tuple[Tensor, Tensor]
) -> None:
    config = replace(
        tokenizer_config,
        branches=1,
        scales=(3,),
        semantic="none",
        quantizer_dropout=0.0,
        perturbed_images=0.3,
        perturbed_codes=0.8,
        perturbation_depth=10,
    )
    task = new_task(config, replace(training, steps=200, epoch_steps=20), PLAIN)
    found = []
    task.model.register_forward_pre_hook(
        lambda module, arguments, named: found.append(named["perturbation"]), with_kwargs=True
    )
    for number in (0, 40, 60, 80, 99, 120, 200):
        take_step(task, batch, number=number)
    assert [perturbation.alpha for perturbation in found] == pytest.approx([0.8, 0.8, 0.7, 0.6, 0.6, 0.4, 0.4])
    assert [perturbation.delta for perturbation in found] == [10, 10, 8, 7, 7, 5, 5]
    assert {perturbation.u.shape for perturbation in found} == {(2, 2, 1, 9)}  # floor(0.3 x 8) images, at every step


@pytest.mark.parametrize("kind", ["hinge", "vanilla", "non-saturating"])
def test_a_step_against_the_dino_discriminator(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tokenizer_config: TokenizerConfig,
    training: TrainingConfig,
    batch: tuple[Tensor, Tensor],
    kind: str,
) -> None:
    # The real loading code, on weights of the real shapes
    torch.manual_seed(2)
    state = timm.create_model(DINO, num_classes=0).state_dict()
    save_file(state, tmp_path / f"{DINO}.safetensors")
    monkeypatch.setenv("IMAGEFOLDER_WEIGHTS", str(tmp_path))
    loss = LossConfig(perceptual=0.0, discriminator="dino", adversarial_kind=kind, adversarial_start=0.5)
    task = new_task(tokenizer_config, training, loss)
    assert isinstance(task.discriminator, DinoDiscriminator)
    few = (batch[0][:2], batch[1][:2])
    assert "discriminator" not in take_step(task, few, number=3)
    heads = {name: value.clone() for name, value in task.discriminator.state_dict().items()}
    losses = take_step(task, few, number=4)
    assert {"adversarial", "adaptive_weight", "discriminator"} <= set(losses)
    assert all(bool(torch.isfinite(value)) for value in losses.values())
    after = task.discriminator.state_dict()
    assert any(not torch.equal(value, after[name]) for name, value in heads.items())


def test_the_dino_discriminator_without_weights_names_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"vit_small_patch16_224\.dino\.safetensors.*HF_HUB_OFFLINE"):
        build_discriminator(LossConfig(discriminator="dino"))
