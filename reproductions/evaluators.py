"""How far apart the numbers for the same images are: evaluators, references, crops, filters, formats, IS splits.

python reproductions/evaluators.py                                      # digits, proxy extractor, a minute
python reproductions/evaluators.py --images DIR --reference DIR         # PNG files of your own

Within a group all rows are about the same images. A difference is one of method, not of quality.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from PIL import Image
from torch import Tensor
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from torch_fidelity.metric_isc import isc_features_to_metric

from imagefolder.data.digits import digits
from imagefolder.data.images import Images, samples_to_uint8, to_float
from imagefolder.data.order import ordered_batches
from imagefolder.environment import describe
from imagefolder.errors import InputError, one_line
from imagefolder.evaluation.extractor import (
    TORCH_FIDELITY,
    Extractor,
    ProxyNet,
    clean_extractor,
    default_device,
    inception_extractor,
    load_proxy,
    proxy_extractor,
)
from imagefolder.evaluation.files import PngFolder
from imagefolder.evaluation.metrics import fidelity, frechet
from imagefolder.evaluation.statistics import IS_SPLITS, Statistics, measure
from imagefolder.files import write_atomically
from imagefolder.progress import console, display
from imagefolder.training.classifier import finish_classifier, read_classifier, save_classifier, train_classifier
from imagefolder.weights import WeightsAbsent

STEPS, BATCH, SEED = 500, 64, 0  # of a proxy trained here, as at scale mini
ADM_SPLIT = 5000
CROP = 1.125  # a crop of this much less than the image, resized back

Transform = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Options:
    """The same images through several evaluators, and with the mistakes that are easily made."""

    images: Path | None = None
    """folder of PNG files: samples or reconstructions (default: digits stored at half the resolution)"""
    reference: Path | None = None
    """folder of PNG files to compare them with: the originals"""
    training: Path | None = None
    """folder of PNG files of the training images, for the row with the wrong reference"""
    extractor: str | None = None
    """inception, or a proxy extractor's .safetensors (default: that of the digits below OUTPUT, else a new one)"""
    output: Path = Path("runs")
    """folder for evaluators.json and evaluators.md"""


@dataclass(frozen=True)
class Row:
    """One value; `reason` says why there is none."""

    group: str
    variant: str
    metric: str
    value: float | None
    n: int
    n_real: int
    reason: str = ""


@dataclass(frozen=True)
class Sets:
    """Folders of PNGs: images with their reference; `rounded`, the images with 8 bits by rounding."""

    images: Path
    reference: Path
    training: Path | None = None
    rounded: Path | None = None


