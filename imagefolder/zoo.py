"""Every named configuration, each a few numbers away from the released ImageFolder models."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from imagefolder.config import GeneratorConfig, TokenizerConfig, TrainingConfig
from imagefolder.errors import InputError
from imagefolder.validation import shown

_Config = TypeVar("_Config", TokenizerConfig, GeneratorConfig)

# Released models at 256 x 256 (names as in the authors' zoo). V vector, B binary spherical, P product, MS..R10 ten
# scales of residuals. docs/zoo.md sets every field beside the published one.
#
# Commitment loss: the mean over scales, as in ImageFolder's own release, which lists all three sizes of MSVR10P2; the
# later XQ-GAN release, which lists them again, sums it (commitment_over_scales="sum"). For the others it is the same.
_RELEASED = TokenizerConfig(name="MSVR10P2-4096", commitment_over_scales="mean")
_VQ = replace(_RELEASED, name="VQ-4096", branches=1, scales=(16,), code_dim=64, quantizer_dropout=0.0)
_VP2 = replace(_RELEASED, name="VP2-4096", scales=(16,))
_BINARY = replace(_RELEASED, name="MSBR10P2-4096", quantizer="bsq", code_dim=12)

# mini: handwritten digits at 32 x 32 on two CPU cores. The ratio of latent side to image grid (3 : 4) and of folded
# positions to raster positions (14 : 16) are close to the released 11 : 16 and 286 : 256.
_MINI = TokenizerConfig(
    name="mini-MSVR3P2-256",
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

# small: any image folder at 128 x 128 on one GPU.
_SMALL = TokenizerConfig(
    name="small-MSVR8P2-1024",
    image_size=128,
    patch_size=8,
    backbone="vit_small_patch16_224",
    depth=8,
    scales=(1, 1, 2, 3, 4, 5, 7, 9),
    codebook_size=1024,
    code_dim=32,
)

TOKENIZERS: dict[str, TokenizerConfig] = {
    config.name: config
    for config in (
        _RELEASED,
        replace(_RELEASED, name="MSVR10P2-8192", codebook_size=8192),
        replace(_RELEASED, name="MSVR10P2-16384", codebook_size=16384),
        _BINARY,
        replace(_BINARY, name="MSBR10P2-16384", codebook_size=16384, code_dim=14),
        _VP2,
        replace(_VP2, name="VP2-16384", codebook_size=16384),
        _VQ,
        replace(_VQ, name="VQ-8192", codebook_size=8192, code_dim=32),
        replace(_VQ, name="RobustTok", perturbed_images=0.1),
        # The one-branch baseline at the same number of positions (no released weights).
        replace(_RELEASED, name="MSVR10-4096", branches=1, semantic="none", quantizer_dropout=0.0),
        _MINI,
        replace(_MINI, name="mini-MSVR3-256", branches=1, semantic="none", quantizer_dropout=0.0),
        replace(_MINI, name="mini-MSBR3P2-256", quantizer="bsq", code_dim=8),
        replace(_MINI, name="mini-VP2-256", scales=(4,)),
        replace(_MINI, name="mini-VQ-256", branches=1, scales=(4,), quantizer_dropout=0.0),
        replace(
            _MINI,
            name="mini-RobustTok",
            branches=1,
            scales=(4,),
            quantizer_dropout=0.0,
            perturbed_images=0.1,
            perturbation_depth=6,  # 100 of 4096 codes
        ),
        _SMALL,
        replace(_SMALL, name="small-MSVR8-1024", branches=1, semantic="none", quantizer_dropout=0.0),
        replace(_SMALL, name="small-VQ-1024", branches=1, scales=(16,), quantizer_dropout=0.0),
    )
}


@dataclass(frozen=True)
class Objective:
    """How a released tokenizer was trained, where that is not as LossConfig's defaults and RELEASED_TRAINING say."""

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

# 350 epochs (the default of the released code; the document states none) in batches of 768; 8e-5 x batch / 256
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
"""Of every tokenizer in the authors' zoo."""

_MINI_GENERATOR = GeneratorConfig(depth=3, width=96, heads=3, num_classes=10, drop_path=0.0)
_SMALL_GENERATOR = GeneratorConfig(depth=10, num_classes=1000)

