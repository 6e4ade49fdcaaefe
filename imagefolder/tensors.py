"""Files of tensors, and the check that every stored number is finite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from imagefolder.errors import DamagedFile
from imagefolder.files import file_sha256, reading
from imagefolder.numerics import not_finite


def read_tensors(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU.

    Args:
        sha256: the expected hash of the file, if known.

    Raises:
        DamagedFile: unreadable, another hash, or values that are not finite.
        InputError: the file does not exist.
    """
    with reading(path, "safetensors"):
        if sha256 is not None and file_sha256(path) != sha256:
            raise ValueError("its sha256 is not the one stored beside it: damaged, or exchanged")
        tensors = load_file(path)
    require_finite(tensors, str(path))
    return tensors


def require_finite(tensors: Any, origin: str) -> None:
    """`DamagedFile` if tensors, in any nesting of containers, hold NaN or infinity."""
    if bad := not_finite(tensors):
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise DamagedFile(f"{origin}: {bad[0]}{more} hold NaN or infinity: these weights are unusable")
