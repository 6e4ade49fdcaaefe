"""Evaluation from Python: any model by the protocols of the tables, and FID between two sets of files."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from imagefolder.checkpoints.hub import HubModel
from imagefolder.checkpoints.native import native_sha256
from imagefolder.config import UNGUIDED
from imagefolder.data.builtin import BUILTIN, read_builtin
from imagefolder.data.folder import read_data
from imagefolder.data.images import DataSplits, safe_name, samples_to_uint8, to_float, to_uint8
from imagefolder.data.order import ordered_batches
from imagefolder.distributed import my_part
from imagefolder.environment import describe
from imagefolder.errors import InputError
from imagefolder.evaluation.extractor import Extractor
from imagefolder.evaluation.protocols import (
    evaluate_files,
    evaluate_reconstruction,
    labels_of,
    measure_reconstructions,
    measure_samples,
)
from imagefolder.evaluation.results import Measurement, Result
from imagefolder.evaluation.spaces import NAMED, extractors_for, named_extractor
from imagefolder.generator.export import weights_sha256
from imagefolder.generator.model import Generator
from imagefolder.generator.sampling import check_seed
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.training.classifier import read_classifier
from imagefolder.training.dataset import DatasetImages

LARGEST = 3.0  # absolute value of a reconstruction in [-1, 1] that was not clamped
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured.

    Attributes:
        metrics: by key of the protocol, as in the tables' records, e.g. 'proxy-rFID@1/digits/test/proxy-cnn:ab12cd34':
            values with their protocol and numbers of images.
        notes: what was not measured, and why.
        provenance: JSON values: the model and its weights' sha256, the data and its sha256, seed, sampling settings,
            commit, package versions and machine.
    """

    metrics: dict[str, Measurement]
    notes: list[str]
    provenance: dict[str, Any]

    def __getitem__(self, name: str) -> float:
        """A value by the name of its metric ('proxy-rFID') or by its key."""
        found = {m.value for key, m in self.metrics.items() if name in (key, m.protocol.name)}
        if len(found) != 1:
            names = ", ".join(dict.fromkeys(m.protocol.name for m in self.metrics.values()))
            raise KeyError(f"{name}: {'ambiguous, use its key' if found else f'not measured (measured: {names})'}")
        return found.pop()

    def __str__(self) -> str:
        """One line per metric."""
        lines = [f"{key}: {m.value:.6g} (n = {m.n_generated:,})" for key, m in self.metrics.items()]
        return "\n".join([*lines, *self.notes])


def evaluate(
    model: Any,
    data: str | Path | DataSplits | Dataset,
    *,
    extractor: str | Path | None = "inception",
    samples: int = 50_000,
    seed: int = 0,
    batch_size: int = 50,
    image_size: int | None = None,
    **sampling: Any,
) -> Evaluation:
    """Measure a model exactly as the tables measure theirs, so that values with equal keys can be compared.

    A model that reconstructs (`reconstruct(images)`, or `encode(images)` and `decode(tokens)`) is measured on the test
    images: images are float32 (B, 3, H, W) in [-1, 1]; it returns such images or uint8 ones. A model that samples
    (`sample(labels, seed=...)`) is measured against the training images, or ADM's reference of ImageNet with
    Inception: labels are int64 (B,), classes of the data in turn; it returns uint8 images (B, 3, H, W), float ones in
    [0, 1], or an object with them as `images`. Every batch gets a seed of its own. Torch modules get tensors on their
    device; they must be in evaluation mode. A `Generator` is measured without guidance as well.

    Args:
        model: a `Tokenizer`, a `Generator`, or any object with the methods above; with both, both are measured.
        data: a built-in data set ("digits"), a folder or archive as for training, or what one of them was read to; or a
            torch data set of (image, label) as for `train_tokenizer`, whose items are then both splits.
        extractor: "inception" for the published metrics (needs its weight file), "lite0" for EfficientNet-Lite0 (the
            extra `lite`), "dinov2" for FD-DINOv2 (needs its weight file), the .safetensors of a proxy extractor
            as `table2.py` trains it, or None for metrics that need none (PSNR, SSIM, LPIPS).
        samples: number of samples, for a model that samples.
        seed: of the samples.
        batch_size: images at a time. The samples of a `Generator` do not depend on it.
        image_size: side of the images; that of the model's configuration if it is one of ours, or of `data` if read.
        sampling: passed on to `sample` (`guidance`, `top_k`, ...).

    Raises:
        InputError: the object has none of the methods or returns something else, the data cannot be read, or the
            extractor's weights are absent.

    Warns:
        UserWarning: reconstructions without a value below 0, as in [0, 1].
    """
    sampled, reconstructed = _methods(model)
    splits = _splits(data, image_size or _side(model))
    extractors = _extractors(extractor, splits)
    if sampled and not extractors:
        raise InputError("samples are measured through an extractor: pass extractor=..., 'inception' or a proxy's file")
    result = Result([])
    with torch.no_grad():
        if isinstance(model, Tokenizer):
            result += evaluate_reconstruction(model, splits, extractors, "reconstructing")
        elif reconstructed:
            result += measure_reconstructions(_pairs(model, splits, batch_size), splits, extractors)
        if sampled:
            result += _evaluate_samples(model, splits, extractors, samples, check_seed(seed), batch_size, sampling)
    provenance: dict[str, Any] = {
        "model": str(getattr(getattr(model, "config", None), "name", None) or type(model).__name__),
        "weights_sha256": _weights_sha256(model),
        "data": splits.name,
        "data_sha256": splits.sha256,
        **({"seed": seed, "samples": samples, "sampling": sampling} if sampled else {}),
        **describe(),
    }
    if isinstance(model, Generator):
        provenance["tokenizer_sha256"] = _weights_sha256(model.tokenizer)
        provenance["sampling"] = asdict(model.sampling) | sampling
    return Evaluation({m.protocol.key: m for m in result.measurements}, result.notes, provenance)


