"""The authors' checkpoint files (docs/method.md, "The released files"): read without executing anything they hold, and
their names translated.

Only tensors, plain containers and `argparse.Namespace` are unpickled; whatever else a file holds makes it refused.
"""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imagefolder.checkpoints.native import load_state, read_safetensors
from imagefolder.config import GeneratorConfig, TokenizerConfig
from imagefolder.errors import InputError
from imagefolder.generator.transformer import Transformer
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.zoo import GENERATORS, TOKENIZERS

Config = TokenizerConfig | GeneratorConfig

# Where a file keeps its weights, first choice first
_PLACES: dict[type, tuple[tuple[str, ...], ...]] = {
    TokenizerConfig: (("ema",), ("model",), ("trainer", "vae_local"), ("vae_local",)),
    GeneratorConfig: (("trainer", "var_wo_ddp"), ("var_wo_ddp",), ("ema",), ("model",)),
}
_NAMES: dict[type, tuple[tuple[str, str], ...]] = {
    TokenizerConfig: (
        (r"^(encoder|decoder)\.model\.", r"\1.vit."),
        (r"^(encoder|decoder)\.lvl_embed\.", r"\1.level_embed."),
        (r"^decoder\.to_pixel\.(model\.)?", "decoder.to_pixels."),
        (r"^quantizes\.(\d+)\.", r"quantizer.branches.\1."),
        (r"^quantize\.", "quantizer.branches.0."),
        (r"\.quant_resi\.(qresi_ls\.)?(\d+)\.", r".phis.\2."),  # partially shared, or one per scale
        (r"\.quant_resi\.qresi\.", ".phis.0."),  # one for all scales
        (r"\.embedding\.weight$", ".codebook.weight"),
    ),
    GeneratorConfig: (
        (r"^pos_start$", "start_position"),
        (r"^pos_1LC$", "position_embed"),
        (r"^word_embed\.", "input_embed."),
        (r"^class_emb\.", "class_embed."),
        (r"^lvl_embed\.", "level_embed."),
        (r"^blocks\.", "layers."),
        (r"\.scale_mul_1H11$", ".log_scale"),
        (r"\.mat_qkv\.", ".qkv."),
        (r"\.ffn\.fc1\.", ".mlp.0."),
        (r"\.ffn\.fc2\.", ".mlp.2."),
        (r"^head_nm\.ada_lin\.1\.", "head_ada."),
        (r"\.ada_lin\.1\.", ".ada."),
    ),
}
# Tables derived from the configuration, usage statistics, and the frozen teachers: no output depends on them
_DERIVED = re.compile(
    r"(^|\.)(lvl1LC|lvl_1L|attn_bias_for_masking|attn_mask|zero_k_bias|scaler|mask|zero|codebook|codebook_used"
    r"|ema_vocab_hit_SV)$"
    r"|^(semantic_model|detail_model|perceptual_loss)\."
)
STATISTICS = (".codebook.hits", ".codebook.updates")  # ours of the same kind, not in the authors' files
_CONVOLUTIONS = re.compile(r"^(quant_conv|post_quant_conv)\.weight$")  # 1x1 there, linear here
_WRAPPERS = ("module.", "_orig_mod.")  # left by data-parallel training and by torch.compile


class NoWeights(InputError):
    """A readable file without weights of the kind looked for."""


@dataclass(frozen=True)
class State:
    """Weights by native names; `place` where in the file they were ("ema"), `steps` trained if the file says so."""

    tensors: dict[str, Tensor]
    place: str
    steps: int | None