class Comparison:
    """All groups of rows for some sets and an extractor."""

    def __init__(self, sets: Sets, extractor: Extractor) -> None:
        self.sets, self.extractor = sets, extractor
        images, reference = PngFolder(sets.images), PngFolder(sets.reference)
        if images.size != reference.size:
            raise InputError(f"{images.path} and {reference.path} differ in image size; crop both alike first")
        self.n, self.n_real, self.size = len(images), len(reference), images.size
        self.statistics: dict[tuple[Path, Transform | None], Statistics] = {}

    def rows(self) -> list[Row]:
        """All rows; the first one of a group is what this project does."""
        return [*self.programs(), *self.filters(), *self.references(), *self.formats(), *self.scores()]

    def programs(self) -> Iterator[Row]:
        """Programs that read the files themselves."""
        images, reference = self.sets.images, self.sets.reference
        yield self._row("program", "imagefolder, streamed", self._distance(images, reference))
        values = fidelity(str(images), str(reference), self.extractor, ("fid",))
        yield self._row("program", TORCH_FIDELITY, values["frechet_inception_distance"])
        if self.extractor.is_proxy:
            value = self._clean_fid(lambda image: image)
            yield self._row("program", f"{_clean_version()}, no resizing", value)

    def filters(self) -> Iterator[Row]:
        """clean-fid with its filters for resizing to the network's input, not rounded."""
        group = "resize filter"
        if not self.extractor.is_proxy:
            try:
                clean_extractor()
            except WeightsAbsent as error:
                yield Row(group, "clean-fid's modes", "FID", None, self.n, self.n_real, str(error))
                return
        height, width = self.size
        # The proxy has no size of its own: twice the images', as 299 is more than 256
        size = (2 * height, 2 * width) if self.extractor.is_proxy else (299, 299)
        for name, resize in resizers(size).items():
            yield self._row(group, f"{name}, to {size[1]} x {size[0]}", self._clean_fid(resize))

    def references(self) -> Iterator[Row]:
        """What the images are compared with."""
        group, sets = "reference", self.sets
        yield self._row(group, "originals, same crop", self._distance(sets.images, sets.reference))
        if sets.training is None:
            reason = "give the training images with --training"
            yield Row(group, "training images", self._name("FID"), None, self.n, 0, reason)
        else:
            value, n_real = self._distance(sets.images, sets.training), len(PngFolder(sets.training))
            yield Row(group, "training images", self._name("FID"), value, self.n, n_real)
        value = self._distance(sets.images, sets.reference, of_reference=cropped)
        yield self._row(group, f"originals cropped from {CROP} x the size", value)

    def formats(self) -> Iterator[Row]:
        """How the images are stored."""
        group, sets = "format", self.sets
        yield self._row(group, "8 bits, lossless", self._distance(sets.images, sets.reference))
        for quality in (95, 75):
            value = self._distance(sets.images, sets.reference, of_images=jpeg(quality))
            yield self._row(group, f"JPEG, quality {quality}", value)
        if sets.rounded is None:
            reason = "8-bit files hold no fractions"
            yield Row(group, "rounded instead of truncated", self._name("FID"), None, self.n, self.n_real, reason)
        else:
            yield self._row(group, "rounded instead of truncated", self._distance(sets.rounded, sets.reference))

    def scores(self) -> Iterator[Row]:
        """Splits of the Inception score."""
        logits = torch.cat([self.extractor(batch).logits.cpu() for batch in _batches(self.sets.images)])
        by_class = logits[logits.argmax(-1).argsort(stable=True)]
        values = fidelity(str(self.sets.images), str(self.sets.reference), self.extractor, ("isc",))
        variants = {
            "imagefolder: 10 shuffled splits": self._measured(self.sets.images).score.value()[0],
            f"{TORCH_FIDELITY}: 10 shuffled splits": values["inception_score_mean"],
            "10 splits in the order of the files": _score(logits, IS_SPLITS),
            "10 splits of class-sorted images": _score(by_class, IS_SPLITS),
        }
        if self.n >= 2 * ADM_SPLIT:
            variants["splits of 5000 in the order of the files, as ADM's"] = _score(logits, self.n // ADM_SPLIT)
        yield from (
            Row("IS splits", variant, self._name("IS"), value, self.n, 0) for variant, value in variants.items()
        )

    def _row(self, group: str, variant: str, value: float) -> Row:
        return Row(group, variant, self._name("FID"), value, self.n, self.n_real)

    def _name(self, metric: str) -> str:
        return self.extractor.prefix + metric

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
            self.statistics[key] = measure(batches, self.extractor, n, title)
        return self.statistics[key]

    def _clean_fid(self, resize: Callable[[np.ndarray], np.ndarray]) -> float:
        from cleanfid import fid

        with warnings.catch_warnings():  # deprecated calls inside
            warnings.simplefilter("ignore")
            value = fid.compute_fid(
                str(self.sets.images),
                str(self.sets.reference),
                custom_feat_extractor=on_floats(self.extractor),
                custom_fn_resize=resize,
                device=default_device(),
                use_dataparallel=False,
                num_workers=0,
                verbose=False,
            )
        return float(value)


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


def on_floats(extractor: Extractor) -> Callable[[Tensor], Tensor]:
    """The pooled features of float images (B, 3, H, W) in 0..255 at the network's size, as clean-fid asks for them."""
    if extractor.is_proxy:
        net = load_proxy(extractor.path).to(extractor.device)
        return lambda images: net.features(images / 127.5 - 1)
    from cleanfid.inception_torchscript import InceptionV3W

    return InceptionV3W(str(clean_extractor().path.parent), download=False).to(extractor.device).eval()


def cropped(images: Tensor) -> Tensor:
    """Centre crop of a slightly enlarged copy: what a loader for training does, uint8 (B, 3, H, W)."""
    side = images.shape[-1]
    margin = max(1, round(side * (1 - 1 / CROP) / 2))
    inner = to_float(images)[..., margin:-margin, margin:-margin]
    resized = F.interpolate(inner, images.shape[-2:], mode="bicubic", antialias=True)
    return (127.5 * resized + 128).clamp(0, 255).to(torch.uint8)


def jpeg(quality: int) -> Transform:
    """Images stored as JPEG and read again, uint8 (B, 3, H, W)."""

    def store(image: np.ndarray) -> np.ndarray:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="JPEG", quality=quality)
        return np.asarray(Image.open(buffer))

    def transform(images: Tensor) -> Tensor:
        stored = np.stack([store(image) for image in images.permute(0, 2, 3, 1).numpy()])
        return torch.from_numpy(stored).permute(0, 3, 1, 2).contiguous()

    return transform


