"""Models by name, with weights from any source."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from imagefolder.checkpoints.authors import STATISTICS, load_authors_state, read_state
from imagefolder.checkpoints.hub import SCHEME, locate
from imagefolder.checkpoints.native import CONFIG, FLOATS, WEIGHTS, load_weights, native_sha256, read_about
from imagefolder.config import Config, GeneratorConfig, TokenizerConfig
from imagefolder.environment import dtype_for
from imagefolder.errors import InputError
from imagefolder.generator.model import Generator
from imagefolder.generator.transformer import Transformer
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.validation import shown
from imagefolder.zoo import GENERATORS, TOKENIZERS, find, for_tokenizer


@overload
def load(
    source: str | Path,
    tokenizer: None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | Literal["auto"] = torch.float32,
) -> Tokenizer: ...
@overload
def load(
    source: str | Path,
    tokenizer: Tokenizer | str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | Literal["auto"] = torch.float32,
) -> Generator: ...
def load(
    source: str | Path,
    tokenizer: Tokenizer | str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | Literal["auto"] = torch.float32,
) -> Tokenizer | Generator:
    """Any saved model, in evaluation mode: its folder says what it is.

    Args:
        source: a folder written by a training, `save_pretrained` or `python -m imagefolder.checkpoints convert`, or one
            on the hub: `hf://owner/repo[@revision]`.
        tokenizer: of a generator, loaded or its source; None for a tokenizer.
        device, dtype: as for `load_tokenizer`.

    Raises:
        InputError: nothing there, something else, or a damaged file; a generator without its tokenizer, or with another
            one than it was trained with.
    """
    folder = _located(source)
    kind = read_about(folder).get("kind")
    if kind == TokenizerConfig.__name__:
        if tokenizer is not None:
            raise InputError(f"{source} is a tokenizer itself; tokenizer=... goes with a generator")
        return _placed_tokenizer(Tokenizer.from_pretrained(folder), device, dtype)
    if kind != GeneratorConfig.__name__:
        raise InputError(f"{folder / CONFIG}: neither a tokenizer nor a generator (kind {shown(kind)})")
    if tokenizer is None:
        raise InputError(f"{source} is a generator; pass its tokenizer as well: load(..., tokenizer=...)")
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = load(tokenizer, device=device, dtype=dtype)
    generator = Generator.from_pretrained(folder, tokenizer=tokenizer)
    _place_transformer(generator.transformer, device, dtype)
    return generator


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
            tensors as `.safetensors`, or `hf://owner/repo[/file]`; None: random ones, with a warning.
        device: of the model.
        dtype: of weights and activations; the quantizer always runs in float32. "auto": bfloat16 where the
            layers of this model are measured to be faster in it, otherwise float32.
        overrides: fields of `TokenizerConfig`.

    Raises:
        InputError: unknown name or field; missing, damaged or unsafe file; keys that do not match (names the first 50).

    Warns:
        UserWarning: the weights are random, as none were given (not on the device "meta").
    """
    config = find(TOKENIZERS, name)
    _require_fields(config, overrides)
    config = replace(config, **overrides)
    model = Tokenizer(config)
    if weights is None:
        _warn_of_random(name, device)
    else:
        load_into(model, weights, config)
    return _placed_tokenizer(model, device, dtype)


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
    if weights is None:
        _warn_of_random(name, device)
    else:
        adopt_about(model, load_into(model.transformer, weights, config))
    _place_transformer(model.transformer, device, dtype)
    return model.eval()


def load_into(model: nn.Module, weights: str | Path, config: Config) -> Path:
    """Load weights from any source into a model built from `config`; returns the local file they came from."""
    path = locate(weights)
    if path.is_dir():
        load_weights(path, model, config)
        return path / WEIGHTS
    load_authors_state(model, read_state(path, type(config)), str(path))
    return path


