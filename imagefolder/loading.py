"""Models by name, with weights from wherever they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from imagefolder.checkpoints.authors import STATISTICS, Config, load_authors_state, read_state
from imagefolder.checkpoints.hub import locate
from imagefolder.checkpoints.native import FLOATS, WEIGHTS, load_weights
from imagefolder.config import TOKEN_FIELDS, GeneratorConfig, TokenizerConfig
from imagefolder.environment import fast_dtype
from imagefolder.errors import InputError
from imagefolder.generator.model import Generator
from imagefolder.generator.transformer import Transformer
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.zoo import GENERATORS, TOKENIZER_OF, TOKENIZERS, find


def load_tokenizer(
    name: str,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | Literal["auto"] = torch.float32,
    **overrides: Any,
) -> Tokenizer:
    """A tokenizer by name, in evaluation mode.

    Args:
        name: one of `imagefolder.list_models()`.
        weights: a native checkpoint (folder), the authors' `.pt` (its EMA weights if it has any) or `.pth`, the same
            tensors as `.safetensors`, or `hf://owner/repo[/file]`; None: fresh initialisation.
        device: where it lives.
        dtype: of weights and activations; the quantizer always works in float32. "auto": bfloat16 where the device is
            fast at it, else float32.
        overrides: fields of `TokenizerConfig`.

    Raises:
        InputError: unknown name or field, file absent, damaged or unsafe, keys that do not fit (the first 50 named).
    """
    config = _override(find(TOKENIZERS, name), overrides)
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
    device: str | torch.device = "cpu",
    dtype: torch.dtype | Literal["auto"] = torch.float32,
    **overrides: Any,
) -> Generator:
    """A generator by name on the tokens of `tokenizer`, in evaluation mode; arguments as for `load_tokenizer`.

    The fields that describe tokens (branches, scales, codebook_size, code_dim) are taken from the tokenizer.
    """
    tokens = {field: getattr(tokenizer.config, field) for field in TOKEN_FIELDS}
    config = _override(find(GENERATORS, name), tokens | overrides)
    model = Generator(config, tokenizer)
    if weights is not None:
        load_into(model.transformer, weights, config)
    model.transformer.to(device=device, dtype=_dtype(dtype, device))
    return model.eval()


def load_into(model: nn.Module, weights: str | Path, config: TokenizerConfig | GeneratorConfig) -> Path:
    """Load weights from wherever they are into a model built from `config`; returns the local file they came from."""
    path = locate(weights)
    if path.is_dir():
        load_weights(path, model, config)
        return path / WEIGHTS
    load_authors_state(model, read_state(path, type(config)), str(path))
    return path


def fitting_models(state: Mapping[str, Tensor], kind: type) -> list[Config]:
    """Configurations of the zoo whose names and shapes are those of `state` (as translated).

    Usage statistics may be there or not.
    """
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    found: list[Config] = []
    table = TOKENIZERS if kind is TokenizerConfig else GENERATORS
    for config in table.values():
        if kind is TokenizerConfig:
            if shapes["encoder.latent_tokens"][:2] != (1, config.branches * config.latent_side**2):
                continue  # building the model is what takes time
            config = replace(config, backbone=_backbone(state, config.backbone))
        else:
            tokenizer = TOKENIZERS[TOKENIZER_OF[config.name]]
            config = replace(config, **{field: getattr(tokenizer, field) for field in TOKEN_FIELDS})
        with torch.device("meta"):
            model = Tokenizer(config) if kind is TokenizerConfig else Transformer(config)
        expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        absent = expected.keys() - shapes.keys()
        if shapes.items() <= expected.items() and all(name.endswith(STATISTICS) for name in absent):
            found.append(config)
    return found


def _backbone(state: Mapping[str, Tensor], default: str) -> str:
    """Name of the DINOv2 backbone with the width of the weights, with or without registers."""
    size = {384: "small", 768: "base", 1024: "large"}.get(state["encoder.latent_tokens"].shape[-1])
    if size is None or "dinov2" not in default:
        return default
    return f"vit_{size}_patch14_{'reg4_' if 'encoder.vit.reg_token' in state else ''}dinov2.lvd142m"


def _dtype(dtype: torch.dtype | str, device: str | torch.device) -> torch.dtype:
    if dtype == "auto":
        return fast_dtype(device)
    if dtype not in FLOATS:
        raise InputError(f'dtype must be a floating-point torch.dtype or "auto", not {dtype!r}')
    return dtype


def _override(config: Any, overrides: dict[str, Any]) -> Any:
    unknown = sorted(set(overrides) - {field.name for field in dataclasses.fields(config)})
    if unknown:
        raise InputError(f"{type(config).__name__} has no field {', '.join(unknown)}")
    if isinstance(config, GeneratorConfig) and {"depth", "width", "heads"} & set(overrides):
        # width, heads and drop path follow the depth unless given
        derived = {"width": None, "heads": None, "drop_path": None} if "depth" in overrides else {}
        overrides = derived | overrides
    return dataclasses.replace(config, **overrides)
