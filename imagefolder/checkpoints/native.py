"""Native checkpoints: a folder with `model.safetensors` and `config.json`, nothing in it can execute.

They may come from a stranger: what a file claims is compared with what the configuration asks for before memory is
taken for either.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from imagefolder.config import TRAINING_ONLY, GeneratorConfig, TokenizerConfig, from_dict, to_dict
from imagefolder.errors import DamagedFile, InputError, one_line, reason
from imagefolder.files import (
    file_sha256,
    read_json,
    read_tensors,
    reading,
    require_finite,
    write_atomically,
    write_json,
)
from imagefolder.validation import shown

WEIGHTS, CONFIG = "model.safetensors", "config.json"
LARGEST_CONFIG = 2**22  # bytes
LARGEST_HEADER = 2**24
MOST_PROBLEMS = 50  # named in one message
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)  # that weights are stored in

Shapes = Mapping[str, tuple[int, ...]]


def save_checkpoint(folder: Path, model: nn.Module, config: TokenizerConfig | GeneratorConfig, **about: Any) -> str:
    """Write weights and configuration.

    Args:
        folder: created if missing.
        model: `Tokenizer` or `Transformer`.
        config: stored under "config".
        about: further JSON values stored beside it (training, selection rule, ...).

    Returns:
        sha256 of the weight file.

    Raises:
        DamagedFile: weights that are not finite; nothing is written.
        InputError: values beside them that JSON cannot hold, NaN among them; nothing is written.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    require_finite(state, f"{folder} is not written")
    try:
        json.dumps(about, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"{folder} is not written: what is to be stored beside its weights: {reason(error)}") from None
    write_atomically(folder / WEIGHTS, lambda path: save_file(state, path))
    sha256 = file_sha256(folder / WEIGHTS)
    document = {"kind": type(config).__name__, "config": to_dict(config), "weights_sha256": sha256, **about}
    write_json(folder / CONFIG, document)
    return sha256


def read_about(folder: Path) -> dict[str, Any]:
    """The JSON document beside a weight file; `InputError` if it is missing or no such document."""
    path = folder / CONFIG
    require_file(path, "a checkpoint configuration", LARGEST_CONFIG)
    return read_json(path)


def read_config(
    folder: Path, kind: type[TokenizerConfig] | type[GeneratorConfig], about: dict[str, Any] | None = None
) -> Any:
    """The configuration of a native checkpoint, as a `kind`; `about`: its document, if it has been read."""
    about = read_about(folder) if about is None else about
    if "config" not in about:
        raise InputError(f"{folder / CONFIG}: holds no configuration")
    return from_dict(kind, about["config"], str(folder / CONFIG))


def load_weights(folder: Path, model: nn.Module, config: TokenizerConfig | GeneratorConfig) -> dict[str, Any]:
    """Load the weights of a native checkpoint into a model built from `config`.

    Raises:
        InputError: if the stored configuration differs in more than how it was trained (naming the fields), or a file
            is missing or damaged.
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
    """Tensors of a native checkpoint, whose hash is the one stored beside them."""
    sha256 = about.get("weights_sha256")
    if not isinstance(sha256, str):
        raise InputError(f"{folder / CONFIG}: holds no weights_sha256, so {WEIGHTS} cannot be verified")
    return read_safetensors(folder / WEIGHTS, sha256)


def require_fitting(folder: Path, model: nn.Module) -> None:
    """`InputError` unless the weight file says that it holds what `model` (which may be on the meta device) has.

    Only the beginning of the file is read.
    """
    path = folder / WEIGHTS
    _require_same({name: tuple(value.shape) for name, value in model.state_dict().items()}, read_shapes(path), path)


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a safetensors file, from its header alone.

    Raises:
        DamagedFile: no safetensors file, cut short, or with a header larger than any model's.
        InputError: there is no such file.
    """
    require_file(path, "safetensors")
    with reading(path, "safetensors"):
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
        if size > LARGEST_HEADER:
            raise ValueError(f"a header of {size:,} bytes is no model's")
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def read_safetensors(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Tensors of a safetensors file; `InputError` if it cannot be read, is not finite, or has another hash."""
    read_shapes(path)
    return read_tensors(path, sha256)


def require_file(path: Path, what: str, most: int | None = None) -> None:
    """`InputError` unless `path` is a file, which a pipe or device is not, of at most so many bytes."""
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if not path.is_file():
        raise DamagedFile(f"{path}: not readable as {what} (it is no regular file)")
    if most is not None and path.stat().st_size > most:
        raise DamagedFile(f"{path}: not readable as {what} ({path.stat().st_size:,} bytes are too many)")


def load_state(model: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Load in strict mode.

    Floating-point weights of another precision are converted, whole numbers to other whole numbers.

    Raises:
        InputError: naming missing, unexpected and wrongly shaped keys (the first 50 of them), tensors of a kind that
            weights are not, and values that are not finite.
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
            raise InputError(f"{origin}: {name} is {value.dtype}, which {expected[name].dtype} cannot be made of")
    converted = {name: value.to(expected[name].dtype) for name, value in state.items()}
    require_finite(converted, origin)
    model.load_state_dict(converted)


def require_plain(name: str, value: Tensor, origin: str) -> None:
    """`InputError` unless a tensor holds all its numbers: not sparse, quantized, without data, or a few repeated."""
    strided = value.layout is torch.strided and not (value.is_quantized or value.is_meta or value.is_nested)
    if not strided or value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise InputError(f"{origin}: {one_line(name)} is no plain tensor; save it as a dense one")


def _is_whole(value: Tensor) -> bool:
    return not (value.is_floating_point() or value.is_complex() or value.dtype is torch.bool)


def _require_same(expected: Shapes, found: Shapes, origin: Path | str) -> None:
    """`InputError` naming the keys that are missing, unexpected or of another shape."""
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
        raise InputError(f"{origin}: {len(problems)} keys do not fit: {named}{more}")
