"""The Inception of the published metrics (2015-12-05), as torch-fidelity ports it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from imagefolder.evaluation.extractor import Extractor, Widths, default_device
from imagefolder.weights import FILES, INCEPTION, require

NAME = "inception-v3-compat"  # torch-fidelity's name of the network
SPATIAL_CHANNELS = 7  # of 192, on 17 x 17 positions


class _Inception(nn.Module):
    """uint8 (B, 3, H, W) -> pooled (B, 2048), logits without bias (B, 1008), spatial (B, 2023)."""

    def __init__(self, path: Path) -> None:
        from torch_fidelity.utils import create_feature_extractor

        super().__init__()
        self.net = create_feature_extractor(
            NAME, ["2048", "logits_unbiased"], cuda=False, feature_extractor_weights_path=str(path), verbose=False
        )
        self.spatial = torch.empty(0)
        self.net.Mixed_6d.branch1x1.register_forward_hook(self._keep)  # ADM's mixed_6/conv, after its ReLU

    def _keep(self, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        self.spatial = output[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        pooled, logits = self.net(images)
        return pooled, logits, self.spatial


def inception_extractor() -> Extractor:
    """The extractor of the published metrics.

    Raises:
        WeightsAbsent, InputError: see `imagefolder.weights.require`.
    """
    path, device = require(INCEPTION), default_device()
    return Extractor(
        name=NAME,
        network=_Inception(path).to(device),
        widths=Widths(2048, 1008, 2023),
        device=device,
        prefix="",
        path=path,
        sha256=FILES[INCEPTION].sha256,
        reference="published",
        classes="Inception's 1008",
    )
