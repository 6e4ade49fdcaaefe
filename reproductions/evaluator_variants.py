"""The ways to measure the same images that `reproductions/evaluators.py` compares."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from torch_fidelity.metric_isc import isc_features_to_metric

from imagefolder.data.digits import digits
from imagefolder.data.images import Images, samples_to_uint8, to_float
from imagefolder.data.order import ordered_batches
from imagefolder.errors import InputError
from imagefolder.evaluation import clean, proxy
from imagefolder.evaluation.extractor import TORCH_FIDELITY, Extractor, default_device
from imagefolder.evaluation.fidelity import fidelity
from imagefolder.evaluation.files import PngFolder
from imagefolder.evaluation.metrics import frechet
from imagefolder.evaluation.statistics import IS_SPLITS, Statistics, measure
from imagefolder.training.classifier import finish_classifier, read_classifier, save_classifier, train_classifier
from imagefolder.weights import CLEAN_INCEPTION, WeightsAbsent, require

STEPS, BATCH, SEED = 500, 64, 0  # of a proxy trained here, as at scale mini
ADM_SPLIT = 5000
CROP = 1.125  # the enlarged image's side, in sides of its centre crop

Transform = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Variant:
    """One of a group of ways to compute a metric, and its value, or the `reason` why there is none."""

    group: str
    variant: str
    metric: str
    value: float | None
    n: int
    n_real: int
    reason: str = ""


@dataclass(frozen=True)
class Folders:
    """Folders of PNGs: images and their reference; `rounded` holds the images rounded to 8 bits, not truncated."""

    images: Path
    reference: Path
    training: Path | None = None
    rounded: Path | None = None


class Variants:
    """All variants for some folders and an extractor: the proxy or the published Inception."""

    def __init__(self, folders: Folders, extractor: Extractor) -> None:
        self.folders, self.extractor, self.is_proxy = folders, extractor, extractor.name == proxy.NAME
        images, reference = PngFolder(folders.images), PngFolder(folders.reference)
        if images.size != reference.size:
            raise InputError(f"{images.path} and {reference.path} differ in image size; crop both the same way first")
        self.n, self.n_real, self.size = len(images), len(reference), images.size
        self.statistics: dict[tuple[Path, Transform | None], Statistics] = {}

    def all(self) -> list[Variant]:
        """All of them; the first of each group is what this project does."""
        return [*self.programs(), *self.filters(), *self.references(), *self.formats(), *self.scores()]

    def programs(self) -> Iterator[Variant]:
        """Programs that read the files themselves."""
        images, reference = self.folders.images, self.folders.reference
        yield self._fid("program", "imagefolder, streamed", self._distance(images, reference))
        values = fidelity(str(images), str(reference), self.extractor, ("fid",))
        yield self._fid("program", TORCH_FIDELITY, values["frechet_inception_distance"])
        if self.is_proxy:
            yield self._fid("program", f"{clean.VERSION}, no resizing", self._clean_fid(lambda image: image))

    def filters(self) -> Iterator[Variant]:
        """clean-fid with its filters that resize to the network's input size, without rounding."""
        group = "resize filter"
        if not self.is_proxy:
            try:
                require(CLEAN_INCEPTION)
            except WeightsAbsent as error:
                yield Variant(group, "clean-fid's modes", "FID", None, self.n, self.n_real, str(error))
                return
        height, width = self.size
        # The proxy takes any size: twice the images', as 299 is more than 256
        size = (2 * height, 2 * width) if self.is_proxy else (299, 299)
        for name, resize in resizers(size).items():
            yield self._fid(group, f"{name}, to {size[1]} x {size[0]}", self._clean_fid(resize))

    def references(self) -> Iterator[Variant]:
        """What the images are compared with."""
        group, folders = "reference", self.folders
        yield self._fid(group, "originals, same crop", self._distance(folders.images, folders.reference))
        if folders.training is None:
            yield self._fid(group, "training images", None, 0, "give the training images with --training")
        else:
            value = self._distance(folders.images, folders.training)
            yield self._fid(group, "training images", value, len(PngFolder(folders.training)))
        value = self._distance(folders.images, folders.reference, of_reference=cropped)
        yield self._fid(group, f"originals cropped from {CROP} x the size", value)

    def formats(self) -> Iterator[Variant]:
        """How the images are stored."""
        group, folders = "format", self.folders
        yield self._fid(group, "8 bits, lossless", self._distance(folders.images, folders.reference))
        for quality in (95, 75):
            value = self._distance(folders.images, folders.reference, of_images=jpeg(quality))
            yield self._fid(group, f"JPEG, quality {quality}", value)
        rounded, reason = None, "8-bit files hold no fractions"
        if folders.rounded is not None:
            rounded, reason = self._distance(folders.rounded, folders.reference), ""
        yield self._fid(group, "rounded instead of truncated", rounded, reason=reason)

    def scores(self) -> Iterator[Variant]:
        """Splits of the Inception score."""
        logits = torch.cat([self.extractor(batch).logits.cpu() for batch in _batches(self.folders.images)])
        by_class = logits[logits.argmax(-1).argsort(stable=True)]
        values = fidelity(str(self.folders.images), str(self.folders.reference), self.extractor, ("isc",))
        scores = {
            "imagefolder: 10 shuffled splits": self._measured(self.folders.images).score.value()[0],
            f"{TORCH_FIDELITY}: 10 shuffled splits": values["inception_score_mean"],
            "10 splits in the order of the files": _score(logits, IS_SPLITS),
            "10 splits of class-sorted images": _score(by_class, IS_SPLITS),
        }
        if self.n >= 2 * ADM_SPLIT:
            scores["splits of 5000 in the order of the files, as ADM's"] = _score(logits, self.n // ADM_SPLIT)
        for variant, score in scores.items():
            yield Variant("IS splits", variant, f"{self.extractor.prefix}IS", score, self.n, 0)

    def _fid(
        self, group: str, variant: str, value: float | None, n_real: int | None = None, reason: str = ""
    ) -> Variant:
        real = self.n_real if n_real is None else n_real
        return Variant(group, variant, f"{self.extractor.prefix}FID", value, self.n, real, reason)

    def _distance(
        self, images: Path, reference: Path, of_images: Transform | None = None, of_reference: Transform | None = None
    ) -> float:
        first, second = self._measured(images, of_images), self._measured(reference, of_reference)
        return frechet(first.pooled.statistics(), second.pooled.statistics())

    def _measured(self, folder: Path, transform: Transform | None = None) -> Statistics:
        key = (folder, transform)
        if key not in self.statistics:
            batches = _batches(folder) if transform is None else map(transform, _batches(folder))
            n, title = len(PngFolder(folder)), f"{folder.name}: features"
            (self.statistics[key],) = measure(batches, [self.extractor], n, title)
        return self.statistics[key]

    def _clean_fid(self, resize: Callable[[np.ndarray], np.ndarray]) -> float:
        from cleanfid import fid

        with warnings.catch_warnings():  # deprecated calls inside
            warnings.simplefilter("ignore")
            value = fid.compute_fid(
                str(self.folders.images),
                str(self.folders.reference),
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
    """Images stored as JPEG and read back, uint8 (B, 3, H, W)."""

    def store(image: np.ndarray) -> np.ndarray:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="JPEG", quality=quality)
        return np.asarray(Image.open(buffer))

    def transform(images: Tensor) -> Tensor:
        stored = np.stack([store(image) for image in images.permute(0, 2, 3, 1).numpy()])
        return torch.from_numpy(stored).permute(0, 3, 1, 2).contiguous()

    return transform


def halved(images: Tensor) -> Tensor:
    """A crude reconstruction: downsampled by two and back. uint8 (B, 3, H, W) -> float in [0, 1]."""
    small = F.avg_pool2d(images.float() / 255, 2)
    return F.interpolate(small, images.shape[-2:], mode="bicubic").clamp(0, 1)


def digit_folders(folder: Path) -> Folders:
    """Test digits, their reconstructions, truncated and rounded, and the training digits as PNG files."""
    splits, folders = digits(), Folders(*(folder / name for name in ("images", "originals", "training", "rounded")))
    _write(folder / "originals", splits.test, lambda x: x)
    _write(folder / "training", splits.train, lambda x: x)
    _write(folder / "images", splits.test, lambda x: samples_to_uint8(halved(x)))
    _write(folder / "rounded", splits.test, lambda x: samples_to_uint8(halved(x) + 0.5 / 255))
    return folders


def digit_extractor(output: Path) -> Extractor:
    """The proxy extractor of the digits that a run at scale mini left below `output`, or one trained here."""
    finished = sorted(output.glob("mini-digits-*/proxies/extractor.json"))
    path = (finished[0] if finished else output / "evaluators-extractor.json").with_suffix(".safetensors")
    if not path.with_suffix(".json").exists():
        torch.manual_seed(SEED)
        splits, title = digits(), "proxy extractor: training"
        net = proxy.ProxyNet(len(splits.classes)).to(default_device())
        train_classifier(net.features, net.head, splits.train, steps=STEPS, batch_size=BATCH, seed=SEED, title=title)
        save_classifier(path, net)
        finish_classifier(path, {"steps": STEPS, "seed": SEED})
    read_classifier(path)  # checks the hash of the weights
    return proxy.proxy_extractor(path)


def _batches(folder: Path) -> Iterator[Tensor]:
    images = PngFolder(folder)
    return images.batches(range(len(images)))


def _score(logits: Tensor, splits: int) -> float:
    return isc_features_to_metric(logits, splits, shuffle=False)["inception_score_mean"]


def _write(folder: Path, images: Images, transform: Transform) -> None:
    folder.mkdir()
    index = 0
    for batch, _ in ordered_batches(images.plain(), 100):
        for image in transform(batch).permute(0, 2, 3, 1).numpy():
            Image.fromarray(image).save(folder / f"{index:05d}.png")
            index += 1
