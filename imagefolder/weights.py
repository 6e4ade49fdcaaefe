"""Files of other projects that this one needs but does not ship: `python -m imagefolder.weights check` lists them.

A file is looked for in `imagefolder.files.weight_folders()` and used only after its content has been checked, since
some of the formats execute what they hold.
"""

from __future__ import annotations

import logging
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import timm
import tyro
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from torch import nn

from imagefolder.checkpoints.hub import require_network
from imagefolder.errors import InputError, reason
from imagefolder.files import checked_sha256, find_weights, require_finite, weight_folders
from imagefolder.progress import console

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
CLEAN_INCEPTION = "inception-2015-12-05.pt"
ADM_REFERENCE = "VIRTUAL_imagenet256_labeled.npz"
ADM_STATISTICS = "adm_in256_stats.npz"
VGG16_FILE = "vgg16-397923af.pth"
DINO = "vit_small_patch16_224.dino"
TIMM_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class WeightFile:
    """What is known about a published file; `sha256` and `size` (bytes) are None where no source states them."""

    purpose: str
    sha256: str | None = None
    size: int | None = None


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
}
"""By name. The one place that says which content is accepted."""

BACKBONES = {
    DINO: "features of the stronger discriminator (DINO ViT-S/16)",
    "vit_base_patch14_dinov2.lvd142m": "encoder, decoder and semantic teacher (DINOv2 ViT-B/14)",
}
"""timm names; as NAME.safetensors in a weight folder, or in the hub's cache."""


class WeightsAbsent(InputError):
    """A published file is in none of the weight folders."""

    def __init__(self, name: str) -> None:
        file = FILES[name]
        known = [f"{file.size:,} bytes"] if file.size else []
        known += [f"sha256 {file.sha256}"] if file.sha256 else []
        about = f" ({', '.join(known)})" if known else ""
        places = " or ".join(map(str, weight_folders()))
        super().__init__(
            f"{name}{about} is absent, needed for {file.purpose}; put it into {places}, or set IMAGEFOLDER_WEIGHTS"
        )
        self.name = name


def require(name: str) -> Path:
    """Where a file of `FILES` is, its content checked.

    Raises:
        WeightsAbsent: it is in none of the weight folders.
        InputError: what is there has another content than the published file.
    """
    path = find_weights(name)
    if path is None:
        raise WeightsAbsent(name)
    verify(path)
    return path


def absent_weights(names: list[str]) -> list[str]:
    """Those of the files and timm models that are nowhere on this machine, each with what to do about it."""
    absent = []
    for name in names:
        if name in FILES:
            if find_weights(name) is None:
                absent.append(str(WeightsAbsent(name)))
        elif _find_backbone(name) is None:
            places = " or ".join(map(str, weight_folders()))
            absent.append(
                f"{name}.safetensors is absent, needed for {BACKBONES.get(name, 'the backbone')}; put it into {places}"
            )
    return absent


def pretrained(name: str, **shape: Any) -> nn.Module:
    """A timm model with its published weights: from a local file, timm's cache, or the hub.

    Args:
        name: timm name; the local file is `NAME.safetensors` in one of `imagefolder.files.weight_folders()`.
        shape: further arguments of `timm.create_model`.

    Raises:
        InputError: if they are in none of these places and the hub cannot be reached, or are damaged: unreadable, of
            another model, or not finite.
    """
    local = find_weights(f"{name}.safetensors")
    if local is None:
        repository = _repository(name)
        if not any(isinstance(try_to_load_from_cache(repository, file), str) for file in TIMM_FILES):
            places = ", ".join(map(str, weight_folders()))
            require_network(f"weights of {name} (model.safetensors of {repository}, as {name}.safetensors in {places})")
    try:
        # without custom_load, which has older versions of timm read some models' weights as numpy archives
        overlay = None if local is None else {"file": str(local), "custom_load": False}
        with _lacking() as lacking:
            vit = timm.create_model(name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay, **shape)
    except Exception as error:  # timm and hub clients raise many kinds
        raise InputError(
            f"weights of {name} could not be loaded from {local or repository} ({reason(error)})"
        ) from None
    if lacking:
        raise InputError(f"{local or repository}: these are not the weights of {name}: {lacking[0][:300]}")
    require_finite(vit.state_dict(), str(local or repository))
    return vit


