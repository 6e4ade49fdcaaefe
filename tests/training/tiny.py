"""A tokenizer that trains in seconds on the CPU, and the arguments that most trainings share."""

from __future__ import annotations

from typing import Any

from imagefolder.config import TokenizerConfig

RUN: dict[str, Any] = {"seed": 3, "title": "tiny", "about": {}}

TOKENIZER = TokenizerConfig(
    name="tiny",
    image_size=32,
    patch_size=8,
    backbone="vit_tiny_patch16_224",
    width=32,
    depth=1,
    heads=2,
    drop_path=0.1,
    scales=(1, 2, 3),
    codebook_size=64,
    code_dim=8,
    quantizer_dropout=0.5,
    dropout_start=2,
)