def fid(a: str | Path, b: str | Path, *, extractor: str | Path = "inception") -> float:
    """The Frechet distance of two sets of images in files: FID with Inception, else that of a proxy extractor.

    `python -m imagefolder.evaluation` prints it with its protocol, and the other metrics.

    Args:
        a: a folder of PNG files, or an npz with `arr_0` uint8 (N, H, W, 3); at least 10 images.
        b: the same, or an npz of statistics such as ADM's (`mu` and `sigma`).
        extractor: "inception", "lite0" or "dinov2" (each needs its weight file), or the .safetensors of a proxy.

    Raises:
        InputError: files that cannot be measured as they are (JPEG, other sizes, damage), or absent weights.
    """
    chosen = named_extractor(extractor)
    only = replace(chosen, metrics=frozenset({"FID", "gFID"}))  # the latter against ADM's reference
    result, _ = evaluate_files(Path(a), Path(b), [only])
    return result.measurements[0].value


def _methods(model: Any) -> tuple[bool, bool]:
    """Whether a model samples, and whether it reconstructs."""

    def has(name: str) -> bool:
        return callable(getattr(model, name, None))

    sampled, reconstructed = has("sample"), has("reconstruct") or (has("encode") and has("decode"))
    if not sampled and not reconstructed:
        raise InputError(
            f"{type(model).__name__} has neither sample(labels, seed) nor reconstruct(images) nor encode(images) and "
            "decode(tokens), so there is nothing to measure; pass an object with such methods"
        )
    if isinstance(model, nn.Module) and model.training:
        raise InputError(
            "the model is in training mode, in which layers such as dropout change its images; model.eval()"
        )
    return sampled, reconstructed


def _side(model: Any) -> int | None:
    """The image size of one of our models."""
    model = model.tokenizer if isinstance(model, Generator) else model
    return model.config.image_size if isinstance(model, Tokenizer) else None


def _splits(data: str | Path | DataSplits | Dataset, image_size: int | None) -> DataSplits:
    if isinstance(data, DataSplits):
        if image_size not in (None, data.image_size):
            raise InputError(f"the model's images have {image_size} pixels, those of {data.name} {data.image_size}")
        return data
    if image_size is None:
        raise InputError("pass image_size=..., the side of the images that the model takes or makes")
    if isinstance(data, str | Path):
        return read_builtin(str(data), image_size) if str(data) in BUILTIN else read_data(Path(data), image_size)
    if not isinstance(data, Dataset):
        what = type(data).__name__
        raise InputError(f"data must be the name of a built-in data set, a path or a torch Dataset, not of type {what}")
    images = DatasetImages(data, image_size)
    images.read_labels()
    classes = [str(label) for label in range(int(images.labels.max()) + 1)]
    return DataSplits(safe_name(images.name), images, images, classes, image_size)


