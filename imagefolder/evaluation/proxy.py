"""The proxy extractor: a small classifier of the data, for metrics that need no published weights."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from imagefolder.data.images import to_float
from imagefolder.errors import InputError
from imagefolder.evaluation.extractor import Extractor, Widths, default_device
from imagefolder.files import file_sha256, reading
from imagefolder.tensors import read_tensors

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
    """A trained proxy network from its weight file, frozen; `InputError` if the file holds something else."""
    state = read_tensors(path)
    with reading(path, "weights of the proxy extractor"):
        net = ProxyNet(len(state["head.bias"]))
        net.load_state_dict(state)
    return net.eval().requires_grad_(False)


def proxy_extractor(path: Path) -> Extractor:
    """The proxy extractor of a data set from its weight file; `InputError` if it is missing or holds something else."""
    if not path.is_file():
        raise InputError(f"proxy extractor {path} does not exist")
    device = default_device()
    net = load_proxy(path).to(device)

    def network(images: Tensor) -> tuple[Tensor, ...]:
        return net(to_float(images))

    return Extractor(
        name=NAME,
        network=network,
        widths=Widths(FEATURES, net.head.out_features),
        device=device,
        prefix="proxy-",
        path=path,
        sha256=file_sha256(path),
        of_data=True,
    )
