"""Discriminators with logits per patch: PatchGAN (ablation rows 1 to 6), heads on DINO (rows 7 and 8)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from imagefolder.config import LossConfig
from imagefolder.data.order import pieces_per_process
from imagefolder.distributed import mean_with_gradient, world_size
from imagefolder.tokenizer.augment import DiffAugment
from imagefolder.tokenizer.vit import ViT, with_positions
from imagefolder.weights import DINO, pretrained

READOUTS = 5
VIRTUAL_BATCH = 8


def build_discriminator(loss: LossConfig, features: ViT | None = None) -> nn.Module:
    """PatchGAN, or heads on a frozen network ("dino"): `features`, or the published weights of DINO ViT-S/16."""
    if loss.discriminator == "patch":
        return PatchDiscriminator(loss.patch_width, loss.patch_layers)
    return DinoDiscriminator(dino() if features is None else features)


def dino() -> ViT:
    """DINO ViT-S/16 with its published weights, as released: the tanh form of GELU, and LayerNorm eps 1e-6."""
    return cast("ViT", pretrained(DINO, act_layer="gelu_tanh", norm_layer=partial(nn.LayerNorm, eps=1e-6)))


def images_normalised_together(loss: LossConfig, batch_size: int, processes: int, micro_batch: int) -> float:
    """How many images of a step a discriminator normalises together: the only thing that depends on how the step is
    executed.

    PatchGAN's batch norms see one piece of all processes; the heads on a frozen network split a process's piece into
    groups of about equal size, at most 8.

    Args:
        micro_batch: as in `Execution`.
    """
    piece = batch_size // (processes * pieces_per_process(batch_size, processes, micro_batch))
    return piece * processes if loss.discriminator == "patch" else piece / math.ceil(piece / VIRTUAL_BATCH)


class PatchDiscriminator(nn.Sequential):
    """Images (B, 3, H, W) in [-1, 1] to logits (B, 1, h, w).

    `layers` strided 4x4 convolutions, then two more at stride 1, with batch normalisation and leaky ReLU 0.2 (pix2pix).
    """

    def __init__(self, width: int = 64, layers: int = 3) -> None:
        modules: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True)]
        channels = width
        for layer in range(1, layers + 1):
            out = width * min(2**layer, 8)
            stride = 2 if layer < layers else 1
            modules += [
                nn.Conv2d(channels, out, 4, stride=stride, padding=1, bias=False),
                BatchNorm(out),
                nn.LeakyReLU(0.2, inplace=True),
            ]
            channels = out
        modules.append(nn.Conv2d(channels, 1, 4, stride=1, padding=1))
        super().__init__(*modules)
        self.apply(_init)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation by the statistics of all processes' samples; each process must hold the same number.

    torch's SyncBatchNorm does this only on GPUs.
    """

    momentum: float
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(x)
        inputs, x = x, x.float()
        mean = mean_with_gradient(x.mean((0, 2, 3), keepdim=True))
        variance = mean_with_gradient((x - mean).square().mean((0, 2, 3), keepdim=True))
        number = world_size() * x.numel() / x.shape[1]
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.flatten(), self.momentum)
            self.running_var.lerp_(variance.flatten() * number / (number - 1), self.momentum)
        normalised = (x - mean) * (variance + self.eps).rsqrt()
        return (normalised * self.weight[:, None, None] + self.bias[:, None, None]).to(inputs.dtype)


