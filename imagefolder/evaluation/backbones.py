"""Feature spaces of networks that timm has: those of FDr-6 (arXiv 2604.28190) beside Inception's.

DINOv2 is prepared and resized as by torch-fidelity's extractor `dinov2-vit-l-14`, the others by timm's configuration.
Their weights must be on this machine; nothing is downloaded, and no other network takes the place of one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2

from imagefolder.evaluation.extractor import TORCH_FIDELITY, Extractor, Widths, default_device, resized
from imagefolder.files import checked_sha256
from imagefolder.weights import CLIP, CONVNEXT, DINOV2, MAE, SIGLIP, local_backbone, pretrained

DISTANCES = frozenset({"gFID", "FID"})
DINO_NAME = "dinov2-vit-l-14"  # torch-fidelity's


@dataclass(frozen=True)
class Backbone:
    """A network of timm as a feature space; metrics begin with `prefix`."""

    prefix: str
    timm: str
    metrics: frozenset[str] = DISTANCES


DINO_SPACE = Backbone("dinov2-", DINOV2, DISTANCES | {"rFID", "precision", "recall"})
OTHER_SPACES = (
    Backbone("convnext-", CONVNEXT), Backbone("mae-", MAE), Backbone("siglip-", SIGLIP), Backbone("clip-", CLIP),
)  # fmt: skip


class _Timm(nn.Module):
    """uint8 (B, 3, H, W) -> what the network feeds to its classifier, (B, D)."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.net: Any = pretrained(backbone.timm).eval().requires_grad_(False)
        config = self.net.pretrained_cfg
        self.side: int = config["input_size"][-1]
        self.mean: tuple[float, ...] = config["mean"]
        self.std: tuple[float, ...] = config["std"]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self.net(resized(images, self.side, self.mean, self.std)),)


class _Dino(FeatureExtractorDinoV2):
    """torch-fidelity's extractor on weights of a file: it loads only those that it downloads itself.

    uint8 (B, 3, H, W) -> class token (B, D).
    """

    def __init__(self, backbone: Backbone) -> None:
        FeatureExtractorBase.__init__(self, DINO_NAME, ["dinov2"])
        self.feature_extractor_internal_dtype = torch.float32
        self.model = dino_at(pretrained(backbone.timm), self.INPUT_IMAGE_SIZE)
        self.eval().requires_grad_(False)


def dino_at(vit: Any, side: int) -> nn.Module:
    """A DINOv2 of timm for images of another size, its positions interpolated as DINOv2's own code does it."""
    positions = vit.pos_embed.detach()
    vit.set_input_size((side, side))  # timm interpolates in another way
    grid, (new, _) = round((positions.shape[1] - 1) ** 0.5), vit.patch_embed.grid_size
    table = positions[:, 1:].reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
    table = F.interpolate(table, scale_factor=(new + 0.1) / grid, mode="bicubic")  # the offset is DINOv2's
    vit.pos_embed = nn.Parameter(torch.cat([positions[:, :1], table.flatten(2).transpose(1, 2)], dim=1))
    return vit


def backbone_extractor(backbone: Backbone) -> Extractor:
    """The extractor of one of the spaces above.

    Raises:
        WeightsAbsent, InputError: the weights are not on this machine, or damaged.
    """
    path, device = local_backbone(backbone.timm), default_device()
    dino = backbone.prefix == DINO_SPACE.prefix
    network: Any = _Dino(backbone) if dino else _Timm(backbone)
    width = (network.model if dino else network.net).num_features
    return Extractor(
        name=DINO_NAME if dino else backbone.timm,
        network=network.to(device),
        widths=Widths(width),
        device=device,
        prefix=backbone.prefix,
        path=path,
        sha256=checked_sha256(path),
        evaluator=TORCH_FIDELITY if dino else f"{TORCH_FIDELITY}, timm {metadata.version('timm')}",
        metrics=backbone.metrics,
    )