GENERATORS: dict[str, GeneratorConfig] = {
    config.name: config
    for config in (
        GeneratorConfig(name="VAR-d17-MSVR10P2-4096"),
        GeneratorConfig(name="VAR-d17-MSVR10P2-4096-unfolded", order="unfolded"),
        GeneratorConfig(name="VAR-d17-MSVR10-4096"),
        GeneratorConfig(name="AR-d17-VQ-4096", order="raster", scales=(16,)),
        replace(_MINI_GENERATOR, name="VAR-mini-MSVR3P2-256"),
        replace(_MINI_GENERATOR, name="VAR-mini-MSVR3P2-256-unfolded", order="unfolded"),
        replace(_MINI_GENERATOR, name="VAR-mini-MSVR3-256"),
        replace(_MINI_GENERATOR, name="AR-mini-VQ-256", order="raster", scales=(4,)),
        replace(_SMALL_GENERATOR, name="VAR-small-MSVR8P2-1024"),
        replace(_SMALL_GENERATOR, name="VAR-small-MSVR8P2-1024-unfolded", order="unfolded"),
        replace(_SMALL_GENERATOR, name="VAR-small-MSVR8-1024"),
        replace(_SMALL_GENERATOR, name="AR-small-VQ-1024", order="raster", scales=(16,)),
    )
}


TOKENIZER_OF: dict[str, str] = {
    "VAR-d17-MSVR10P2-4096": "MSVR10P2-4096",
    "VAR-d17-MSVR10P2-4096-unfolded": "MSVR10P2-4096",
    "VAR-d17-MSVR10-4096": "MSVR10-4096",
    "AR-d17-VQ-4096": "VQ-4096",
    "VAR-mini-MSVR3P2-256": "mini-MSVR3P2-256",
    "VAR-mini-MSVR3P2-256-unfolded": "mini-MSVR3P2-256",
    "VAR-mini-MSVR3-256": "mini-MSVR3-256",
    "AR-mini-VQ-256": "mini-VQ-256",
    "VAR-small-MSVR8P2-1024": "small-MSVR8P2-1024",
    "VAR-small-MSVR8P2-1024-unfolded": "small-MSVR8P2-1024",
    "VAR-small-MSVR8-1024": "small-MSVR8-1024",
    "AR-small-VQ-1024": "small-VQ-1024",
}
"""The tokenizer each generator was made for; with overrides of its shape a generator takes any other."""


@dataclass(frozen=True)
class Reported:
    """Numbers published for released weights on ImageNet 256 x 256; None: not published."""

    source: str
    rfid: float | None = None
    pfid: float | None = None
    gfid: float | None = None
    generator: str = ""
    """of the gFID"""


_README = "lxa9867/ImageFolder README"
REPORTED: dict[str, Reported] = {
    "MSVR10P2-4096": Reported(_README, 0.80, 7.23, 2.60, "VAR-d17, 362M"),
    "MSVR10P2-8192": Reported(_README, 0.70),
    "MSVR10P2-16384": Reported(_README, 0.67),
    "MSBR10P2-4096": Reported(_README, 0.86),
    "MSBR10P2-16384": Reported(_README, 0.78),
    "VP2-4096": Reported(_README, 0.90),
    "VP2-16384": Reported(_README, 0.64),
    "VQ-4096": Reported(_README, 0.91, 6.98),
    "VQ-8192": Reported(f"{_README}; arXiv 2509.12474 (gFID)", 0.81, 7.91, 2.22, "RAR, size not stated"),
    "RobustTok": Reported(f"{_README}; arXiv 2509.12474 (gFID)", 1.02, 2.28, 1.60, "RAR-L, 461M"),
    "VAR-d17-MSVR10P2-4096": Reported(f"{_README}; arXiv 2509.12474", gfid=2.60, generator="itself, guidance 3.25"),
}


def list_models() -> list[str]:
    """Names that `load_tokenizer` and `load_generator` accept, tokenizers first."""
    return [*TOKENIZERS, *GENERATORS]


def find(table: dict[str, _Config], name: str) -> _Config:
    """Look up a configuration; an unknown name raises `InputError` with the nearest known ones."""
    if isinstance(name, str) and name in table:
        return table[name]
    near = difflib.get_close_matches(str(name)[:200], table, n=3, cutoff=0.3) or list(table)
    raise InputError(
        f"unknown model {shown(name)}; did you mean {', '.join(near)}? imagefolder.list_models() lists all"
    )