def halved(images: Tensor) -> Tensor:
    """A real if crude reconstruction: half the resolution and back. uint8 (B, 3, H, W) -> float in [0, 1]."""
    small = F.avg_pool2d(images.float() / 255, 2)
    return F.interpolate(small, images.shape[-2:], mode="bicubic").clamp(0, 1)


def digit_sets(folder: Path) -> Sets:
    """Test digits, their reconstructions, truncated and rounded, and the training digits as PNG files."""
    splits = digits()
    _write(folder / "originals", splits.test, lambda x: x)
    _write(folder / "training", splits.train, lambda x: x)
    _write(folder / "images", splits.test, lambda x: samples_to_uint8(halved(x)))
    _write(folder / "rounded", splits.test, lambda x: samples_to_uint8(halved(x) + 0.5 / 255))
    return Sets(folder / "images", folder / "originals", folder / "training", folder / "rounded")


def run(options: Options) -> int:
    """Compare, print, and write evaluators.json and evaluators.md; gives the exit code."""
    if (options.images is None) != (options.reference is None):
        raise InputError("--images and --reference go together")
    extractor = _extractor(options)
    with tempfile.TemporaryDirectory() as temporary:
        if options.images is None:
            name, sets = "digits/test, half the resolution and back", digit_sets(Path(temporary))
        else:
            name, sets = str(options.images), Sets(options.images, options.reference, options.training)
        rows = Comparison(sets, extractor).rows()
    document = {
        "images": name,
        "reference": str(options.reference or "digits/test"),
        "extractor": extractor.name,
        "extractor_sha256": extractor.sha256,
        "clean_fid": _clean_version(),
        "rows": [asdict(row) | {"difference": difference(row, rows)} for row in rows],
        "run": describe(),
    }
    write_atomically(options.output / "evaluators.json", lambda path: path.write_text(json.dumps(document, indent=1)))
    write_atomically(options.output / "evaluators.md", lambda path: path.write_text(markdown(document)))
    print(markdown(document))
    console.print(f"written: {options.output / 'evaluators.md'}")
    return 0


def difference(row: Row, rows: list[Row]) -> float | None:
    """From the first value of the same group and metric."""
    first = next(r.value for r in rows if (r.group, r.metric) == (row.group, row.metric))
    return None if row.value is None or first is None else row.value - first


def markdown(document: dict) -> str:
    """The table with where it comes from."""
    lines = [
        "# The same images, several evaluators",
        "",
        f"Images: {document['images']}; reference: {document['reference']}.",
        f"Extractor: {document['extractor']}, sha256 `{document['extractor_sha256']}`; {TORCH_FIDELITY}, "
        f"{document['clean_fid']}; commit {document['run']['git_commit']}.",
        "Differences are from the first row of the group, which is what this project does.",
        "",
        "| group | variant | metric | value | difference | n | n real |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(f"| {' | '.join(_cells(row))} |" for row in document["rows"])]) + "\n"


def _cells(row: dict) -> list[str]:
    value = row["reason"] or f"{row['value']:.6g}"
    change = "" if row["difference"] is None else f"{row['difference']:+.3g}"
    real = f"{row['n_real']:,}" if row["n_real"] else "-"
    return [row["group"], row["variant"], row["metric"], value, change, f"{row['n']:,}", real]


def _extractor(options: Options) -> Extractor:
    if options.extractor == "inception":
        return inception_extractor()
    if options.extractor is not None:
        return proxy_extractor(Path(options.extractor))
    if options.images is not None:
        raise InputError("say with --extractor what to measure images of your own with: inception, or a proxy's file")
    finished = sorted(options.output.glob("mini-digits-*/proxies/extractor.json"))
    path = finished[0] if finished else options.output / "evaluators-extractor.safetensors"
    path = path.with_suffix(".safetensors")
    if not path.with_suffix(".json").exists():
        torch.manual_seed(SEED)
        splits = digits()
        net = ProxyNet(len(splits.classes)).to(default_device())
        train_classifier(net.features, net.head, splits.train, STEPS, BATCH, SEED, "proxy extractor: training")
        save_classifier(path, net)
        finish_classifier(path, {"steps": STEPS, "seed": SEED})
    read_classifier(path)  # which compares the weights with their hash
    return proxy_extractor(path)


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


def _clean_version() -> str:
    return f"clean-fid {metadata.version('clean-fid')}"


def main() -> int:
    """Exit code 0, 2 after a line on what is wrong, or 130 (interrupted)."""
    options = tyro.cli(Options, prog="evaluators.py", description=Options.__doc__)
    try:
        return run(options)
    except (InputError, OSError, metadata.PackageNotFoundError) as error:
        display.close()
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        display.close()
        return 130


if __name__ == "__main__":
    sys.exit(main())
