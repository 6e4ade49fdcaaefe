"""Feature extractors: the published Inception, clean-fid's, and the proxy, a small classifier of the data at hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
import torch_fidelity
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import build_resizer
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import register_feature_extractor
from torch_fidelity.utils import create_feature_extractor

from imagefolder.data.images import to_float
from imagefolder.errors import InputError
from imagefolder.files import file_sha256, read_tensors, reading
from imagefolder.numerics import without_tf32
from imagefolder.weights import CLEAN_INCEPTION, FILES, INCEPTION, require

NAME = "proxy-cnn"
FEATURES = 64
TORCH_FIDELITY = f"torch-fidelity {torch_fidelity.__version__}"
PUBLISHED = "inception-v3-compat"  # torch-fidelity's name of the 2015-12-05 network
SPATIAL_CHANNELS = 7  # of 192, on 17 x 17 positions


@dataclass(frozen=True)
class Activations:
    """What an extractor sees in B images, float32; of width 0 where it has no such output.

    `pooled` (B, D) for Frechet distances, precision and recall; `logits` (B, C) for the Inception score; `spatial`
    (B, S) for sFID.
    """

    pooled: Tensor
    logits: Tensor
    spatial: Tensor


@dataclass(frozen=True)
class Extractor:
    """A frozen network that metrics rest on, called with uint8 (B, 3, H, W).

    `network` gives pooled features, logits and spatial features, `widths` their widths. `prefix` goes before the names
    of metrics ("proxy-", "clean-"; "" for the published ones); `floors` are the proxy metrics between real images.
    """

    name: str
    path: Path
    sha256: str
    network: Callable[[Tensor], tuple[Tensor, ...]]
    widths: tuple[int, int, int]
    device: torch.device
    prefix: str = ""
    evaluator: str = TORCH_FIDELITY
    floors: dict[str, float] = field(default_factory=dict)

    @property
    def is_proxy(self) -> bool:
        """Whether its classes are those of the data at hand and its values compare with one another only."""
        return self.prefix == "proxy-"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Activations:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise InputError(f"images to measure must be uint8 (B, 3, H, W), not {images.dtype} {tuple(images.shape)}")
        with without_tf32(self.device):  # the same features on every GPU
            outputs = self.network(images.to(self.device))
        missing = (outputs[0].new_zeros(len(images), 0),) * (3 - len(outputs))
        return Activations(*outputs, *missing)


def default_device() -> torch.device:
    """The GPU of this process, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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


def proxy_extractor(path: Path, floors: dict[str, float] | None = None) -> Extractor:
    """The proxy extractor of a data set from its weight file, with its metrics between real images where known."""
    if not path.is_file():
        raise InputError(f"proxy extractor {path} does not exist")
    device = default_device()
    network = _created(NAME, ["features", "logits"], path).to(device)
    widths = (FEATURES, network.net.head.out_features, 0)
    return Extractor(NAME, path, file_sha256(path), network, widths, device, "proxy-", floors=floors or {})


class _Inception(nn.Module):
    """torch-fidelity's Inception; uint8 (B, 3, H, W) -> pooled 2048, logits without bias 1008, spatial 2023."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.net = _created(PUBLISHED, ["2048", "logits_unbiased"], path)
        self.spatial = torch.empty(0)
        self.net.Mixed_6d.branch1x1.register_forward_hook(self._keep)  # ADM's mixed_6/conv, after its ReLU

    def _keep(self, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        self.spatial = output[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        pooled, logits = self.net(images)
        return pooled, logits, self.spatial


def inception_extractor() -> Extractor:
    """The Inception of the published metrics (2015-12-05), as torch-fidelity has it.

    Raises:
        WeightsAbsent, InputError: see `imagefolder.weights.require`.
    """
    path, device = require(INCEPTION), default_device()
    network = _Inception(path).to(device)
    return Extractor(PUBLISHED, path, str(FILES[INCEPTION].sha256), network, (2048, 1008, 2023), device)


def clean_extractor() -> Extractor:
    """The same network as clean-fid uses it in its "clean" mode: images resized with antialiasing, not rounded.

    Raises:
        WeightsAbsent, InputError: see `imagefolder.weights.require`.
    """
    path, device = require(CLEAN_INCEPTION), default_device()
    inception, resize = InceptionV3W(str(path.parent), download=False).to(device).eval(), build_resizer("clean")

    def network(images: Tensor) -> tuple[Tensor, ...]:
        resized = np.stack([resize(image) for image in images.permute(0, 2, 3, 1).cpu().numpy()])
        return (inception(torch.from_numpy(resized).permute(0, 3, 1, 2).to(device)).float(),)

    version = f"clean-fid {metadata.version('clean-fid')}"
    sha256 = str(FILES[CLEAN_INCEPTION].sha256)
    return Extractor("inception-2015-12-05", path, sha256, network, (2048, 0, 0), device, "clean-", version)


def _created(name: str, features: list[str], path: Path) -> FeatureExtractorBase:
    return create_feature_extractor(name, features, cuda=False, feature_extractor_weights_path=str(path), verbose=False)
