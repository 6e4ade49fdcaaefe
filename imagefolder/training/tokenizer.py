"""Training of the tokenizer: one step of its objective, with or without discriminator."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from imagefolder.config import Execution, LossConfig, TokenizerConfig, TrainingConfig, to_dict
from imagefolder.data.images import Images, to_float
from imagefolder.distributed import mean_with_gradient, own_samples, world_size
from imagefolder.errors import InputError
from imagefolder.numerics import any_seed
from imagefolder.tokenizer.discriminator import build_discriminator
from imagefolder.tokenizer.losses import (
    LeCam,
    Perceptual,
    adaptive_weight,
    adversarial_loss,
    discriminator_loss,
    last_layer_gradients,
    semantic_loss,
    weight_of_gradients,
)
from imagefolder.tokenizer.model import Tokenizer, TrainingOutput
from imagefolder.tokenizer.quantizers import Perturbation, codebook_entropy, floor_of_share
from imagefolder.tokenizer.semantic import Teacher, pretrained_vit
from imagefolder.tokenizer.vit import ViT
from imagefolder.training.curve import Preview, Watch
from imagefolder.training.loop import DEFAULT_EXECUTION, finish, fit
from imagefolder.training.schedule import adversarial_step, discriminator_rate
from imagefolder.training.task import Batch, Step, TrainingTask, adamw, mean_over_pieces, update

Contributions = dict[str, Tensor]
"""what one piece of a step contributes to the terms that depend on all samples of the step together"""


@dataclass(frozen=True)
class Piece:
    """One piece of a step: uint8 images, features of the teachers, and the draws (see `Tokenizer.forward`)."""

    images: Tensor
    features: list[Tensor | None]
    kept: Tensor | None
    share: Tensor | None
    perturbation: Perturbation | None


@dataclass(frozen=True)
class Ahead:
    """Results of a first pass over all pieces of a step: the terms that depend on all samples together, their gradients
    with respect to what each piece contributes, and the adaptive weight (0 before the adversarial term sets in)."""

    values: dict[str, Tensor]
    gradients: list[Contributions]
    weight: Tensor


class TokenizerTask(TrainingTask):
    """The tokenizer's losses, joined by a discriminator once `adversarial_start` of the training is done.

    `teacher` and `detail_teacher` give the features (B, D) of the contrastive losses of the last and first branch, if
    any; `features` is the frozen network under the discriminator's heads (None: the published DINO, if needed).

    Most terms are means over samples, so that the pieces of a batch add up. Three are not: the contrastive losses, the
    entropy of the codebook, and the adaptive weight. If a batch has several pieces, a first pass collects what they
    need from every piece, without the graph of the transformers, and the second pass feeds their gradients back into it
    (gradient caching, Gao et al. 2021, arXiv:2101.06983): the result is that of the whole batch at once.
    """

    config: TokenizerConfig

    def __init__(
        self,
        model: Tokenizer,
        training: TrainingConfig,
        loss: LossConfig,
        *,
        teacher: nn.Module | None,
        detail_teacher: nn.Module | None = None,
        features: ViT | None = None,
    ) -> None:
        if training.precision == "fp16":
            raise InputError("precision fp16 is for generators; train tokenizers with bf16 or no")
        contrasted = training.batch_size - model.quantizer.touched(training.batch_size)
        if (teacher is not None or detail_teacher is not None) and contrasted < 2:
            raise InputError(
                f"{contrasted} image(s) are left for the semantic loss, which needs at least two: batch_size "
                f"{training.batch_size}, quantizer_dropout {model.config.quantizer_dropout}"
            )
        for net in (teacher, detail_teacher):
            if isinstance(net, Teacher) and net.vit.num_features != model.encoder.vit.embed_dim:
                raise InputError(
                    f"a teacher has features of width {net.vit.num_features}, but quant_conv, which projects them, "
                    f"takes the tokenizer's {model.encoder.vit.embed_dim}; choose a teacher of that width"
                )
        self.model, self.tokenizer, self.training, self.loss = model, model, training, loss
        self.config, self.last_layer = model.config, model.decoder.to_pixels.weight
        self.settings = {"tokenizer": to_dict(model.config), "loss": to_dict(loss)}
        self.teachers = [None if net is None else net.eval().requires_grad_(False) for net in (teacher, detail_teacher)]
        self.perceptual = Perceptual() if loss.perceptual else None
        rate, weight_decay = training.learning_rate, training.weight_decay
        self.optimizers = [adamw(model.parameters(), training, rate=rate, weight_decay=weight_decay)]
        self.frozen = [module for module in (*self.teachers, self.perceptual) if module is not None]
        self.modules = {}
        self.start = adversarial_step(training, loss)
        if loss.adversarial:
            self.discriminator = build_discriminator(loss, features)
            self.lecam = LeCam()
            self.modules = {"discriminator": self.discriminator, "lecam": self.lecam}
            rate, weight_decay = loss.discriminator_rate, loss.discriminator_weight_decay
            optimizer = adamw(self.discriminator.parameters(), training, rate=rate, weight_decay=weight_decay)
            self.optimizers.append(optimizer)

    def learning_rates(self, step: int) -> dict[str, float]:
        rates = super().learning_rates(step)
        if self.loss.adversarial:
            rates["discriminator_learning_rate"] = discriminator_rate(step, self.training, self.loss)
        return rates

    def progress(self, step: int) -> float:
        """Share of the training done when the epoch of a step begins, 0..1; annealing follows it."""
        return (step - step % self.training.epoch_steps) / self.training.steps

    def step(self, pieces: list[Batch], step: Step) -> dict[str, Tensor]:
        adversarial = bool(self.loss.adversarial) and step.number >= self.start
        prepared = self._prepare(pieces, step)
        ahead = self._look_ahead(prepared, step, adversarial) if step.pieces > 1 else None
        results, counts, logits = [], [], []
        for i, piece in enumerate(prepared):
            step.seed_noise(i)
            with step.accumulating(self.model, i):
                images = to_float(piece.images)
                out, losses = self._learn(piece, images, i, step, adversarial, ahead)
            counts.append(out.quantized.counts)
            shown = images, out.images.detach().float()
            if adversarial:
                losses["discriminator"] = self._judge(*shown, step, average_in=ahead is None)
            elif self.loss.adversarial and self.loss.lecam:
                logits.append(self._mean_logits(*shown, step.accelerator))
            results.append({name: value.detach() for name, value in losses.items()})
        clip, accelerator = self.training.clip, step.accelerator
        update(self.optimizers[0], accelerator, clip=clip)
        if adversarial:
            update(self.optimizers[1], accelerator, clip=clip, average=True)
        if logits:  # the running means follow the logits from the first step on
            self.lecam.update(*torch.stack(logits).mean(0))
        self.tokenizer.quantizer.record_hits(torch.stack(counts).sum(0))
        return mean_over_pieces(results)

    def _prepare(self, pieces: list[Batch], step: Step) -> list[Piece]:
        """Draw what decides the objective for the whole batch, and split it over the pieces."""
        quantizer, config, size = self.tokenizer.quantizer, self.config, len(pieces[0][0])
        whole, device = size * step.pieces * world_size(), pieces[0][0].device
        kept, share = quantizer.draw_kept(whole, step.generator), None
        if kept is not None:
            share = quantizer.share_kept(kept).to(device)
            kept = own_samples(kept).to(device)
        touched = floor_of_share(config.perturbed_images, whole)
        u = torch.rand(touched, config.branches, 2, quantizer.length, generator=step.generator)
        u = own_samples(u).movedim(2, 0).to(device)
        left = self._perturbation_left(self.progress(step.number))
        alpha, delta = config.perturbed_codes * left, max(floor_of_share(left, config.perturbation_depth), 1)
        prepared = []
        for i, (images, _) in enumerate(pieces):
            part = slice(i * size, (i + 1) * size)
            with torch.no_grad(), step.accelerator.autocast():
                features = [None if teacher is None else teacher(to_float(images)) for teacher in self.teachers]
            perturbation = Perturbation(alpha, delta, u[:, part]) if u[:, part].numel() else None
            prepared.append(Piece(images, features, None if kept is None else kept[part], share, perturbation))
        return prepared

    def _learn(
        self, piece: Piece, images: Tensor, index: int, step: Step, adversarial: bool, ahead: Ahead | None
    ) -> tuple[TrainingOutput, dict[str, Tensor]]:
        """Losses of the tokenizer on a piece, whose images are also given in [-1, 1], and their backward pass."""
        out = self._forward(self.model, piece, images, step.accelerator)
        quantized, reconstructed = out.quantized, out.images.float()
        losses, pixel = self._pixel_losses(reconstructed, images)
        losses |= {"codebook": quantized.codebook_loss, "commitment": quantized.commitment_loss}
        total = pixel + self.loss.codebook * losses["codebook"] + losses["commitment"]
        if adversarial:
            fooled = self._fooled(reconstructed, step.accelerator)
            weight = adaptive_weight(pixel, fooled, self.last_layer) if ahead is None else ahead.weight
            total = total + self.loss.adversarial * weight * fooled
            losses |= {"adversarial": fooled, "adaptive_weight": weight}
        own = self._contributions(out)
        if ahead is None:
            together, values = self._together([own], quantized.share, step)
        else:
            values, together = ahead.values, sum((own[name] * g).sum() for name, g in ahead.gradients[index].items())
        step.accelerator.backward(total / step.pieces + together)
        return out, losses | values

    def _look_ahead(self, pieces: list[Piece], step: Step, adversarial: bool) -> Ahead | None:
        """A first pass over the pieces, with the same draws as the second one; None if nothing needs it."""
        if not adversarial and not self.tokenizer.quantizer.has_entropy and self.teachers == [None, None]:
            return None
        found, gradients, logits = [], [], []
        for i, piece in enumerate(pieces):
            step.seed_noise(i)
            with torch.no_grad():
                images = to_float(piece.images)
                out = self._forward(self.tokenizer, piece, images, step.accelerator)
            found.append({name: value.detach().requires_grad_() for name, value in self._contributions(out).items()})
            if adversarial:
                with step.accelerator.autocast():
                    reconstructed = self.tokenizer.decoder.images(out.hidden).float()
                _, pixel = self._pixel_losses(reconstructed, images)
                fooled = self._fooled(reconstructed, step.accelerator)
                gradients.append(torch.stack(last_layer_gradients(pixel, fooled, self.last_layer)))
                logits.append(self._mean_logits(images, reconstructed.detach(), step.accelerator))
        weight = self.last_layer.new_zeros(())
        if adversarial:
            weight = weight_of_gradients(*torch.stack(gradients).mean(0))
            self.lecam.update(*torch.stack(logits).mean(0))
        together, values = self._together(found, out.quantized.share, step)
        inputs = [value for piece in found for value in piece.values()]
        of_inputs = iter(torch.autograd.grad(together, inputs) if inputs else ())
        return Ahead(values, [{name: next(of_inputs) for name in piece} for piece in found], weight)

    def _forward(self, model: nn.Module, piece: Piece, images: Tensor, accelerator: Accelerator) -> TrainingOutput:
        semantic, detail = piece.features
        with accelerator.autocast():
            return model(
                images,
                semantic=semantic,
                detail=detail,
                kept=piece.kept,
                share=piece.share,
                perturbation=piece.perturbation,
            )

    def _contributions(self, out: TrainingOutput) -> Contributions:
        contributions = {}
        for name, pair in (("semantic", out.semantic), ("detail", out.detail)):
            if pair is not None:
                contributions |= {f"{name} projected": pair[0].float(), f"{name} pooled": pair[1].float()}
        if self.tokenizer.quantizer.has_entropy:
            contributions |= {"sample entropy": out.quantized.sample_entropy, "bits": out.quantized.bits}
        return contributions

    def _together(self, pieces: list[Contributions], share: Tensor, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """The terms that depend on all samples of a step together: their weighted sum, and each one.

        `share` (S,): of the samples that keep each scale.
        """
        values, total = {}, share.new_zeros(())
        first, last = self.loss.semantic_scale
        scale, normalise = first + (last - first) * self.progress(step.number), self.loss.semantic_normalise
        for name, weight in (("semantic", self.loss.semantic), ("detail", self.loss.detail)):
            if f"{name} pooled" in pieces[0]:
                projected, pooled = (
                    torch.cat([piece[f"{name} {side}"] for piece in pieces]) for side in ("projected", "pooled")
                )
                touched = self.tokenizer.quantizer.touched(len(projected) * world_size())
                values[name] = semantic_loss(projected, pooled, logit_scale=scale, normalise=normalise, skip=touched)
                total = total + weight * values[name]
        if "bits" in pieces[0]:
            names = ("sample entropy", "bits")
            sample, bits = (torch.stack([piece[name] for piece in pieces]).mean(0) for name in names)
            values["entropy"] = sample - codebook_entropy(mean_with_gradient(bits), share)
            total = total + self.loss.entropy * values["entropy"]
        return total, values

    def _fooled(self, reconstructed: Tensor, accelerator: Accelerator) -> Tensor:
        """The adversarial loss of reconstructions, without gradients for the discriminator's weights."""
        self.discriminator.requires_grad_(False)
        fooled = adversarial_loss(self.loss.adversarial_kind, self._logits(reconstructed, accelerator))
        self.discriminator.requires_grad_(True)
        return fooled

    def _judge(self, images: Tensor, reconstructed: Tensor, step: Step, average_in: bool) -> Tensor:
        """The discriminator's loss on a piece, and its backward pass.

        `average_in`: update LeCAM's running means with the logits first.
        """
        real, fake = (self._logits(shown, step.accelerator) for shown in (images, reconstructed))
        if average_in:
            self.lecam.update(real.mean(), fake.mean())
        loss = discriminator_loss(self.loss.adversarial_kind, real, fake) + self.loss.lecam * self.lecam(real, fake)
        step.accelerator.backward(loss / step.pieces)
        return loss

    @torch.no_grad()
    def _mean_logits(self, images: Tensor, reconstructed: Tensor, accelerator: Accelerator) -> Tensor:
        """Mean logits of real and of reconstructed images (2,)."""
        return torch.stack([self._logits(shown, accelerator).mean() for shown in (images, reconstructed)])

    def _logits(self, images: Tensor, accelerator: Accelerator) -> Tensor:
        """The discriminator's logits, float32."""
        with accelerator.autocast():
            return self.discriminator(images).float()

    def _pixel_losses(self, reconstructed: Tensor, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Each term, and their weighted sum."""
        losses = {"reconstruction": F.mse_loss(reconstructed, images)}
        pixel = self.loss.reconstruction * losses["reconstruction"]
        if self.perceptual is not None:
            losses["perceptual"] = self.perceptual(reconstructed, images)
            pixel = pixel + self.loss.perceptual * losses["perceptual"]
        return losses, pixel

    def _perturbation_left(self, progress: float) -> float:
        """Factor on alpha and delta: 1, falling to one half between the two points of `perturbation_anneal`."""
        start, stop = self.loss.perturbation_anneal
        return 1 - 0.5 * min(max((progress - start) / (stop - start), 0.0), 1.0)


def new_tokenizer(config: TokenizerConfig, *, pretrained: bool = False) -> Tokenizer:
    """A tokenizer to be trained: from scratch, or with encoder and decoder from the backbone's published weights.

    From scratch, timm's initialisation (std 0.02, meant for wide models) leaves attention blind to position, and a
    small autoencoder stuck at the mean image for hundreds of steps: Xavier weights and distinct positions avoid that.
    The positions are sinusoids, because the latents use the same table resampled to their own grid, which tells them
    where they are only if the table is smooth.
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
        table = _sinusoids(config.image_size // config.patch_size, side.vit.embed_dim)
        with torch.no_grad():
            side.vit.pos_embed[:, -len(table) :, : table.shape[1]] = table
    return model


def _sinusoids(grid: int, width: int) -> Tensor:
    """Positions of a grid: (grid * grid, 4 * (width // 4)) of RMS 0.5, with periods from 4 to 40 cells."""
    number = width // 4
    angles = torch.arange(grid)[:, None] * (math.pi / 2 * 10.0 ** (-torch.arange(number) / number))
    line = torch.cat([angles.sin(), angles.cos()], dim=1) * 0.5**0.5
    rows, columns = line[:, None].expand(grid, grid, -1), line.expand(grid, grid, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


def train_tokenizer(
    config: TokenizerConfig,
    images: Images,
    folder: Path,
    *,
    training: TrainingConfig,
    loss: LossConfig,
    teacher: nn.Module | None,
    detail_teacher: nn.Module | None = None,
    features: ViT | None = None,
    pretrained: bool = False,
    seed: int,
    title: str,
    about: dict[str, Any],
    execution: Execution = DEFAULT_EXECUTION,
    evaluate: Callable[[nn.Module], float] | None = None,
    watch: Watch | None = None,
    preview: Preview | None = None,
) -> None:
    """Train a tokenizer and write its EMA weights into `folder`, with `about` in the config beside them.

    Args:
        teacher: of the last branch or of all, see `TokenizerTask`; None: no semantic regularisation, whatever
            `config.semantic` is.
        detail_teacher: of the first branch, if `config.detail` asks for one: `Teacher(vit, read="patches")`.
        features: frozen network under the discriminator's heads, see `TokenizerTask`.
        pretrained: start from the backbone's published weights.
        about: JSON values; a saved state is resumed only if they are the same (for example the teacher's sha256).
        evaluate, preview: called as in `fit`, with the tokenizer.

    The other arguments and the errors are those of `fit`.
    """
    if config.detail != (detail_teacher is not None):
        raise InputError("detail guidance needs both: TokenizerConfig.detail, and a detail_teacher")
    torch.manual_seed(any_seed(seed))
    model = new_tokenizer(config, pretrained=pretrained)
    task = TokenizerTask(model, training, loss, teacher=teacher, detail_teacher=detail_teacher, features=features)
    task.settings["about"] = about
    options = {"execution": execution, "evaluate": evaluate, "watch": watch, "preview": preview}
    averaged, summary = fit(task, images, folder, seed=seed, title=title, **options)
    finish(task, folder, averaged, summary)
