"""Writing and identifying files."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError


def file_sha256(path: Path) -> str:
    """sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write(temporary path)` and move the result to `path`, so that no half-written file is ever seen.

    What has been written survives a power failure too. Raises `OSError`, with the path and the space left, if it cannot
    be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}.tmp")
    try:
        temporary.touch()  # with the usual permissions, where a library would create it for the owner alone
        write(temporary)
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk is the last two to torch and safetensors
        free = shutil.disk_usage(path.parent).free
        raise OSError(f"{path} cannot be written: {error} ({free:,} bytes are free on its disk)") from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def weight_folders() -> list[Path]:
    """Where weight files of other projects are looked for: $IMAGEFOLDER_WEIGHTS, then torch hub's own folder."""
    folders = [Path(torch.hub.get_dir()) / "checkpoints"]
    if "IMAGEFOLDER_WEIGHTS" in os.environ:
        folders.insert(0, Path(os.environ["IMAGEFOLDER_WEIGHTS"]))
    return folders


def find_weights(name: str) -> Path | None:
    """The first file of this name in `weight_folders()`."""
    return next((folder / name for folder in weight_folders() if (folder / name).is_file()), None)
