"""The named configurations, each a few fields away from the released ImageFolder models."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from imagefolder.config import TOKEN_FIELDS, GeneratorConfig, TokenizerConfig, TrainingConfig
from imagefolder.errors import InputError
from imagefolder.kinds import ORDERS, QUANTIZERS
from imagefolder.validation import shown

_Config = TypeVar("_Config", TokenizerConfig, GeneratorConfig)

FAMILIES = {(32, 2): "mini", (64, 4): "laptop", (128, 8): "small"}
"""Configurations smaller than the released ones, by image size and depth of the tokenizer: mini trains in minutes and
laptop in an hour on two CPU cores, small in hours on one GPU."""


def family(config: TokenizerConfig) -> str:
    """Name of the family that a tokenizer belongs to by its size; "" for the released and all other sizes."""
    return "" if config.depth is None else FAMILIES.get((config.image_size, config.depth), "")


def tokenizer_name(config: TokenizerConfig) -> str:
    """Name of a tokenizer in the notation of the authors' zoo: "MSVR10P2-4096", "mini-VQ-256".

    V is the quantizer's letter (`kinds.QUANTIZERS`), MS..R10 ten scales of residuals, P2 two branches, Q one branch and
    scale, the last number the codebook size. "-plain" marks the absence of semantic regularisation, except in
    multi-scale tokenizers of one branch, which the zoo does not regularise. Names are for people: configurations that
    differ in other fields share one.
    """
    return "-".join(filter(None, (family(config), _shape(config))))


def generator_name(config: GeneratorConfig, tokenizer: TokenizerConfig) -> str:
    """Name of a generator for a tokenizer's tokens: "VAR-d17-MSVR10P2-4096", "AR-mini-VQ-256"."""
    kind, size = ORDERS[config.order], family(tokenizer) or f"d{config.depth}"
    return f"{kind.prefix}-{size}-{_shape(tokenizer)}{kind.suffix}"


def _shape(config: TokenizerConfig) -> str:
    if config.perturbed_images:
        return "RobustTok"
    letter, scales, multi_scale = QUANTIZERS[config.quantizer].letter, len(config.scales), len(config.scales) > 1
    branches = f"P{config.branches}" if config.branches > 1 else "" if multi_scale else "Q"
    plain = "-plain" if config.semantic == "none" and (config.branches > 1 or not multi_scale) else ""
    return f"{f'MS{letter}R{scales}' if multi_scale else letter}{branches}-{config.codebook_size}{plain}"


def variant(config: TokenizerConfig, **changes: Any) -> TokenizerConfig:
    """A tokenizer with some fields changed, named accordingly."""
    changed = replace(config, **changes)
    return replace(changed, name=tokenizer_name(changed))


def for_tokenizer(generator: GeneratorConfig, tokenizer: TokenizerConfig, **changes: Any) -> GeneratorConfig:
    """A generator for a tokenizer's tokens, from one for any others.

    Args:
        generator: the configuration to adapt.
        tokenizer: its branches, scales, codebook_size and code_dim replace the generator's.
        changes: further fields. Unless given, the name is derived from the fields, and width, heads and drop_path from
            a changed depth.
    """
    derived = {"width": None, "heads": None, "drop_path": None} if "depth" in changes else {}
    tokens = {field: getattr(tokenizer, field) for field in TOKEN_FIELDS}
    changed = replace(generator, **derived | tokens | changes)
    return changed if "name" in changes else replace(changed, name=generator_name(changed, tokenizer))


# Released models at 256 x 256. docs/zoo.md lists every field next to the published one.
#
# Commitment loss: the mean over scales, as in ImageFolder's own release, which lists all three sizes of MSVR10P2; the
# later XQ-GAN release, which lists them again, sums it (commitment_over_scales="sum"). For the others it is the same.
_RELEASED = TokenizerConfig(commitment_over_scales="mean")
_VQ = replace(_RELEASED, branches=1, scales=(16,), code_dim=64, quantizer_dropout=0.0)
_VP2 = replace(_RELEASED, scales=(16,))
_BINARY = replace(_RELEASED, quantizer="bsq", code_dim=12)

