"""The frozen semantic teacher: images to one class feature each."""

from __future__ import annotations

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from imagefolder.config import TokenizerConfig
from imagefolder.errors import InputError
from imagefolder.tokenizer.vit import build_vit


class Teacher(nn.Module):
    """A timm vision transformer with the tokenizer's own shape: (B, 3, H, W) in [-1, 1] -> class feature (B, D)."""

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.vit = vit
        self.register_buffer("mean", torch.tensor(IMAGENET_DEFAULT_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_DEFAULT_STD)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.vit(((images + 1) / 2 - self.mean) / self.std)


def blank_teacher(config: TokenizerConfig) -> Teacher:
    """A teacher of the tokenizer's shape, to be trained or loaded."""
    return Teacher(build_vit(config))


def pretrained_vit(config: TokenizerConfig) -> nn.Module:
    """The backbone with its published weights, through timm (local cache or hub).

    Raises:
        InputError: if they are neither cached nor to be downloaded.
    """
    try:
        return timm.create_model(
            config.backbone, pretrained=True, num_classes=0, img_size=config.image_size, patch_size=config.patch_size
        )
    except Exception as error:  # timm and hub clients raise many kinds
        raise InputError(
            f"weights of {config.backbone} could not be loaded ({error}); fetch them on a machine with network by "
            f"timm.create_model({config.backbone!r}, pretrained=True) and copy the Hugging Face cache ($HF_HOME) here"
        ) from None
