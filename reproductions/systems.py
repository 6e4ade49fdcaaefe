"""The systems that rows are made of, at each scale: the released models at full, smaller ones of their kind below."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from imagefolder.config import GeneratorConfig, TokenizerConfig
from imagefolder.zoo import GENERATORS, TOKENIZERS


@dataclass(frozen=True)
class Systems:
    """What one scale of the reproductions builds on."""

    tokenizer: TokenizerConfig
    single_scale: TokenizerConfig
    """not regularised: the baseline, where the released VQ models are"""
    generator: GeneratorConfig
    raster: GeneratorConfig
    shorter: tuple[int, ...]
    """token maps of a sequence shorter than ImageFolder's"""
    longer: tuple[int, ...]
    long: tuple[int, ...]
    """those of VAR"""
    equal: tuple[int, ...]
    """one branch with as many tokens as ImageFolder's two"""
    position_bits: int
    """bits of a position that 1, 2 and 4 branches share evenly; 2^24 codes of the released 2 x 12 would fit nowhere"""


SYSTEMS = {
    "mini": Systems(
        tokenizer=TOKENIZERS["mini-MSVR3P2-256"],
        single_scale=replace(TOKENIZERS["mini-VQ-256"], name="mini-VQ-256-plain", semantic="none"),
        generator=GENERATORS["VAR-mini-MSVR3P2-256"],
        raster=GENERATORS["AR-mini-VQ-256"],
        shorter=(1, 1, 2),  # 6 positions; ImageFolder: 14
        longer=(1, 2, 4),  # 21
        long=(1, 2, 3, 4),  # 30
        equal=(1, 1, 1, 3, 4),  # 28
        position_bits=12,
    ),
    "small": Systems(
        tokenizer=TOKENIZERS["small-MSVR8P2-1024"],
        single_scale=replace(TOKENIZERS["small-VQ-1024"], name="small-VQ-1024-plain", semantic="none"),
        generator=GENERATORS["VAR-small-MSVR8P2-1024"],
        raster=GENERATORS["AR-small-VQ-1024"],
        shorter=(1, 1, 2, 3, 4, 5, 7),  # 105; ImageFolder: 186
        longer=(1, 1, 2, 3, 4, 5, 7, 9, 10),  # 286
        long=(1, 2, 3, 4, 5, 6, 8, 10, 13, 16),  # 680
        equal=(1, 1, 2, 3, 4, 6, 7, 16),  # 372
        position_bits=16,
    ),
    "full": Systems(
        tokenizer=TOKENIZERS["MSVR10P2-4096"],
        single_scale=replace(TOKENIZERS["VQ-4096"], name="VQ-4096-plain", semantic="none"),
        generator=GENERATORS["VAR-d17-MSVR10P2-4096"],
        raster=GENERATORS["AR-d17-VQ-4096"],
        shorter=(1, 1, 2, 3, 3, 4, 5, 6, 8, 10),  # 265, the length the paper's tables print; ImageFolder: 286
        longer=(1, 1, 2, 3, 3, 4, 5, 6, 8, 11, 12),  # 430
        long=(1, 2, 3, 4, 5, 6, 8, 10, 13, 16),  # 680
        equal=(1, 1, 3, 6, 10, 13, 16),  # 572
        position_bits=16,
    ),
}


def variant(config: TokenizerConfig, **changes: Any) -> TokenizerConfig:
    """A multi-scale tokenizer with other fields, named after its shape as in the zoo."""
    changed = replace(config, **changes)
    prefix, branches = config.name.split("MSVR")[0], f"P{changed.branches}" if changed.branches > 1 else ""
    return replace(changed, name=f"{prefix}MSVR{len(changed.scales)}{branches}-{changed.codebook_size}")


def generator_on(generator: GeneratorConfig, tokenizer: TokenizerConfig, classes: int) -> GeneratorConfig:
    """A generator for the tokens of a tokenizer and a data set of `classes` classes, named after both."""
    tokens = {name: getattr(tokenizer, name) for name in ("branches", "scales", "codebook_size", "code_dim")}
    kind = generator.name.rsplit("-", 2)[0]  # VAR-mini
    shape = tokenizer.name.removeprefix(f"{kind.split('-')[1]}-")
    suffix = "-unfolded" if generator.order == "unfolded" else ""
    return replace(generator, name=f"{kind}-{shape}{suffix}", num_classes=classes, **tokens)