# mini: the ratio of latent side to image grid (3 : 4) and of folded positions to raster positions (14 : 16) are close
# to the released 11 : 16 and 286 : 256.
_MINI = TokenizerConfig(
    image_size=32,
    patch_size=8,
    backbone="vit_tiny_patch16_224",
    width=64,
    depth=2,
    heads=2,
    drop_path=0.0,
    scales=(1, 2, 3),
    codebook_size=256,
    code_dim=16,
    dropout_start=2,
)
_MINI_VQ = replace(_MINI, branches=1, scales=(4,), quantizer_dropout=0.0)

# laptop: 6 : 8 and 57 : 64
_LAPTOP = TokenizerConfig(
    image_size=64,
    patch_size=8,
    backbone="vit_tiny_patch16_224",
    depth=4,
    drop_path=0.0,
    scales=(1, 2, 4, 6),
    codebook_size=4096,
    code_dim=8,
    dropout_start=2,
)

# small: 9 : 16 and 186 : 256
_SMALL = TokenizerConfig(
    image_size=128,
    patch_size=8,
    backbone="vit_small_patch16_224",
    depth=8,
    scales=(1, 1, 2, 3, 4, 5, 7, 9),
    codebook_size=1024,
    code_dim=32,
)

# The VAR baseline at the same number of positions (no released weights)
_ONE_BRANCH: dict[str, Any] = {"branches": 1, "semantic": "none", "quantizer_dropout": 0.0}

TOKENIZERS: dict[str, TokenizerConfig] = {
    tokenizer_name(config): variant(config)
    for config in (
        _RELEASED,
        replace(_RELEASED, codebook_size=8192),
        replace(_RELEASED, codebook_size=16384),
        _BINARY,
        replace(_BINARY, codebook_size=16384, code_dim=14),
        _VP2,
        replace(_VP2, codebook_size=16384),
        _VQ,
        replace(_VQ, codebook_size=8192, code_dim=32),
        replace(_VQ, perturbed_images=0.1),
        replace(_RELEASED, **_ONE_BRANCH),
        _MINI,
        replace(_MINI, **_ONE_BRANCH),
        replace(_MINI, quantizer="bsq", code_dim=8),
        replace(_MINI, scales=(4,)),
        _MINI_VQ,
        replace(_MINI_VQ, perturbed_images=0.1, perturbation_depth=6),  # 100 of 4096 codes
        _LAPTOP,
        replace(_LAPTOP, **_ONE_BRANCH),
        replace(_LAPTOP, branches=1, scales=(8,), quantizer_dropout=0.0),
        _SMALL,
        replace(_SMALL, **_ONE_BRANCH),
        replace(_SMALL, branches=1, scales=(16,), quantizer_dropout=0.0),
    )
}


@dataclass(frozen=True)
class Objective:
    """How a released tokenizer's training differs from the defaults of LossConfig and from RELEASED_TRAINING."""

    loss: dict[str, Any] = field(default_factory=dict)
    weight_decay: float = 0.0


# 200 epochs of ImageNet's 1,281,167 images in batches of 1024; 3e-5 x batch / 128
RELEASED_TRAINING = TrainingConfig(
    steps=250_200,
    batch_size=1024,
    learning_rate=2.4e-4,
    schedule="cosine",
    warmup=1 / 200,
    initial_rate=1e-5 / 2.4e-4,
    final_rate=5e-5 / 2.4e-4,
    epoch_steps=1251,
    ema=0.9999,
    precision="bf16",
    evaluate_every=10_000,
    select_by="raw",
)

