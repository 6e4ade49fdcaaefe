"""The authors' checkpoint files (docs/method.md, "The released files"), read without executing their content, and with
names translated to ours.

Only tensors, plain containers and `argparse.Namespace` are unpickled; a file with anything else is rejected, as is one
that claims to hold more than its size.
"""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imagefolder.checkpoints.averaged import averaged_states, unwrapped
from imagefolder.checkpoints.native import load_state, read_safetensors, require_file, require_plain
from imagefolder.config import Config, GeneratorConfig, TokenizerConfig
from imagefolder.errors import InputError, one_line, reason

# Where files store their weights, in order of preference
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
# Tables derived from the configuration, usage statistics, and the frozen teachers: they affect no output
_DERIVED = re.compile(
    r"(^|\.)(lvl1LC|lvl_1L|attn_bias_for_masking|attn_mask|zero_k_bias|scaler|mask|zero|codebook|codebook_used"
    r"|ema_vocab_hit_SV)$"
    r"|^(semantic_model|detail_model|perceptual_loss)\."
)
STATISTICS = (".codebook.hits", ".codebook.updates")  # ours, missing in the authors' files
_CONVOLUTIONS = re.compile(r"^(quant_conv|post_quant_conv)\.weight$")  # 1x1 in the files, linear here


class NoWeights(InputError):
    """A readable file without weights of the requested kind."""


@dataclass(frozen=True)
class State:
    """Weights by native names; `place`: where the file keeps them ("ema"); `steps`: of training, if known."""

    tensors: dict[str, Tensor]
    place: str
    steps: int | None


def read_state(path: Path, kind: type[Config]) -> State:
    """Weights of a tokenizer or generator from one of the authors' files, by native names.

    Averaged weights take precedence over raw ones, wherever the file stores them (see `averaged_states`).

    Args:
        path: `.pt` or `.pth` (a bare state dict, or one where the authors' training scripts put it), or `.safetensors`.
        kind: of configuration; generator files contain their tokenizer as well.

    Raises:
        NoWeights: the file has none of this kind.
        InputError: it cannot be read, would execute code, or contains averaged weights that are ambiguous.
    """
    document = read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path)
    found = _find(document, kind, str(path))
    if found is None:
        what = "tokenizer" if kind is TokenizerConfig else "generator"
        keys = document if isinstance(document, Mapping) else [type(document).__name__]
        names = ", ".join(one_line(key)[:50] for key in islice(keys, 20) if isinstance(key, str | int))
        raise NoWeights(f"{path}: contains no {what} weights (found: {names[:300]})")
    place, tensors = found
    names = {name: native_name(name, kind) for name in tensors}
    for name, native in names.items():
        if native is not None:
            require_plain(name, tensors[name], str(path))
    twice = [native for native, number in Counter(names.values()).items() if native is not None and number > 1]
    if twice:
        raise InputError(f"{path}: '{place}' contains {twice[0]} under several names")
    steps = document.get("steps")
    steps = steps if type(steps) is int and 0 <= steps < 2**63 else None
    return State(translate(tensors, kind), one_line(place)[:200], steps)


def read_pickle(path: Path) -> Any:
    """Content of a torch file; `InputError` unless it is tensors, plain containers and `argparse.Namespace`.

    Tensors of a zip file stay on disk until they are used.
    """
    require_file(path, "a torch checkpoint")
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickle protocols; unreadable files are reported below
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_sound_archive(path))
        except pickle.UnpicklingError as error:
            named = re.search(r"(?:GLOBAL|class|function) ([\w.]{1,100})", str(error))
            why = f"it asks for {named.group(1)}" if named else "it is not a plain torch checkpoint"
            raise InputError(
                f"{path}: refused, {why}; only tensors, plain containers and argparse.Namespace are loaded, because "
                "anything else could execute code"
            ) from None
        except Exception as error:  # torch raises almost anything on damaged files
            raise InputError(f"{path}: cannot be read as a torch checkpoint ({reason(error)})") from None


def _is_sound_archive(path: Path) -> bool:
    """Whether a file is a zip; `ValueError` or `BadZipFile` if its records were changed."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        compressed = any(record.compress_type != zipfile.ZIP_STORED for record in records)
        if compressed or sum(record.file_size for record in records) > path.stat().st_size:
            raise ValueError("torch.save did not write it: its records are compressed, or larger than the file")
        for record in records:
            if record.CRC:  # 0 if torch was told to save without checksums
                with archive.open(record) as file:
                    while file.read(2**20):  # the last read verifies the checksum
                        pass
    return True


def native_name(name: str, kind: type) -> str | None:
    """Our name for one of the authors' tensors, None for one that is left out; native names are unchanged."""
    name = unwrapped(name)
    if _DERIVED.search(name):
        return None
    for pattern, replacement in _NAMES[kind]:
        name = re.sub(pattern, replacement, name)
    return name


def translate(state: Mapping[str, Tensor], kind: type) -> dict[str, Tensor]:
    """Convert the authors' names and shapes to ours, leaving out derived tables."""
    translated = {}
    for name, value in state.items():
        native = native_name(name, kind)
        if native is not None:
            flat = _CONVOLUTIONS.match(native) and value.ndim > 1
            translated[native] = value.flatten(1) if flat else value
    return translated


def load_authors_state(model: nn.Module, state: State, origin: str) -> None:
    """Load in strict mode, except for usage statistics, which remain the model's own.

    Raises:
        InputError: naming the keys that do not match (see `load_state`).
    """
    own = {name: value for name, value in model.state_dict().items() if name.endswith(STATISTICS)}
    load_state(model, own | state.tensors, origin)


def _find(document: Any, kind: type, origin: str) -> tuple[str, Mapping[str, Tensor]] | None:
    """Where the weights of a kind are, and the weights under the names they have there."""
    for place in (*_PLACES[kind], ()):
        found = _averaged(document, kind, origin) if place == ("ema",) else _at(document, place, kind)
        if found is not None:
            return found
    return None


def _at(document: Any, place: tuple[str, ...], kind: type) -> tuple[str, Mapping[str, Tensor]] | None:
    for key in place:
        document = document.get(key) if isinstance(document, Mapping) else None
    return (".".join(place) or "the whole file", document) if _holds(document, kind) else None


def _averaged(document: Any, kind: type, origin: str) -> tuple[str, Mapping[str, Tensor]] | None:
    """The averaged weights of a kind, None if there are none.

    Raises:
        InputError: there are several, or their names are missing or not explained by anything in the file.
    """
    others = (_at(document, place, kind) for place in (*_PLACES[kind], ()) if place != ("ema",))
    raw = next((found[1] for found in others if found is not None), {})
    for key, states in averaged_states(document, raw):
        usable = [(place, tensors) for place, tensors in states if _holds(tensors, kind)]
        if len(usable) == 1:
            return usable[0]
        other = GeneratorConfig if kind is TokenizerConfig else TokenizerConfig
        if usable or (raw and not any(_holds(tensors, other) for _, tensors in states)):
            problem = "several sets of weights" if usable else "averaged weights with unknown names"
            raise InputError(
                f"{origin}: '{one_line(key)[:50]}' contains {problem}; save the averaged state dict alone, under the "
                "model's own names: the raw weights are not used instead"
            )
    return None


def _holds(value: Any, kind: type) -> bool:
    """Whether a value is a state dict with weights of a kind."""
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
        and any(native_name(name, kind) == _marker(kind) for name in value)
    )


def _marker(kind: type) -> str:
    """A name that occurs only in weights of this kind."""
    return "encoder.latent_tokens" if kind is TokenizerConfig else "input_embed.weight"