def _extractors(extractor: str | Path | None, splits: DataSplits) -> list[Extractor]:
    """Those of the tables. What a proxy knows of classes and floors is of the data that it was trained on."""
    if extractor is None:
        return []
    if extractor == "inception":
        return extractors_for(None)
    if extractor in NAMED:
        return [named_extractor(extractor)]
    path = Path(extractor)
    about = read_classifier(path)[1] if path.with_suffix(".json").exists() else {}
    if about.get("dataset_sha256") == splits.sha256:
        return extractors_for(path, about.get("floors"))
    return [replace(each, of_data=False) for each in extractors_for(path)]


def _evaluate_samples(
    model: Any,
    splits: DataSplits,
    extractors: list[Extractor],
    samples: int,
    seed: int,
    batch_size: int,
    sampling: dict[str, Any],
) -> Result:
    """Classes in turn, as in `evaluate_generation`."""
    classes = torch.arange(samples) % len(splits.classes)
    labels = labels_of(classes, splits, model) if isinstance(model, Generator) else classes
    side, part = splits.image_size, my_part(samples)

    def batches(sampling: dict[str, Any]) -> Iterator[Tensor]:
        for start in range(part.start, part.stop, batch_size):
            indices = list(range(start, min(start + batch_size, part.stop)))
            if isinstance(model, Generator):
                made = model.sample(labels[indices], seed=seed, indices=indices, **sampling)
            else:
                own = random.Random(f"{seed}:{start}").getrandbits(31)
                made = model.sample(labels[indices].to(_device(model)), seed=own, **sampling)
            yield _sampled(getattr(made, "images", made), (len(indices), 3, side, side))

    return measure_samples(
        batches(sampling),
        splits,
        extractors,
        number=samples,
        size=(side, side),
        labels=classes,
        title="sampling",
        unguided=[batches(sampling | UNGUIDED)] if isinstance(model, Generator) else [],
    )


def _pairs(model: Any, splits: DataSplits, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Test images and their reconstructions, uint8 both."""
    test, lowest = splits.test.plain(), 0.0
    for originals, _ in ordered_batches(test, batch_size, my_part(len(test))):
        images = to_float(originals.to(_device(model)))
        whole = callable(getattr(model, "reconstruct", None))
        made = model.reconstruct(images) if whole else model.decode(model.encode(images))
        pixels, low = _reconstructed(made, tuple(originals.shape))
        lowest = min(lowest, low)
        yield originals, pixels
    if lowest == 0:
        warnings.warn(
            "no value of the reconstructions is below 0: if they lie in [0, 1], return images * 2 - 1", stacklevel=2
        )


def _reconstructed(images: Any, shape: tuple[int, ...]) -> tuple[Tensor, float]:
    """Reconstructions as uint8 on the CPU, and their lowest value: of uint8 ones, -1."""
    _require_images(images, shape, "reconstructions", "[-1, 1]")
    if images.dtype == torch.uint8:
        return images.cpu(), -1.0
    low, high = _range(images)
    if not (low >= -LARGEST and high <= LARGEST):  # written so that NaN fails
        raise InputError(f"reconstructions must be uint8, or float in [-1, 1], not {low:.4g} to {high:.4g}")
    return to_uint8(images.float()).cpu(), low


def _sampled(images: Any, shape: tuple[int, ...]) -> Tensor:
    """Samples as uint8 on the CPU."""
    _require_images(images, shape, "samples", "[0, 1]")
    if images.dtype == torch.uint8:
        return images.cpu()
    low, high = _range(images)
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):
        remedy = "; return (images + 1) / 2" if -1.1 <= low < 0 and high <= 1.1 else ""
        raise InputError(f"samples must be uint8, or float in [0, 1], not {low:.4g} to {high:.4g}{remedy}")
    return samples_to_uint8(images.float()).cpu()


def _require_images(images: Any, shape: tuple[int, ...], what: str, limits: str) -> None:
    fits = isinstance(images, Tensor) and tuple(images.shape) == shape
    if not fits or not (images.is_floating_point() or images.dtype == torch.uint8):
        found = (
            f"{str(images.dtype)[6:]} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        )
        raise InputError(f"{what} must be uint8, or float in {limits}, of shape {shape}, not {found}")


def _range(images: Tensor) -> tuple[float, float]:
    low, high = torch.stack(torch.aminmax(images.float())).tolist()
    return low, high


def _device(model: Any) -> torch.device:
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device


def _weights_sha256(model: Any) -> str | None:
    """Of one of our models, that of its weight file; of another module, over its state dict."""
    if isinstance(model, HubModel):
        return model.float32_sha256 or native_sha256(model.weights_module())
    return weights_sha256(model) if isinstance(model, nn.Module) else None
