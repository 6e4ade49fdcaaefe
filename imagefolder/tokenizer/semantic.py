"""Frozen networks with published weights: the teachers of the contrastive losses, and how such weights are found."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn

from imagefolder.checkpoints.hub import require_network
from imagefolder.config import TokenizerConfig
from imagefolder.errors import InputError, reason
from imagefolder.files import find_weights, require_finite, weight_folders
from imagefolder.tokenizer.vit import build_vit

TIMM_FILES = ("model.safetensors", "pytorch_model.bin")


class Teacher(nn.Module):
    """A timm vision transformer: (B, 3, H, W) in [-1, 1] -> feature (B, D).

    Images are normalised as its weights were trained with, and resized (bicubic) to its own size where that differs.

    Args:
        read: "class", its class feature (semantic regularisation); "patches", the mean of its patch features after the
            final norm (detail guidance).
    """

    def __init__(self, vit: nn.Module, read: Literal["class", "patches"] = "class") -> None:
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
        if self.read == "class":
            return self.vit(images)
        return self.vit.forward_features(images)[:, self.vit.num_prefix_tokens :].mean(1)


def blank_teacher(config: TokenizerConfig) -> Teacher:
    """A teacher of the tokenizer's shape, to be trained or loaded."""
    return Teacher(build_vit(config))


def pretrained_vit(config: TokenizerConfig) -> nn.Module:
    """The tokenizer's backbone with its published weights, resampled to its image and patch size."""
    return pretrained(config.backbone, img_size=config.image_size, patch_size=config.patch_size)


def pretrained(name: str, **shape: Any) -> nn.Module:
    """A timm model with its published weights: from a local file, timm's cache, or the hub.

    Args:
        name: timm name; the local file is `NAME.safetensors` in one of `imagefolder.files.weight_folders()`.
        shape: further arguments of `timm.create_model`.

    Raises:
        InputError: if they are in none of these places and the hub cannot be reached, or are damaged: unreadable, of
            another model, or not finite.
    """
    local = find_weights(f"{name}.safetensors")
    if local is None:
        repository = _repository(name)
        if not any(isinstance(try_to_load_from_cache(repository, file), str) for file in TIMM_FILES):
            places = ", ".join(map(str, weight_folders()))
            require_network(f"weights of {name} (model.safetensors of {repository}, as {name}.safetensors in {places})")
    try:
        # without custom_load, which has older versions of timm read some models' weights as numpy archives
        overlay = None if local is None else {"file": str(local), "custom_load": False}
        with _lacking() as lacking:
            vit = timm.create_model(name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay, **shape)
    except Exception as error:  # timm and hub clients raise many kinds
        raise InputError(
            f"weights of {name} could not be loaded from {local or repository} ({reason(error)})"
        ) from None
    if lacking:
        raise InputError(f"{local or repository}: these are not the weights of {name}: {lacking[0][:300]}")
    require_finite(vit.state_dict(), str(local or repository))
    return vit


@contextmanager
def _lacking() -> Iterator[list[str]]:
    """What timm mentions in its log, and only there, of weights that a file lacks: the model's random ones stay."""
    said: list[str] = []

    def note(record: logging.LogRecord) -> bool:
        if record.getMessage().startswith("Missing keys"):
            said.append(record.getMessage())
        return record.levelno >= level

    logger = logging.getLogger("timm.models._builder")
    own, level = logger.level, logger.getEffectiveLevel()
    logger.addFilter(note)
    logger.setLevel(logging.INFO)
    try:
        yield said
    finally:
        logger.setLevel(own)
        logger.removeFilter(note)


def _repository(name: str) -> str:
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise InputError(reason(error)) from None
    if config is None or not config.hf_hub_id:
        raise InputError(f"timm publishes no weights of {name!r}")
    return config.hf_hub_id
