"""Models, devices and dtypes of the benchmarks, each built once."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

import imagefolder
from imagefolder.environment import fast_dtype, matmul_peak
from imagefolder.generator.model import Generator
from imagefolder.generator.transformer import Transformer
from imagefolder.zoo import TOKENIZER_OF, TOKENIZERS, family

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SLOWEST_SHARE = 0.5  # of float32's peak; a slower dtype is emulated and not worth measuring


def fast(device: str) -> str:
    """Name of the device's fast dtype."""
    return "bfloat16" if fast_dtype(device) == torch.bfloat16 else "float32"


@cache
def peak(device: str, dtype: str) -> float:
    """FLOP/s of this machine's matrix products, measured once per run."""
    return matmul_peak(device, DTYPES[dtype])


def require_fast(device: str, dtype: str) -> None:
    """Skip a dtype that the device only emulates."""
    if peak(device, dtype) < SLOWEST_SHARE * peak(device, "float32"):
        pytest.skip(f"{dtype} is emulated on this {device}: {peak(device, dtype) / 1e9:.1f} GFLOP/s")


def scale_of(model: str) -> str:
    """Size of a configuration of the zoo: "mini", "laptop", "small" or, as released, "full"; "" for other names."""
    tokenizer = TOKENIZERS.get(TOKENIZER_OF.get(model, model))
    return "" if tokenizer is None else family(tokenizer) or "full"


@cache
def tokenizer_of(name: str, device: str, dtype: str, **overrides: Any) -> imagefolder.Tokenizer:
    torch.manual_seed(0)
    return imagefolder.load_tokenizer(name, device=device, dtype=DTYPES[dtype], **overrides)


@cache
def generator_of(name: str, tokenizer: str, device: str, dtype: str, **overrides: Any) -> Generator:
    torch.manual_seed(0)
    return imagefolder.load_generator(
        name, tokenizer_of(tokenizer, device, dtype), device=device, dtype=DTYPES[dtype], **overrides
    )


@torch.no_grad()
def passes_of_a_sample(transformer: Transformer, labels: torch.Tensor) -> torch.Tensor:
    """All passes of a sample with guidance, on made-up inputs; returns the last logits.

    Args:
        labels: int64 (B,); as many unconditional samples run beside them.
    """
    config, batch = transformer.config, len(labels)
    both = torch.cat([labels, torch.full_like(labels, config.num_classes)])
    embedding, layers, head = transformer.condition(both)
    cache = transformer.empty_cache(embedding)
    wide = config.branches * config.code_dim
    for i, block in enumerate(transformer.sequence.blocks):
        inputs = embedding.new_zeros(len(both), block.stop - block.start, wide) if i else None
        x = transformer.embed(inputs, embedding, block.start, block.stop)
        logits = transformer.run(x, layers, head, cache=cache, wanted=None if i else batch)
    return logits
