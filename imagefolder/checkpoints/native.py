"""Native checkpoints: a folder with `model.safetensors` and `config.json`, neither of which can execute code.

They may come from an untrusted source: the header of the weight file is compared with what the configuration requires
before memory is allocated for either.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save, save_file
from torch import Tensor, nn

from imagefolder.config import TRAINING_ONLY, Config, from_dict, to_dict
from imagefolder.errors import DamagedFile, InputError, one_line, reason
from imagefolder.files import file_sha256, read_json, reading, write_atomically, write_json
from imagefolder.tensors import read_tensors, require_finite
from imagefolder.validation import shown

WEIGHTS, CONFIG = "model.safetensors", "config.json"
LARGEST_CONFIG = 2**22  # bytes
LARGEST_HEADER = 2**24
MOST_PROBLEMS = 50  # listed in one message
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)  # in which weights are stored

Shapes = Mapping[str, tuple[int, ...]]
_Config = TypeVar("_Config", bound=Config)


def save_checkpoint(folder: Path, model: nn.Module, config: Config, **about: Any) -> str:
    """Write weights and configuration.

    Args:
        folder: created if missing.
        model: `Tokenizer` or `Transformer`.
        config: stored under "config".
        about: further JSON values to store next to it (training, selection rule, ...).

    Returns:
        sha256 of the weight file.

    Raises:
        DamagedFile: the weights are not finite; nothing is written.
        InputError: JSON cannot hold one of the further values (NaN, for example); nothing is written.
    """
    state = _plain_state(model)
    require_finite(state, f"{folder} is not written")
    try:
        json.dumps(about, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"{folder} is not written: values to store next to its weights: {reason(error)}") from None
    write_atomically(folder / WEIGHTS, lambda path: save_file(state, path))
    sha256 = file_sha256(folder / WEIGHTS)
    document = {"kind": type(config).__name__, "config": to_dict(config), "weights_sha256": sha256, **about}
    write_json(folder / CONFIG, document)
    return sha256


def native_sha256(model: nn.Module) -> str:
    """sha256 of the weight file that `save_checkpoint` would write for a model."""
    return hashlib.sha256(save(_plain_state(model))).hexdigest()


def _plain_state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}


def read_about(folder: Path) -> dict[str, Any]:
    """The JSON document next to a weight file; `InputError` if it is missing or invalid."""
    path = folder / CONFIG
    require_file(path, "a checkpoint configuration", LARGEST_CONFIG)
    return read_json(path)


def read_config(folder: Path, kind: type[_Config], about: dict[str, Any] | None = None) -> _Config:
    """The configuration of a native checkpoint, as a `kind`; `about`: its document, if already read."""
    about = read_about(folder) if about is None else about
    if "config" not in about:
        raise InputError(f"{folder / CONFIG}: contains no configuration")
    return from_dict(kind, about["config"], str(folder / CONFIG))


def load_weights(folder: Path, model: nn.Module, config: Config) -> dict[str, Any]:
    """Load the weights of a native checkpoint into a model built from `config`.

    Raises:
        InputError: the stored configuration differs in more than training-only fields (the message names them), or a
            file is missing or damaged.
    """
    about = read_about(folder)
    stored = read_config(folder, type(config), about)
    different = [
        f"{field.name} {getattr(stored, field.name)} (asked for {getattr(config, field.name)})"
        for field in dataclasses.fields(config)
        if field.name not in {"name", *TRAINING_ONLY} and getattr(stored, field.name) != getattr(config, field.name)
    ]
    if different:
        raise InputError(f"{folder}: checkpoint of another configuration: {', '.join(different)}")
    require_fitting(folder, model)
    load_state(model, read_weights(folder, about), str(folder / WEIGHTS))
    return about


def read_weights(folder: Path, about: dict[str, Any]) -> dict[str, Tensor]:
    """Tensors of a native checkpoint, verified against the hash stored in its configuration file."""
    sha256 = about.get("weights_sha256")
    if not isinstance(sha256, str):
        raise InputError(f"{folder / CONFIG}: contains no weights_sha256, so {WEIGHTS} cannot be verified")
    return read_safetensors(folder / WEIGHTS, sha256)


def require_fitting(folder: Path, model: nn.Module) -> None:
    """Raise `InputError` unless the weight file has the tensors of `model`, which may be on the meta device.

    Only the file's header is read.
    """
    path = folder / WEIGHTS
    _require_same({name: tuple(value.shape) for name, value in model.state_dict().items()}, read_shapes(path), path)


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a safetensors file, from its header alone.

    Raises:
        DamagedFile: not a safetensors file, truncated, or with a header larger than any model's.
        InputError: there is no such file.
    """
    require_file(path, "safetensors")
    with reading(path, "safetensors"):
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
        if size > LARGEST_HEADER:
            raise ValueError(f"no model has a header of {size:,} bytes")
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def read_safetensors(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Tensors of a safetensors file; `InputError` if it is unreadable, not finite, or has a different hash."""
    read_shapes(path)
    return read_tensors(path, sha256)


def require_file(path: Path, what: str, most: int | None = None) -> None:
    """Raise `InputError` unless `path` is a regular file (no pipe or device) of at most `most` bytes."""
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if not path.is_file():
        raise DamagedFile(f"{path}: not readable as {what} (not a regular file)")
    if most is not None and path.stat().st_size > most:
        raise DamagedFile(f"{path}: not readable as {what} (too large: {path.stat().st_size:,} bytes)")


def load_state(model: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Load in strict mode, converting floating-point weights to the model's precision and integers to its integers.

    Raises:
        InputError: missing, unexpected or wrongly shaped keys (the message names the first 50), tensors of an
            unsuitable type, or values that are not finite.
    """
    expected = model.state_dict()
    _require_same(
        {name: tuple(value.shape) for name, value in expected.items()},
        {name: tuple(value.shape) for name, value in state.items()},
        origin,
    )
    for name, value in state.items():
        require_plain(name, value, origin)
        fitting = value.dtype in FLOATS if expected[name].is_floating_point() else _is_whole(value)
        if not fitting:
            raise InputError(f"{origin}: {name} is {value.dtype}, which cannot be converted to {expected[name].dtype}")
    converted = {name: value.to(expected[name].dtype) for name, value in state.items()}
    require_finite(converted, origin)
    model.load_state_dict(converted)


def require_plain(name: str, value: Tensor, origin: str) -> None:
    """Raise `InputError` unless a tensor stores all its numbers: not sparse, quantized, expanded or without data."""
    strided = value.layout is torch.strided and not (value.is_quantized or value.is_meta or value.is_nested)
    if not strided or value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise InputError(f"{origin}: {one_line(name)} is not a plain tensor; save it as a dense one")


def _is_whole(value: Tensor) -> bool:
    return not (value.is_floating_point() or value.is_complex() or value.dtype is torch.bool)


def _require_same(expected: Shapes, found: Shapes, origin: Path | str) -> None:
    """Raise `InputError` naming the keys that are missing, unexpected or of another shape."""
    problems = [f"missing {name}" for name in expected.keys() - found.keys()]
    problems += [f"unexpected {one_line(name)[:200]}" for name in found.keys() - expected.keys()]
    problems += [
        f"{name} has shape {shown(found[name])} instead of {expected[name]}"
        for name in expected.keys() & found.keys()
        if found[name] != expected[name]
    ]
    if problems:
        more = f"; and {len(problems) - MOST_PROBLEMS} more" if len(problems) > MOST_PROBLEMS else ""
        named = "; ".join(sorted(problems)[:MOST_PROBLEMS])
        raise InputError(f"{origin}: {len(problems)} keys do not match: {named}{more}")