def adopt_about(generator: Generator, path: Path) -> None:
    """Take over what a native checkpoint, with its weights at `path`, says about a generator; other files say nothing.

    Raises:
        InputError: it was trained with another tokenizer than its own now, or the document is wrong.
    """
    if path.name == WEIGHTS and (path.parent / CONFIG).exists():
        generator.adopt(read_about(path.parent), str(path.parent))


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
        expected = _shapes(config)
        missing = expected.keys() - shapes.keys()
        if shapes.items() <= expected.items() and all(name.endswith(STATISTICS) for name in missing):
            found.append(config)
    return found


@functools.cache  # building a model is slow, even without memory
def _shapes(config: Config) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in build(config).state_dict().items()}


def _tokenizers_like(state: Mapping[str, Tensor]) -> Iterator[TokenizerConfig]:
    """Tokenizers of the zoo with the latent tokens and the backbone of a state dict."""
    shape = tuple(state["encoder.latent_tokens"].shape)
    size = {384: "small", 768: "base", 1024: "large"}.get(shape[-1]) if shape else None
    registers = "reg4_" if "encoder.vit.reg_token" in state else ""
    for config in TOKENIZERS.values():
        if shape[:2] == (1, config.branches * config.latent_side**2):
            if size is not None and config.backbone == TokenizerConfig.backbone:  # the released one
                config = replace(config, backbone=f"vit_{size}_patch14_{registers}dinov2.lvd142m")
            yield config


def _located(source: str | Path) -> Path:
    """The folder of a native checkpoint."""
    try:
        folder = locate(source)
    except InputError as error:
        on_the_hub = str(source).count("/") == 1 and not str(source).startswith((SCHEME, ".", "/"))
        raise InputError(f"{error}{f'; on the hub, it is {SCHEME}{source}' if on_the_hub else ''}") from None
    if not folder.is_dir():
        raise InputError(
            f"{source} is not the folder of a saved model; a weight file is loaded by the name of its model: "
            f"load_tokenizer(NAME, weights=...); `python -m imagefolder.checkpoints inspect {folder}` says which"
        )
    return folder


def _placed_tokenizer(model: Tokenizer, device: str | torch.device, dtype: torch.dtype | str) -> Tokenizer:
    config, vit = model.config, model.encoder.vit
    positions = (config.image_size // config.patch_size) ** 2 + config.branches * config.latent_side**2
    dtype = _dtype(dtype, device, vit.blocks[0].mlp, (positions, vit.embed_dim))
    if dtype != torch.float32 and torch.device(device).type != "meta":
        model.float32_sha256 = native_sha256(model)
    for name, part in model.named_children():
        part.to(device=device, dtype=None if name == "quantizer" else dtype)  # it computes in float32
    return model.eval()


def _warn_of_random(name: str, device: str | torch.device) -> None:
    """Attributed to the caller of the caller."""
    if torch.device(device).type != "meta":  # there, weights have no values
        warnings.warn(f"{name} has random weights; pass weights=... to load trained ones", stacklevel=3)


def _place_transformer(model: Transformer, device: str | torch.device, dtype: torch.dtype | str) -> None:
    shape = model.sequence.length, model.config.width
    model.to(device=device, dtype=_dtype(dtype, device, model.layers[0].mlp, shape))


def _dtype(
    dtype: torch.dtype | str, device: str | torch.device, layer: nn.Module, shape: tuple[int, int]
) -> torch.dtype:
    """`dtype`, or if it is "auto" the faster one for a model with such layers, see `dtype_for`."""
    if dtype == "auto":
        return dtype_for(layer, shape, device)
    if dtype not in FLOATS:
        raise InputError(f'dtype must be a floating-point torch.dtype or "auto", not {dtype!r}')
    return dtype


def _require_fields(config: Config, overrides: Mapping[str, Any]) -> None:
    unknown = sorted(overrides.keys() - {field.name for field in dataclasses.fields(config)})
    if unknown:
        raise InputError(f"{type(config).__name__} has no field {', '.join(unknown)}")