# 350 epochs (the released code's default; nothing published states it) in batches of 768; 8e-5 x batch / 256
RELEASED_GENERATOR_TRAINING = TrainingConfig(
    steps=583_800,
    batch_size=768,
    learning_rate=2.4e-4,
    weight_decay=0.05,
    schedule="linear",
    warmup=1 / 50,
    initial_rate=0.005,
    final_rate=0.01,
    clip=2.0,
    ema=0.0,  # the released generator is not averaged
    precision="fp16",
)

_AS_BINARY = Objective(
    loss={
        "semantic_normalise": True,
        "semantic_scale": (1.0, 100.0),
        "adversarial_start": 64 / 200,
        "discriminator_warmup": 4 / 136,
    },
    weight_decay=5e-5,
)
OBJECTIVES: dict[str, Objective] = {
    "MSVR10P2-4096": Objective(),
    "MSVR10P2-8192": Objective(),
    "MSVR10P2-16384": Objective(),
    "MSBR10P2-4096": _AS_BINARY,
    "MSBR10P2-16384": _AS_BINARY,
    "VP2-4096": Objective(),
    "VP2-16384": Objective(),
    "VQ-4096": Objective(),
    "VQ-8192": Objective(),
    "RobustTok": Objective(),
}
"""The training objective of every tokenizer in the authors' zoo."""

_GENERATOR = GeneratorConfig()
_MINI_GENERATOR = GeneratorConfig(depth=3, width=96, heads=3, num_classes=10, drop_path=0.0)
_LAPTOP_GENERATOR = GeneratorConfig(depth=6, width=256, heads=4, num_classes=10, drop_path=0.0)
_SMALL_GENERATOR = GeneratorConfig(depth=10, num_classes=1000)

_MADE_FOR = [
    (for_tokenizer(generator, TOKENIZERS[tokenizer], order=order), tokenizer)
    for generator, tokenizer, order in (
        (_GENERATOR, "MSVR10P2-4096", "folded"),
        (_GENERATOR, "MSVR10P2-4096", "unfolded"),
        (_GENERATOR, "MSVR10-4096", "folded"),
        (_GENERATOR, "VQ-4096", "raster"),
        (_MINI_GENERATOR, "mini-MSVR3P2-256", "folded"),
        (_MINI_GENERATOR, "mini-MSVR3P2-256", "unfolded"),
        (_MINI_GENERATOR, "mini-MSVR3-256", "folded"),
        (_MINI_GENERATOR, "mini-VQ-256", "raster"),
        (_LAPTOP_GENERATOR, "laptop-MSVR4P2-4096", "folded"),
        (_LAPTOP_GENERATOR, "laptop-MSVR4P2-4096", "unfolded"),
        (_LAPTOP_GENERATOR, "laptop-MSVR4-4096", "folded"),
        (_LAPTOP_GENERATOR, "laptop-VQ-4096", "raster"),
        (_SMALL_GENERATOR, "small-MSVR8P2-1024", "folded"),
        (_SMALL_GENERATOR, "small-MSVR8P2-1024", "unfolded"),
        (_SMALL_GENERATOR, "small-MSVR8-1024", "folded"),
        (_SMALL_GENERATOR, "small-VQ-1024", "raster"),
    )
]
GENERATORS: dict[str, GeneratorConfig] = {config.name: config for config, _ in _MADE_FOR}
TOKENIZER_OF: dict[str, str] = {config.name: tokenizer for config, tokenizer in _MADE_FOR}
"""The tokenizer of each generator; `load_generator` adapts the generator to any other."""


def list_models() -> list[str]:
    """The names that `load_tokenizer` and `load_generator` accept, tokenizers first."""
    return [*TOKENIZERS, *GENERATORS]


def find(table: dict[str, _Config], name: str) -> _Config:
    """Look up a configuration; an unknown name raises `InputError` with the closest known names."""
    if isinstance(name, str) and name in table:
        return table[name]
    near = difflib.get_close_matches(str(name)[:200], table, n=3, cutoff=0.3) or list(table)
    raise InputError(
        f"unknown model {shown(name)}; did you mean {', '.join(near)}? imagefolder.list_models() lists all"
    )
