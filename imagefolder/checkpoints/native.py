"""Native checkpoints: a folder with `model.safetensors` and `config.json`, nothing in it can execute."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from imagefolder.config import TRAINING_ONLY, GeneratorConfig, TokenizerConfig, from_dict, to_dict
from imagefolder.errors import InputError
from imagefolder.files import file_sha256, write_atomically

WEIGHTS, CONFIG = "model.safetensors", "config.json"


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
        InputError: if the stored configuration differs in more than how it was trained (naming the fields), or a file
            is missing or damaged.
    """
    about = read_about(folder)
    stored = from_dict(type(config), about.get("config", {}), str(folder / CONFIG))
    different = [
        f"{field.name} {getattr(stored, field.name)} (asked for {getattr(config, field.name)})"
        for field in dataclasses.fields(config)
        if field.name not in {"name", *TRAINING_ONLY} and getattr(stored, field.name) != getattr(config, field.name)
    ]
    if different:
        raise InputError(f"{folder}: checkpoint of another configuration: {', '.join(different)}")
    path = folder / WEIGHTS
    state = read_safetensors(path)
    if file_sha256(path) != about.get("weights_sha256"):
        raise InputError(f"{path}: sha256 differs from the one in {CONFIG}; the file is damaged or was exchanged")
    load_state(model, state, str(path))
    return about


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file; `InputError` if it cannot be read."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read as safetensors ({error})") from None


def load_state(model: nn.Module, state: dict[str, torch.Tensor], origin: str) -> None:
    """Load in strict mode; `InputError` names every missing, unexpected and wrongly shaped key."""
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
