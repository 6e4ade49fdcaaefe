"""Native checkpoints: a folder with `model.safetensors` and `config.json`, and the two loading functions."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from imagefolder.config import GeneratorConfig, TokenizerConfig, from_dict, to_dict
from imagefolder.errors import InputError
from imagefolder.generator.model import TOKEN_FIELDS, Generator
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.zoo import GENERATORS, TOKENIZERS, find

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def file_sha256(path: Path) -> str:
    """sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, write: Any) -> None:
    """Call `write(temporary path)` and move the result to `path`, so that no half-written file is ever seen."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_checkpoint(folder: Path, model: nn.Module, config: TokenizerConfig | GeneratorConfig, **about: Any) -> str:
    """Write weights and configuration.

    Args:
        folder: created if missing.
        model: `Tokenizer` or `Transformer`.
        config: stored under "config".
        about: further JSON values stored beside it (training, selection rule, ...).

    Returns:
        sha256 of the weight file.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    write_atomically(folder / WEIGHTS, lambda path: save_file(state, path))
    sha256 = file_sha256(folder / WEIGHTS)
    document = {"kind": type(config).__name__, "config": to_dict(config), "weights_sha256": sha256, **about}
    write_atomically(folder / CONFIG, lambda path: path.write_text(json.dumps(document, indent=1)))
    return sha256


def read_about(folder: Path) -> dict[str, Any]:
    """The JSON document beside a weight file; `InputError` if it is missing or unreadable."""
    path = folder / CONFIG
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable checkpoint configuration ({error})") from None


def load_weights(folder: Path, model: nn.Module, config: TokenizerConfig | GeneratorConfig) -> dict[str, Any]:
    """Load the weights of a native checkpoint into a model built from `config`.

    Raises:
        InputError: if the stored configuration differs (naming the fields), or a file is missing or damaged.
    """
    about = read_about(folder)
    stored = from_dict(type(config), about.get("config", {}), str(folder / CONFIG))
    different = [
        f"{field.name} {getattr(stored, field.name)} (asked for {getattr(config, field.name)})"
        for field in dataclasses.fields(config)
        if field.name != "name" and getattr(stored, field.name) != getattr(config, field.name)
    ]
    if different:
        raise InputError(f"{folder}: checkpoint of another configuration: {', '.join(different)}")
    path = folder / WEIGHTS
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read as safetensors ({error})") from None
    if file_sha256(path) != about.get("weights_sha256"):
        raise InputError(f"{path}: sha256 differs from the one in {CONFIG}; the file is damaged or was exchanged")
    _load_state(model, state, str(path))
    return about


def _load_state(model: nn.Module, state: dict[str, torch.Tensor], origin: str) -> None:
    expected = model.state_dict()
    problems = [f"missing {name}" for name in expected.keys() - state.keys()]
    problems += [f"unexpected {name}" for name in state.keys() - expected.keys()]
    problems += [
        f"{name} has shape {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected.keys() & state.keys()
        if state[name].shape != expected[name].shape
    ]
    if problems:
        raise InputError(f"{origin}: {len(problems)} keys do not fit: {'; '.join(sorted(problems))}")
    model.load_state_dict(state)


def load_tokenizer(
    name: str,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    **overrides: Any,
) -> Tokenizer:
    """A tokenizer by name, in evaluation mode.

    Args:
        name: one of `imagefolder.list_models()`.
        weights: folder of a native checkpoint; None: fresh initialisation.
        device: where it lives.
        dtype: of weights and activations; the quantizer always works in float32.
        overrides: fields of `TokenizerConfig`.
    """
    config = _override(find(TOKENIZERS, name), overrides)
    model = Tokenizer(config)
    if weights is not None:
        load_weights(_native_folder(weights), model, config)
    model = model.to(device=device, dtype=dtype).eval()
    model.quantizer.float()
    return model


def load_generator(
    name: str,
    tokenizer: Tokenizer,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    **overrides: Any,
) -> Generator:
    """A generator by name on the tokens of `tokenizer`, in evaluation mode; arguments as for `load_tokenizer`.

    The fields that describe tokens (branches, scales, codebook_size, code_dim) are taken from the tokenizer.
    """
    tokens = {field: getattr(tokenizer.config, field) for field in TOKEN_FIELDS}
    config = _override(find(GENERATORS, name), tokens | overrides)
    model = Generator(config, tokenizer)
    if weights is not None:
        load_weights(_native_folder(weights), model.transformer, config)
    model.transformer.to(device=device, dtype=dtype)
    return model.eval()


def _native_folder(weights: str | Path) -> Path:
    path = Path(weights)
    if path.is_file() and path.name == WEIGHTS:
        path = path.parent
    if not path.is_dir():
        raise InputError(f"{weights}: not a checkpoint folder holding {WEIGHTS} and {CONFIG}")
    return path


def _override(config: Any, overrides: dict[str, Any]) -> Any:
    unknown = sorted(set(overrides) - {field.name for field in dataclasses.fields(config)})
    if unknown:
        raise InputError(f"{type(config).__name__} has no field {', '.join(unknown)}")
    if isinstance(config, GeneratorConfig) and {"depth", "width", "heads"} & set(overrides):
        # width, heads and drop path follow the depth unless given
        derived = {"width": None, "heads": None, "drop_path": None} if "depth" in overrides else {}
        overrides = derived | overrides
    return dataclasses.replace(config, **overrides)
