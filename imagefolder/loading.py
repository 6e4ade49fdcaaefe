"""Models by name, with weights from any source."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from imagefolder.checkpoints.authors import STATISTICS, load_authors_state, read_state
from imagefolder.checkpoints.hub import locate
from imagefolder.checkpoints.native import FLOATS, WEIGHTS, load_weights
from imagefolder.config import Config, TokenizerConfig
from imagefolder.environment import fast_dtype
from imagefolder.errors import InputError
from imagefolder.generator.model import Generator
from imagefolder.generator.transformer import Transformer
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.zoo import GENERATORS, TOKENIZERS, find, for_tokenizer


def load_tokenizer(
    name: str,
    weights: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | Literal["auto"] = torch.float32,
    **overrides: Any,
) -> Tokenizer:
    """A tokenizer by name, in evaluation mode.

    Args:
        name: one of `imagefolder.list_models()`.
        weights: a native checkpoint (folder), the authors' `.pt` (its EMA weights if it has any) or `.pth`, the same
            tensors as `.safetensors`, or `hf://owner/repo[/file]`; None: fresh initialisation.
        device: of the model.
        dtype: of weights and activations; the quantizer always runs in float32. "auto": bfloat16 on devices that are
            fast at it, otherwise float32.
        overrides: fields of `TokenizerConfig`.

    Raises:
        InputError: unknown name or field; missing, damaged or unsafe file; keys that do not match (names the first 50).
    """
    config = find(TOKENIZERS, name)
    _require_fields(config, overrides)
    config = replace(config, **overrides)
    model = Tokenizer(config)
    if weights is not None:
        load_into(model, weights, config)
    model = model.to(device=device, dtype=_dtype(dtype, device)).eval()
    model.quantizer.float()
    return model


def load_generator(
    name: str,
    tokenizer: Tokenizer,
    weights: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | Literal["auto"] = torch.float32,
    **overrides: Any,
) -> Generator:
    """A generator by name for the tokens of `tokenizer`, in evaluation mode; arguments as for `load_tokenizer`.

    The fields that describe tokens (branches, scales, codebook_size, code_dim) are copied from the tokenizer; width,
    heads and drop_path are derived from an overridden depth.
    """
    config = find(GENERATORS, name)
    _require_fields(config, overrides)
    config = for_tokenizer(config, tokenizer.config, name=name, **overrides)
    model = Generator(config, tokenizer)
    if weights is not None:
        load_into(model.transformer, weights, config)
    model.transformer.to(device=device, dtype=_dtype(dtype, device))
    return model.eval()


def load_into(model: nn.Module, weights: str | Path, config: Config) -> Path:
    """Load weights from any source into a model built from `config`; returns the local file they came from."""
    path = locate(weights)
    if path.is_dir():
        load_weights(path, model, config)
        return path / WEIGHTS
    load_authors_state(model, read_state(path, type(config)), str(path))
    return path


def build(config: Config) -> Tokenizer | Transformer:
    """A new model of the kind whose weights are stored with `config`."""
    return Tokenizer(config) if isinstance(config, TokenizerConfig) else Transformer(config)


def fitting_models(state: Mapping[str, Tensor], kind: type[Config]) -> list[Config]:
    """Configurations of the zoo whose models have the names and shapes of `state` (native names).

    Usage statistics may be missing. If several fit, their shapes cannot tell them apart.
    """
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    found: list[Config] = []
    for config in _tokenizers_like(state) if kind is TokenizerConfig else GENERATORS.values():
        with torch.device("meta"):
            expected = {name: tuple(value.shape) for name, value in build(config).state_dict().items()}
        missing = expected.keys() - shapes.keys()
        if shapes.items() <= expected.items() and all(name.endswith(STATISTICS) for name in missing):
            found.append(config)
    return found


def _tokenizers_like(state: Mapping[str, Tensor]) -> Iterator[TokenizerConfig]:
    """Tokenizers of the zoo with the latent tokens and the backbone of a state dict."""
    shape = tuple(state["encoder.latent_tokens"].shape)
    size = {384: "small", 768: "base", 1024: "large"}.get(shape[-1]) if shape else None
    registers = "reg4_" if "encoder.vit.reg_token" in state else ""
    for config in TOKENIZERS.values():
        if shape[:2] == (1, config.branches * config.latent_side**2):  # checked here, as building a model is slow
            if size is not None and config.backbone == TokenizerConfig.backbone:  # the released one
                config = replace(config, backbone=f"vit_{size}_patch14_{registers}dinov2.lvd142m")
            yield config


def _dtype(dtype: torch.dtype | str, device: str | torch.device) -> torch.dtype:
    if dtype == "auto":
        return fast_dtype(device)
    if dtype not in FLOATS:
        raise InputError(f'dtype must be a floating-point torch.dtype or "auto", not {dtype!r}')
    return dtype


def _require_fields(config: Config, overrides: Mapping[str, Any]) -> None:
    unknown = sorted(overrides.keys() - {field.name for field in dataclasses.fields(config)})
    if unknown:
        raise InputError(f"{type(config).__name__} has no field {', '.join(unknown)}")
