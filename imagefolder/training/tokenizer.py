"""Training of the tokenizer: one step of its objective, with or without discriminator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from imagefolder.checkpoints.native import save_checkpoint
from imagefolder.config import LossConfig, TokenizerConfig, TrainingConfig
from imagefolder.data.images import Images, to_float, training_batches
from imagefolder.tokenizer.discriminator import PatchDiscriminator
from imagefolder.tokenizer.losses import LeCam, Perceptual, adaptive_weight, hinge_discriminator, semantic_loss
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.tokenizer.semantic import pretrained_vit
from imagefolder.training.loop import STATE, Task, adamw, fit, optimizer_step


class TokenizerTask(Task):
    """Generator-side losses always; discriminator once `adversarial_start` of the training is done."""

    def __init__(self, model: Tokenizer, training: TrainingConfig, loss: LossConfig, teacher: nn.Module | None) -> None:
        self.model, self.training, self.loss = model, training, loss
        self.config = model.config
        self.teacher = None if teacher is None else teacher.eval().requires_grad_(False)
        self.perceptual = Perceptual() if loss.perceptual else None
        self.optimizers = [adamw(model.parameters(), training, training.learning_rate, training.weight_decay)]
        self.frozen = [module for module in (self.teacher, self.perceptual) if module is not None]
        self.modules = {}
        if loss.adversarial:
            self.discriminator = PatchDiscriminator()
            self.lecam = LeCam()
            self.modules = {"discriminator": self.discriminator, "lecam": self.lecam}
            self.optimizers.append(
                adamw(
                    self.discriminator.parameters(), training, loss.discriminator_rate, loss.discriminator_weight_decay
                )
            )
        self.last_layer = model.decoder.to_pixels.weight

    def step(self, batch: tuple[Tensor, Tensor], progress: float, accelerator: Accelerator) -> dict[str, Tensor]:
        images = to_float(batch[0])
        with accelerator.autocast():
            features = None
            if self.teacher is not None:
                with torch.no_grad():
                    features = self.teacher(images)
            out = self.model(images, features)
        losses: dict[str, Tensor] = {"reconstruction": F.mse_loss(out.images.float(), images)}
        pixel = self.loss.reconstruction * losses["reconstruction"]
        if self.perceptual is not None:
            losses["perceptual"] = self.perceptual(out.images.float(), images)
            pixel = pixel + self.loss.perceptual * losses["perceptual"]
        losses["codebook"], losses["commitment"] = out.quantized.codebook_loss, out.quantized.commitment_loss
        total = pixel + self.loss.codebook * losses["codebook"] + losses["commitment"]
        if out.pooled is not None and len(out.pooled):
            losses["semantic"] = semantic_loss(out.projected.float(), out.pooled.float())
            total = total + self.loss.semantic * losses["semantic"]
        adversarial = bool(self.loss.adversarial) and progress >= self.loss.adversarial_start
        if adversarial:
            self.discriminator.requires_grad_(False)
            fooled = -self.discriminator(out.images.float()).mean()
            weight = adaptive_weight(pixel, fooled, self.last_layer)
            total = total + self.loss.adversarial * weight * fooled
            losses |= {"adversarial": fooled, "adaptive_weight": weight}
        optimizer_step(total, self.optimizers[0], self.model.parameters(), self.training.clip, accelerator)
        if adversarial:
            self.discriminator.requires_grad_(True)
            real, fake = self.discriminator(images), self.discriminator(out.images.detach().float())
            loss = hinge_discriminator(real, fake) + self.loss.lecam * self.lecam(real, fake)
            optimizer_step(loss, self.optimizers[1], self.discriminator.parameters(), self.training.clip, accelerator)
            losses["discriminator"] = loss
        return {name: value.detach() for name, value in losses.items()}


def new_tokenizer(config: TokenizerConfig, pretrained: bool) -> Tokenizer:
    """A tokenizer to be trained: encoder and decoder from the backbone's published weights, or from scratch.

    From scratch, timm's initialisation (std 0.02, meant for wide models) leaves attention blind to position, and the
    small autoencoder stays at the mean image for hundreds of steps: Xavier weights and clear positions avoid that.
    """
    model = Tokenizer(config)
    for side in (model.encoder, model.decoder):
        if pretrained:
            weights = pretrained_vit(config).state_dict()
            side.vit.load_state_dict(weights, strict=side is model.encoder)
            continue
        for module in side.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        nn.init.normal_(side.vit.pos_embed, std=0.5)
    return model


def train_tokenizer(
    config: TokenizerConfig,
    training: TrainingConfig,
    loss: LossConfig,
    images: Images,
    teacher: nn.Module | None,
    folder: Path,
    seed: int,
    title: str,
    about: dict[str, Any],
    pretrained: bool = False,
) -> None:
    """Train a tokenizer and write its EMA weights into `folder` (with `about` beside them)."""
    torch.manual_seed(seed)
    task = TokenizerTask(new_tokenizer(config, pretrained), training, loss, teacher)
    averaged, summary = fit(
        task,
        training,
        lambda start, stop: training_batches(images, training.batch_size, seed, start, stop),
        folder,
        seed,
        title,
    )
    save_checkpoint(folder, averaged, config, **summary, **about)
    (folder / STATE).unlink(missing_ok=True)