@contextmanager
def _lacking() -> Iterator[list[str]]:
    """What timm mentions in its log, and only there, of weights that a file lacks: the model's random ones stay."""
    said: list[str] = []

    def note(record: logging.LogRecord) -> bool:
        if record.getMessage().startswith("Missing keys"):
            said.append(record.getMessage())
        return record.levelno >= level

    logger = logging.getLogger("timm.models._builder")
    own, level = logger.level, logger.getEffectiveLevel()
    logger.addFilter(note)
    logger.setLevel(logging.INFO)
    try:
        yield said
    finally:
        logger.setLevel(own)
        logger.removeFilter(note)


def _repository(name: str) -> str:
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise InputError(reason(error)) from None
    if config is None or not config.hf_hub_id:
        raise InputError(f"timm publishes no weights of {name!r}")
    return config.hf_hub_id


def verify(path: Path) -> None:
    """`InputError` if a file named like one of `FILES` has another content than the published one."""
    expected = FILES[path.name].sha256
    if expected is not None and (found := checked_sha256(path)) != expected:
        raise InputError(f"{path} has sha256 {found}, not {expected}; replace it by the published file")


@dataclass(frozen=True)
class Found:
    """One line of the check; `detail` says where the file is, or what is wrong with it."""

    name: str
    purpose: str
    sha256: str | None
    size: int | None
    state: Literal["present", "absent", "wrong content"]
    detail: str = ""


def check() -> list[Found]:
    """Every file the project can need, with its state; hashes what is there."""
    return [_check_file(name) for name in FILES] + [_check_backbone(name) for name in BACKBONES]


def _check_file(name: str) -> Found:
    file, path = FILES[name], find_weights(name)
    if path is None:
        return Found(name, file.purpose, file.sha256, file.size, "absent")
    detail, state = str(path), "present"
    if file.sha256 is not None:
        if (found := checked_sha256(path)) != file.sha256:
            state, detail = "wrong content", f"{path}: {path.stat().st_size:,} bytes, sha256 {found}"
    elif not _is_statistics(path):
        state, detail = "wrong content", f"{path}: holds no mu (2048) and sigma (2048, 2048)"
    else:
        detail += ", no published hash to check"
    return Found(name, file.purpose, file.sha256, file.size, state, detail)


def _is_statistics(path: Path) -> bool:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return archive["mu"].shape == (2048,) and archive["sigma"].shape == (2048, 2048)
    except (KeyError, ValueError, OSError, zipfile.BadZipFile):
        return False


def _find_backbone(name: str) -> Path | None:
    """The weights of a timm model in a weight folder or in the hub's cache."""
    repository = timm.get_pretrained_cfg(name).hf_hub_id
    cached = (try_to_load_from_cache(repository, file) for file in TIMM_FILES)
    return find_weights(f"{name}.safetensors") or next((Path(f) for f in cached if isinstance(f, str)), None)


def _check_backbone(name: str) -> Found:
    purpose, path = BACKBONES[name], _find_backbone(name)
    name = f"{name}.safetensors (or {timm.get_pretrained_cfg(name).hf_hub_id} in the hub's cache)"
    if path is None:
        return Found(name, purpose, None, None, "absent")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "numpy"):
                pass
    except SafetensorError as error:
        return Found(name, purpose, None, None, "wrong content", f"{path}: not readable ({error})")
    return Found(name, purpose, None, None, "present", f"{path}, no published hash to check")


def main(command: Literal["check"]) -> int:
    """Say which files of other projects are here.

    Args:
        command: check: list all files, hashing those that are there; exit code 0 if all are present, 1 otherwise.
    """
    console.print("folders searched: " + ", ".join(map(str, weight_folders())))
    found = check()
    for entry in found:
        size = f"{entry.size:,} bytes" if entry.size else "size unknown"
        console.print(f"{entry.name}: {entry.state}{f' ({entry.detail})' if entry.detail else ''}")
        console.print(f"    {size}, sha256 {entry.sha256 or 'unknown'}; for {entry.purpose}")
    present = sum(entry.state == "present" for entry in found)
    console.print(f"{present} of {len(found)} files present")
    return 0 if present == len(found) else 1


if __name__ == "__main__":
    sys.exit(tyro.cli(main, config=(tyro.conf.PositionalRequiredArgs,)))
