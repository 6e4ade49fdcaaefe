"""Training of the tokenizer: one step of its objective, with or without discriminator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from imagefolder.checkpoints.native import save_checkpoint
from imagefolder.config import Execution, LossConfig, TokenizerConfig, TrainingConfig, to_dict
from imagefolder.data.images import Images, to_float
from imagefolder.distributed import barrier, is_main, world_size
from imagefolder.errors import InputError
from imagefolder.tokenizer.discriminator import DinoDiscriminator, PatchDiscriminator
from imagefolder.tokenizer.losses import (
    LeCam,
    Perceptual,
    adaptive_weight,
    adversarial_loss,
    discriminator_loss,
    semantic_loss,
)
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.tokenizer.semantic import pretrained, pretrained_vit
from imagefolder.training.loop import DEFAULT_EXECUTION, WHOLE, Piece, Task, adamw, fit, optimizer_step
from imagefolder.training.state import remove_state

DINO = "vit_small_patch16_224.dino"


class TokenizerTask(Task):
    """Generator-side losses always; discriminator once `adversarial_start` of the training is done.

    `teacher` and `detail_teacher` give the class features of the contrastive losses of the last and first branch;
    `features` is the frozen network under the discriminator's heads (None: the published DINO, where it needs one).
    """

    def __init__(
        self,
        model: Tokenizer,
        training: TrainingConfig,
        loss: LossConfig,
        teacher: nn.Module | None,
        detail_teacher: nn.Module | None = None,
        features: nn.Module | None = None,
    ) -> None:
        if training.precision == "fp16":
            raise InputError("precision fp16 is for generators; train tokenizers with bf16 or no")
        self.model, self.training, self.loss = model, training, loss
        self.config = model.config
        self.settings = {"tokenizer": to_dict(model.config), "loss": to_dict(loss)}
        self.teachers = [None if net is None else net.eval().requires_grad_(False) for net in (teacher, detail_teacher)]
        self.perceptual = Perceptual() if loss.perceptual else None
        self.optimizers = [adamw(model.parameters(), training, training.learning_rate, training.weight_decay)]
        self.frozen = [module for module in (*self.teachers, self.perceptual) if module is not None]
        self.modules = {}
        if loss.adversarial:
            self.discriminator = build_discriminator(loss, features)
            self.lecam = LeCam()
            self.modules = {"discriminator": self.discriminator, "lecam": self.lecam}
            self.optimizers.append(
                adamw(
                    self.discriminator.parameters(), training, loss.discriminator_rate, loss.discriminator_weight_decay
                )
            )
        self.quantizer, self.last_layer = model.quantizer, model.decoder.to_pixels.weight

    def step(
        self, batch: tuple[Tensor, Tensor], progress: float, accelerator: Accelerator, piece: Piece = WHOLE
    ) -> dict[str, Tensor]:
        images = to_float(batch[0])
        if self.config.perturbed_images:
            self.quantizer.set_perturbed_images(self.config.perturbed_images * self._annealed(progress))
        whole = len(images) * world_size()
        kept = self.quantizer.draw_kept(whole, images.device, piece.generator)
        touched = 0 if kept is None else self.quantizer.touched(whole)
        with accelerator.autocast():
            with torch.no_grad():
                features = [None if teacher is None else teacher(images) for teacher in self.teachers]
            out = self.model(images, *features, kept)
        reconstructed = out.images.float()
        losses, pixel = self._pixel_losses(reconstructed, images)
        quantized = out.quantized
        losses |= {"codebook": quantized.codebook_loss, "commitment": quantized.commitment_loss}
        total = pixel + self.loss.codebook * losses["codebook"] + losses["commitment"]
        if self.config.quantizer != "vq":
            losses["entropy"] = quantized.entropy_loss
            total = total + self.loss.entropy * losses["entropy"]
        for name, pair, weight in (
            ("semantic", out.semantic, self.loss.semantic),
            ("detail", out.detail, self.loss.detail),
        ):
            if pair is not None:
                projected, pooled = (side.float() for side in pair)
                scale, normalise = self._semantic_scale(progress), self.loss.semantic_normalise
                losses[name] = semantic_loss(projected, pooled, scale, normalise, skip=touched)
                total = total + weight * losses[name]
        adversarial = bool(self.loss.adversarial) and progress >= self.loss.adversarial_start
        if adversarial:
            self.discriminator.requires_grad_(False)
            fooled = adversarial_loss(self.loss.adversarial_kind, self._judged(reconstructed, accelerator))
            weight = adaptive_weight(pixel, fooled, self.last_layer)
            total = total + self.loss.adversarial * weight * fooled
            losses |= {"adversarial": fooled, "adaptive_weight": weight}
        clip = self.training.clip
        optimizer_step(total, self.optimizers[0], self.model.parameters(), clip, accelerator, piece)
        if adversarial:
            self.discriminator.requires_grad_(True)
            real, fake = (self._judged(shown, accelerator) for shown in (images, reconstructed.detach()))
            loss = discriminator_loss(self.loss.adversarial_kind, real, fake)
            loss = loss + self.loss.lecam * self.lecam(real, fake, 1 / piece.number)
            parameters = self.discriminator.parameters()
            optimizer_step(loss, self.optimizers[1], parameters, clip, accelerator, piece, average=True)
            losses["discriminator"] = loss
        return {name: value.detach() for name, value in losses.items()}

    def _judged(self, images: Tensor, accelerator: Accelerator) -> Tensor:
        """The discriminator's logits, float32."""
        with accelerator.autocast():
            return self.discriminator(images).float()

    def _pixel_losses(self, reconstructed: Tensor, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The single terms, and their weighted sum."""
        losses = {"reconstruction": F.mse_loss(reconstructed, images)}
        pixel = self.loss.reconstruction * losses["reconstruction"]
        if self.perceptual is not None:
            losses["perceptual"] = self.perceptual(reconstructed, images)
            pixel = pixel + self.loss.perceptual * losses["perceptual"]
        return losses, pixel

    def _semantic_scale(self, progress: float) -> float:
        first, last = self.loss.semantic_scale
        return first * (last / first) ** progress

    def _annealed(self, progress: float) -> float:
        """Share of the perturbation left: 1, falling to a half between the two points of `perturbation_anneal`."""
        start, stop = self.loss.perturbation_anneal
        return 1 - 0.5 * min(max((progress - start) / (stop - start), 0.0), 1.0)


def build_discriminator(loss: LossConfig, features: nn.Module | None = None) -> nn.Module:
    """PatchGAN, or heads on a frozen network ("dino"): `features`, or the published weights of DINO ViT-S/16."""
    if loss.discriminator == "patch":
        return PatchDiscriminator(loss.patch_width, loss.patch_layers)
    return DinoDiscriminator(pretrained(DINO) if features is None else features)


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
    features: nn.Module | None = None,
    execution: Execution = DEFAULT_EXECUTION,
    evaluate: Callable[[nn.Module], float] | None = None,
) -> None:
    """Train a tokenizer and write its EMA weights into `folder` (with `about` beside them).

    Args:
        about: JSON values; a saved state is continued only where they are the same (say, the teacher's sha256).
        pretrained: start from the backbone's published weights.
        features: frozen network under the discriminator's heads, see `TokenizerTask`.
        evaluate: of the averaged tokenizer, as in `fit`, which has the rest.
    """
    torch.manual_seed(seed)
    task = TokenizerTask(new_tokenizer(config, pretrained), training, loss, teacher, features=features)
    task.settings["about"] = about
    averaged, summary = fit(task, training, images, folder, seed, title, execution, evaluate)
    if is_main():
        save_checkpoint(folder, averaged, config, **summary, **about)
    remove_state(folder)
    barrier()
