"""The proxy feature extractor: a small classifier of the data at hand, run through torch-fidelity like any other."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import register_feature_extractor

from imagefolder.data.images import to_float

NAME = "proxy-cnn"
FEATURES = 64


class ProxyNet(nn.Module):
    """Three strided convolutions and global average pooling: (B, 3, H, W) in [-1, 1] -> (B, 64), and a linear head."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *self._block(3, 32), *self._block(32, 64), *self._block(64, FEATURES), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.head = nn.Linear(FEATURES, classes)

    @staticmethod
    def _block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, 64) and logits (B, classes)."""
        features = self.features(images)
        return features, self.head(features)


def load_proxy(path: Path) -> ProxyNet:
    """A trained extractor from its weight file, frozen."""
    state = load_file(path)
    net = ProxyNet(len(state["head.bias"]))
    net.load_state_dict(state)
    return net.eval().requires_grad_(False)


class ProxyExtractor(FeatureExtractorBase):
    """torch-fidelity's view of it: uint8 (B, 3, H, W) -> the requested of "features" and "logits"."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str, **_: object) -> None:
        super().__init__(name, features_list)
        self.net = load_proxy(Path(feature_extractor_weights_path))

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "features", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else "features"

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        return torch.zeros(1, 3, 32, 32, dtype=torch.uint8)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features, logits = self.net(to_float(images))
        by_name = {"features": features, "logits": logits}
        return tuple(by_name[name] for name in self.features_list)


register_feature_extractor(NAME, ProxyExtractor)