class DinoDiscriminator(nn.Module):
    """Images (B, 3, S, S) in [-1, 1], any S, to logits (B, 5*196): small heads on a frozen vision transformer.

    The heads read patch tokens plus class token before the first block and after each quarter of the blocks (of twelve:
    after blocks 2, 5, 8 and 11). In training mode images are augmented, and half of the calls show a random crop at
    full resolution instead of the whole image; each process draws for its own images and normalises them in its own
    groups.
    Only the heads are parameters and state of this module: the transformer moves with it to other devices and dtypes,
    but `train`, `requires_grad_`, `parameters` and `state_dict` do not reach it.

    Args:
        vit: timm DINO ViT-S/16 (224 px, no classifier) with its weights, or another vision transformer with a class
            token; it is frozen and set to eval mode here. With fewer than four blocks, it is read after each of them.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, vit: ViT) -> None:
        super().__init__()
        self._frozen = (vit.eval().requires_grad_(False),)  # a tuple hides it from nn.Module
        self.side, self.grid = vit.patch_embed.img_size[0], vit.patch_embed.grid_size[0]
        self.augment = DiffAugment()
        depth = len(vit.blocks)
        self.passed = sorted({round(depth * i / (READOUTS - 1)) for i in range(READOUTS)})  # blocks before a readout
        self.heads = nn.ModuleList(_head(vit.embed_dim) for _ in self.passed)
        for name in ("mean", "std"):
            values = torch.tensor(vit.pretrained_cfg[name])
            self.register_buffer(name, values[:, None, None], persistent=False)

    @property
    def vit(self) -> ViT:
        return self._frozen[0]

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            images = self.augment(images)
        shown = ((self._fit(images) + 1) / 2 - self.mean) / self.std
        logits = [head(tokens).flatten(1) for head, tokens in zip(self.heads, self.readouts(shown), strict=True)]
        return torch.cat(logits, dim=1).to(images.dtype)

    def readouts(self, images: Tensor) -> list[Tensor]:
        """Features of normalised images (B, 3, side, side): per readout (B, D, grid*grid)."""
        vit = self.vit
        tokens = vit.norm_pre(with_positions(vit, vit.patch_embed(images), self.grid))
        features = []
        for done in range(len(vit.blocks) + 1):
            if done:
                tokens = vit.blocks[done - 1](tokens)
            if done in self.passed:
                features.append((tokens[:, vit.num_prefix_tokens :] + tokens[:, :1]).mT)
        return features

    def _fit(self, images: Tensor) -> Tensor:
        """Fit images to the transformer's size: in training, half of the time, larger ones by a random crop; otherwise
        by area interpolation."""
        room = images.shape[-1] - self.side
        if self.training and room > 0 and torch.rand(()) < 0.5:  # drawn on the CPU: no GPU sync
            top, left = torch.randint(room + 1, (2,)).tolist()
            return images[..., top : top + self.side, left : left + self.side]
        return F.interpolate(images, size=(self.side, self.side), mode="area") if room else images

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **options: Any) -> DinoDiscriminator:
        self.vit._apply(fn, *args, **options)
        return super()._apply(fn, *args, **options)


def _head(width: int) -> nn.Sequential:
    """(B, D, L) -> (B, 1, L)."""
    return nn.Sequential(
        _block(width, 1), _Residual(_block(width, 9)), spectral_norm(_Float32WeightConv1d(width, 1, 1))
    )


def _block(width: int, kernel: int) -> nn.Sequential:
    conv = _Float32WeightConv1d(width, width, kernel, padding=kernel // 2, padding_mode="circular")
    return nn.Sequential(spectral_norm(conv), LocalBatchNorm(width), nn.LeakyReLU(0.2, inplace=True))


class _Residual(nn.Module):
    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return (self.branch(x) + x) / math.sqrt(2)


class _Float32WeightConv1d(nn.Conv1d):
    """Reads its weight outside autocast: reading it runs the power iteration of `spectral_norm`, on CUDA in half."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            weight = self.weight
        return self._conv_forward(x, weight, self.bias)


class LocalBatchNorm(nn.Module):
    """Batch normalisation of (B, D, L) by the statistics of ceil(B / 8) nearly equal groups of consecutive samples.

    Affine, without running statistics: eval mode does the same.
    """

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        groups = x.tensor_split(math.ceil(len(x) / VIRTUAL_BATCH))
        options = {"weight": self.weight, "bias": self.bias, "training": True, "eps": self.eps}
        return torch.cat([F.batch_norm(group, None, None, **options) for group in groups])