def read_state(path: Path, kind: type[TokenizerConfig] | type[GeneratorConfig]) -> State:
    """Weights of a tokenizer or generator from one of the authors' files, by native names.

    Args:
        path: `.pt` or `.pth` (a state dict, alone or where the authors' training scripts keep it), or `.safetensors`.
        kind: what to look for; generator files hold their tokenizer as well.

    Raises:
        NoWeights: the file holds none of this kind.
        InputError: it cannot be read, or would execute code.
    """
    document = read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path)
    steps = document.get("steps") if isinstance(document, Mapping) else None
    for place, tensors in _candidates(document, kind):
        translated = translate(tensors, kind)
        if _marker(kind) in translated:
            return State(translated, place, steps if isinstance(steps, int) else None)
    what = "tokenizer" if kind is TokenizerConfig else "generator"
    found = ", ".join(map(str, document)) if isinstance(document, Mapping) else type(document).__name__
    raise NoWeights(f"{path}: holds no {what} weights (found: {found[:300]})")


def read_pickle(path: Path) -> Any:
    """Content of a torch file: tensors, plain containers and `argparse.Namespace`, else `InputError`."""
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickle protocols; what cannot be read is said below
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except pickle.UnpicklingError as error:
            named = re.search(r"(?:GLOBAL|class|function) ([\w.]+)", str(error))
            held = f"it asks for {named.group(1)}" if named else "it is no plain torch checkpoint"
            raise InputError(
                f"{path}: refused, {held}; only tensors, plain containers and argparse.Namespace are loaded, since "
                "anything else could execute code"
            ) from None
        except (OSError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(f"{path}: cannot be read as a torch checkpoint ({reason})") from None


def translate(state: Mapping[str, Tensor], kind: type) -> dict[str, Tensor]:
    """The authors' names and shapes to ours; native names stay as they are, derived tables are left out."""
    translated = {}
    for name, value in state.items():
        while name.startswith(_WRAPPERS):
            name = name.split(".", 1)[1]
        if _DERIVED.search(name):
            continue
        for pattern, replacement in _NAMES[kind]:
            name = re.sub(pattern, replacement, name)
        translated[name] = value.flatten(1) if _CONVOLUTIONS.match(name) else value
    return translated


def load_authors_state(model: nn.Module, state: State, origin: str) -> None:
    """Load in strict mode; `InputError` names every key that does not fit. Usage statistics stay the model's own."""
    own = {name: value for name, value in model.state_dict().items() if name.endswith(STATISTICS)}
    load_state(model, own | state.tensors, origin)


def fitting_models(state: Mapping[str, Tensor], kind: type) -> list[Config]:
    """Configurations of the zoo whose names and shapes are those of `state` (as translated)."""
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    found: list[Config] = []
    table = TOKENIZERS if kind is TokenizerConfig else GENERATORS
    for config in table.values():
        if kind is TokenizerConfig:
            if state["encoder.latent_tokens"].shape[:2] != (1, config.branches * config.latent_side**2):
                continue  # building the model is what takes time
            config = replace(config, backbone=_backbone(state, config.backbone))
        with torch.device("meta"):
            model = Tokenizer(config) if kind is TokenizerConfig else Transformer(config)
        expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        if {name: shape for name, shape in expected.items() if not name.endswith(STATISTICS)} == shapes:
            found.append(config)
    return found


def _backbone(state: Mapping[str, Tensor], default: str) -> str:
    """Name of the DINOv2 backbone with the width of the weights, with or without registers."""
    size = {384: "small", 768: "base", 1024: "large"}.get(state["encoder.latent_tokens"].shape[-1])
    if size is None or "dinov2" not in default:
        return default
    return f"vit_{size}_patch14_{'reg4_' if 'encoder.vit.reg_token' in state else ''}dinov2.lvd142m"


def _marker(kind: type) -> str:
    """A name that only weights of this kind have."""
    return "encoder.latent_tokens" if kind is TokenizerConfig else "input_embed.weight"


def _candidates(document: Any, kind: type) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    for place in (*_PLACES[kind], ()):
        value = document
        for key in place:
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, Mapping) and value and all(isinstance(v, Tensor) for v in value.values()):
            yield ".".join(place) or "the whole file", value
