"""The ways to measure the same images that `reproductions/evaluators.py` compares.

A metric measured as everywhere in this project keeps its name and protocol. One measured in another way is named
"METRIC [GROUP: VARIANT]", so that neither a table nor a claim can take it for the metric.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from torch_fidelity.metric_isc import isc_features_to_metric

from imagefolder.data.images import to_float
from imagefolder.evaluation import clean, proxy
from imagefolder.evaluation.extractor import TORCH_FIDELITY, Extractor, default_device
from imagefolder.evaluation.fidelity import fidelity
from imagefolder.evaluation.files import PngFolder
from imagefolder.evaluation.metrics import frechet
from imagefolder.evaluation.results import Measurement, Protocol
from imagefolder.evaluation.statistics import IS_SPLITS, MeanCovariance, Statistics, measure
from imagefolder.weights import CLEAN_INCEPTION, FILES, WeightsAbsent, require

ADM_SPLIT = 5000
CROP = 1.125  # the enlarged image's side, in sides of its centre crop
JPEG_QUALITIES = (95, 75)
ORIGINALS = "their originals"
VERSION = 1  # of the protocols of all variants
NAMES = {"r": "rFID", "g": "gFID", "": "FID"}

Transform = Callable[[Tensor], Tensor]
"""uint8 (B, 3, H, W) to the same."""


@dataclass(frozen=True)
class Real:
    """The real side of a distance: `name` as in protocols, `what` in words, mean and covariance of `number` images."""

    name: str
    what: str
    statistics: MeanCovariance
    number: int


class Variants:
    """One set of images in PNG files, measured in many ways through one extractor.

    Args:
        extractor: the proxy, or the published Inception.
        folder: the images, uint8 PNGs.
        what: they are, in words.
        kind: "r" for reconstructions, "g" for samples, "" for others.
    """

    def __init__(self, extractor: Extractor, folder: Path, what: str, kind: str) -> None:
        self.extractor, self.folder, self.what = extractor, folder, what
        self.metric = f"{extractor.prefix}{NAMES[kind]}"
        self.images = PngFolder(folder)
        self.is_proxy = extractor.name == proxy.NAME
        self.notes: list[str] = []
        """what cannot be measured here, and why"""

    @cached_property
    def statistics(self) -> Statistics:
        """Of all images as they are."""
        return self.measured(self.images)

    def measured(self, images: PngFolder, transform: Transform | None = None, number: int | None = None) -> Statistics:
        """Statistics of the first `number` images (None: all) of a folder, each transformed."""
        n = len(images) if number is None else number
        batches = images.batches(range(n))
        changed = batches if transform is None else map(transform, batches)
        (found,) = measure(changed, [self.extractor], n, f"{self.what}: features")
        return found

    def programs(self, originals: Path, name: str) -> Iterator[Measurement]:
        """Programs that read the files themselves: the images against their originals."""
        real = {"reference": name, "n_real": len(PngFolder(originals))}
        text = f"{self.what} against {ORIGINALS}, both 8-bit"
        values = fidelity(str(self.folder), str(originals), self.extractor, ("fid",))
        value = values["frechet_inception_distance"]
        yield self._distance("program", f"{TORCH_FIDELITY}'s own program", text, value, **real)
        if self.is_proxy:
            value, variant = self._clean_fid(originals, lambda image: image), f"{clean.VERSION} without resizing"
            yield self._distance("program", variant, text, value, evaluator=clean.VERSION, **real)

    def filters(self, originals: Path, name: str) -> Iterator[Measurement]:
        """clean-fid with its filters that resize to the network's input size, without rounding."""
        network: dict[str, Any] = {}
        if not self.is_proxy:
            try:
                require(CLEAN_INCEPTION)
            except WeightsAbsent as error:
                self.notes.append(f"resize filters of clean-fid not measured: {error}")
                return
            network = {"extractor": "inception-2015-12-05", "extractor_sha256": FILES[CLEAN_INCEPTION].sha256}
        real = {"reference": name, "n_real": len(PngFolder(originals)), "evaluator": clean.VERSION, **network}
        height, width = self.images.size
        # The proxy takes any size: twice the images', as 299 is more than 256
        size = (2 * height, 2 * width) if self.is_proxy else (299, 299)
        text = f"{self.what} against {ORIGINALS}, both resized to {size[1]} x {size[0]} and not rounded"
        for variant, resize in resizers(size).items():
            yield self._distance("resize filter", variant, text, self._clean_fid(originals, resize), **real)

    def against(
        self, group: str, variant: str, real: Real, statistics: Statistics | None = None, how: str = "both 8-bit"
    ) -> Measurement:
        """The distance of the images, or of other `statistics` of them, from a real side."""
        seen = self.statistics if statistics is None else statistics
        value, text = frechet(seen.pooled.statistics(), real.statistics), f"{self.what} against {real.what}, {how}"
        return self._distance(group, variant, text, value, reference=real.name, n_real=real.number, n=seen.number)

    def formats(self, real: Real) -> Iterator[Measurement]:
        """The images stored as JPEG before they are measured."""
        for quality in JPEG_QUALITIES:
            variant = f"JPEG, quality {quality}"
            seen = self.measured(self.images, jpeg(quality))
            yield self.against("format", variant, real, seen, f"the former stored as {variant}")

    def numbers(self, real: Real) -> Iterator[Measurement]:
        """Half of the images."""
        half = len(self.images) // 2
        if half >= IS_SPLITS:
            seen = self.measured(self.images, number=half)
            yield self.against("number of images", f"the first {half:,}", real, seen)

    def splits(self, originals: Path) -> Iterator[Measurement]:
        """Splits of the Inception score; `originals` only because torch-fidelity's program takes two folders."""
        batches = self.images.batches(range(len(self.images)))
        logits = torch.cat([self.extractor(batch).logits.cpu() for batch in batches])
        by_class = logits[logits.argmax(-1).argsort(stable=True)]
        values = fidelity(str(self.folder), str(originals), self.extractor, ("isc",))
        scores = {
            f"{TORCH_FIDELITY}'s own program": (values["inception_score_mean"], values["inception_score_std"]),
            f"{IS_SPLITS} in the order of the files": _score(logits, IS_SPLITS),
            f"{IS_SPLITS} of images sorted by class": _score(by_class, IS_SPLITS),
        }
        if len(logits) >= 2 * ADM_SPLIT:
            scores[f"of {ADM_SPLIT:,} in the order of the files"] = _score(logits, len(logits) // ADM_SPLIT)
        for variant, (score, spread) in scores.items():
            name = f"{self.extractor.prefix}IS [splits: {variant}]"
            text = f"Inception score formula, {self.what}; splits: {variant}"
            protocol = self._protocol(name, text, "none", higher_is_better=True)
            yield Measurement(protocol, score, 0, len(logits), spread)

    def _distance(
        self,
        group: str,
        variant: str,
        text: str,
        value: float,
        *,
        reference: str,
        n_real: int,
        n: int | None = None,
        **protocol: Any,
    ) -> Measurement:
        name, text = f"{self.metric} [{group}: {variant}]", f"Frechet distance of {text}"
        found = self._protocol(name, text, reference, **protocol)
        return Measurement(found, float(value), n_real, len(self.images) if n is None else n)

    def _protocol(self, name: str, text: str, reference: str, **fields: Any) -> Protocol:
        """With the extractor and its usual evaluator, unless `fields` say otherwise."""
        extractor = self.extractor
        usual = {"evaluator": extractor.evaluator, "extractor": extractor.name, "extractor_sha256": extractor.sha256}
        known = {"version": VERSION, "higher_is_better": False, **usual, **fields}
        return Protocol(name=name, description=text, reference=reference, **known)

    def _clean_fid(self, originals: Path, resize: Callable[[np.ndarray], np.ndarray]) -> float:
        from cleanfid import fid

        with warnings.catch_warnings():  # deprecated calls inside
            warnings.simplefilter("ignore")
            value = fid.compute_fid(
                str(self.folder),
                str(originals),
                custom_feat_extractor=self._on_floats(),
                custom_fn_resize=resize,
                device=default_device(),
                use_dataparallel=False,
                num_workers=0,
                verbose=False,
            )
        return float(value)

    def _on_floats(self) -> Callable[[Tensor], Tensor]:
        """The pooled features of float images (B, 3, H, W) in 0..255 at the network's size, as clean-fid asks for."""
        if self.is_proxy:
            assert self.extractor.path is not None
            net = proxy.load_proxy(self.extractor.path).to(self.extractor.device)
            return lambda images: net.features(images / 127.5 - 1)
        from cleanfid.inception_torchscript import InceptionV3W

        return InceptionV3W(str(require(CLEAN_INCEPTION).parent), download=False).to(self.extractor.device).eval()


def resizers(size: tuple[int, int]) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """The filters of clean-fid's modes, uint8 (H, W, 3) -> float32 (*size, 3)."""
    from cleanfid.resize import make_resizer

    def tensorflow(image: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
        return interpolate_bilinear_2d_like_tensorflow1x(x, size, align_corners=False)[0].permute(1, 2, 0).numpy()

    with warnings.catch_warnings():  # building one switches all warnings off
        return {
            "TensorFlow 1 bilinear, as published (clean-fid legacy_tensorflow)": tensorflow,
            "bicubic with antialiasing (clean-fid clean)": make_resizer("PIL", False, "bicubic", size[::-1]),
            "bilinear (clean-fid legacy_pytorch)": make_resizer("PyTorch", False, "bilinear", size),
        }


def cropped(images: Tensor) -> Tensor:
    """Centre crop of a slightly enlarged copy, as training loaders do it; uint8 (B, 3, H, W)."""
    side = images.shape[-1]
    margin = max(1, round(side * (1 - 1 / CROP) / 2))
    inner = to_float(images)[..., margin:-margin, margin:-margin]
    resized = F.interpolate(inner, images.shape[-2:], mode="bicubic", antialias=True)
    return (127.5 * resized + 128).clamp(0, 255).to(torch.uint8)


def jpeg(quality: int) -> Transform:
    """Images stored as JPEG and read back."""

    def store(image: np.ndarray) -> np.ndarray:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="JPEG", quality=quality)
        return np.asarray(Image.open(buffer))

    def transform(images: Tensor) -> Tensor:
        stored = np.stack([store(image) for image in images.permute(0, 2, 3, 1).numpy()])
        return torch.from_numpy(stored).permute(0, 3, 1, 2).contiguous()

    return transform


def _score(logits: Tensor, splits: int) -> tuple[float, float]:
    values = isc_features_to_metric(logits, splits, shuffle=False)
    return values["inception_score_mean"], values["inception_score_std"]
