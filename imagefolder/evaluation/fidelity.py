"""torch-fidelity's own program on whole sets of images, to check the streamed values against."""

from __future__ import annotations

from pathlib import Path

import torch
import torch_fidelity
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import register_feature_extractor

from imagefolder.data.images import to_float
from imagefolder.evaluation import proxy
from imagefolder.evaluation.extractor import Extractor
from imagefolder.evaluation.statistics import IS_SPLITS


class _Proxy(FeatureExtractorBase):
    """The proxy in torch-fidelity's interface: uint8 (B, 3, H, W) -> "features" and "logits", as requested."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str, **_: object) -> None:
        super().__init__(name, features_list)
        self.net = proxy.load_proxy(Path(feature_extractor_weights_path))

    get_provided_features_list = staticmethod(lambda: ("features", "logits"))
    get_default_feature_layer_for_metric = staticmethod(lambda metric: "logits" if metric == "isc" else "features")
    get_dummy_input_for_compile = staticmethod(lambda: torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    can_be_compiled = staticmethod(lambda: False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features, logits = self.net(to_float(images))
        by_name = {"features": features, "logits": logits}
        return tuple(by_name[name] for name in self.features_list)


register_feature_extractor(proxy.NAME, _Proxy)


class _Images(Dataset):
    """A data set of uint8 tensors, as torch-fidelity takes them."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def fidelity(
    generated: Tensor | str, real: Tensor | str, extractor: Extractor, metrics: tuple[str, ...]
) -> dict[str, float]:
    """Run torch-fidelity's program.

    Args:
        generated: uint8 (N, 3, H, W), or a folder of images.
        real: the same.
        extractor: the proxy or the published Inception.
        metrics: of "fid", "isc", "prc", "kid".

    Returns:
        torch-fidelity's dictionary (frechet_inception_distance, inception_score_mean, precision, ...).
    """
    return torch_fidelity.calculate_metrics(
        input1=_Images(generated) if isinstance(generated, Tensor) else generated,
        input2=_Images(real) if isinstance(real, Tensor) else real,
        samples_find_deep=True,
        cuda=torch.cuda.is_available(),
        feature_extractor=extractor.name,
        feature_extractor_weights_path=str(extractor.path),
        cache=False,  # its cache knows extractors by name, not by weights
        verbose=False,
        save_cpu_ram=True,
        isc_splits=IS_SPLITS,
        **dict.fromkeys(metrics, True),
    )
