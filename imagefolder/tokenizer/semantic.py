"""The frozen teachers of the contrastive losses."""

from __future__ import annotations

from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagefolder.config import TokenizerConfig
from imagefolder.tokenizer.vit import ViT, build_vit, run_blocks, with_positions
from imagefolder.weights import pretrained


class Teacher(nn.Module):
    """A timm vision transformer: (B, 3, H, W) in [-1, 1] -> feature (B, D).

    Images are normalised as in its pretraining, and resized (bicubic) if its own size differs.

    Args:
        read: "class", its class feature (semantic regularisation); "patches", the mean of its patch features after the
            final norm (detail guidance).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, vit: ViT, read: Literal["class", "patches"] = "class") -> None:
        super().__init__()
        self.vit, self.read = vit, read
        self.side = vit.patch_embed.img_size[0]
        for name in ("mean", "std"):
            value = torch.tensor(vit.pretrained_cfg[name])[:, None, None]
            self.register_buffer(name, value, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-1] != self.side:
            images = F.interpolate(images, size=(self.side, self.side), mode="bicubic", antialias=True)
        images = ((images + 1) / 2 - self.mean) / self.std
        if self.read == "patches":
            return self.vit.forward_features(images)[:, self.vit.num_prefix_tokens :].mean(1)
        if self.vit.global_pool != "token":
            return self.vit(images)
        x = with_positions(self.vit, self.vit.patch_embed(images), self.vit.patch_embed.grid_size[0])
        return self.vit.forward_head(run_blocks(self.vit, x, slice(0, 1)))


def blank_teacher(config: TokenizerConfig) -> Teacher:
    """A teacher of the tokenizer's shape, to be trained or loaded with weights."""
    return Teacher(build_vit(config))


def pretrained_vit(config: TokenizerConfig) -> ViT:
    """The tokenizer's backbone with its published weights, resampled to its image and patch size."""
    return cast("ViT", pretrained(config.backbone, img_size=config.image_size, patch_size=config.patch_size))
