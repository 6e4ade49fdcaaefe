"""Floating-point operations needed, by formula: matrix products, convolutions, attention; a multiply-add is two.

Needed means that unused outputs are not counted (the last layer of encoder and decoder at positions that are not used),
and that sampling uses the key-value cache. Searches for the nearest code count their elementwise operations where they
are no products. Tests compare the formulas with torch's own counter.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Size
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from imagefolder.generator.model import Generator
from imagefolder.generator.sequence import Block
from imagefolder.generator.transformer import Transformer
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.tokenizer.vit import ViT

BACKWARD = 2  # a backward pass is two products where the forward pass is one

# Names of operators that multiply matrices, without names that only look like it (lgamma, cummax, upsample_linear1d)
_PRODUCT = re.compile(
    r"^(?!.*(?:gamma|cumm|hamming|dummy|convert|upsample))"
    r".*(?:mm|mv|dot|conv|attention|cdist|gemm|rnn|lstm|gru|einsum|linear)"
)


def vit_flops(vit: ViT, tokens: int, kept: int) -> float:
    """Blocks of a timm vision transformer on `tokens` positions, of which `kept` are read at the end."""
    width, depth = vit.embed_dim, len(vit.blocks)
    hidden = vit.blocks[0].mlp.fc1.out_features

    def block(queries: int) -> float:
        projections = tokens * 2 * width**2 + queries * (2 * width**2 + 2 * width * hidden)
        return 2 * projections + 4 * queries * tokens * width

    return (depth - 1) * block(tokens) + block(kept)


def features_flops(vit: ViT) -> float:
    """Class feature of one image from a timm vision transformer."""
    grid, patch = vit.patch_embed.num_patches, vit.patch_embed.patch_size[0]
    return 2 * grid * 3 * patch**2 * vit.embed_dim + vit_flops(vit, vit.num_prefix_tokens + grid, 1)


def counted_flops(run: Callable[[], object]) -> float:
    """Operations that `run` computes, by torch's counter.

    Raises:
        NotImplementedError: `run` multiplies matrices with an operator for which this version of torch's counter has no
            formula; it would count as zero.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_formulas())
    with _KnownProducts(counter), counter, torch.no_grad():
        run()
    return float(counter.get_total_flops())


def _formulas() -> dict[Any, Callable[..., int]]:
    """Operators that some versions of the counter lack: attention on a CPU."""
    operator = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
    return {} if operator is None else {operator: _attention_flops}


def _attention_flops(query: Size, key: Size, value: Size, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


class _KnownProducts(TorchDispatchMode):
    """Refuses matrix products that `counter` has no formula for; entered before it, to see the operators it runs."""

    def __init__(self, counter: FlopCounterMode) -> None:
        super().__init__()
        self.counter = counter

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        if func.overloadpacket not in self.counter.flop_registry and _PRODUCT.search(name):
            raise NotImplementedError(
                f"torch {torch.__version__} counts no operations of {name}; add its formula to {__name__}._formulas"
            )
        return func(*args, **(kwargs or {}))


def encode_flops(tokenizer: Tokenizer) -> float:
    """Encoding one image to tokens."""
    config, vit = tokenizer.config, tokenizer.encoder.vit
    width, grid = vit.embed_dim, (config.image_size // config.patch_size) ** 2
    latents = config.branches * config.latent_side**2
    patches = 2 * grid * 3 * config.patch_size**2 * width
    projection = 2 * latents * width * config.code_dim
    return (
        patches + vit_flops(vit, vit.num_prefix_tokens + grid + latents, latents) + projection + search_flops(tokenizer)
    )


def search_flops(tokenizer: Tokenizer) -> float:
    """Quantizing one image's latents."""
    config = tokenizer.config
    searches = sum(branch.codebook.search_flops for branch in tokenizer.quantizer.branches)
    return config.length * searches + config.branches * _phi_flops(tokenizer, len(config.scales) - 1)


def lookup_flops(tokenizer: Tokenizer) -> float:
    """The quantized map of one image's tokens."""
    return tokenizer.config.branches * _phi_flops(tokenizer, len(tokenizer.config.scales))


def decode_flops(tokenizer: Tokenizer) -> float:
    """Decoding one image from its tokens."""
    return lookup_flops(tokenizer) + pixels_flops(tokenizer)


def pixels_flops(tokenizer: Tokenizer) -> float:
    """Decoding one image from its quantized map."""
    config, vit = tokenizer.config, tokenizer.decoder.vit
    width, grid, latents = vit.embed_dim, (config.image_size // config.patch_size) ** 2, config.latent_side**2
    projection = 2 * latents * config.branches * config.code_dim * width
    pixels = 2 * grid * width * 3 * config.patch_size**2
    return projection + vit_flops(vit, 2 * vit.num_prefix_tokens + grid + latents, grid) + pixels


def transformer_flops(transformer: Transformer) -> float:
    """One pass over the sequence of one image and one class; attention only where the mask allows it."""
    config, sequence, width = transformer.config, transformer.sequence, transformer.config.width
    hidden = int(width * config.mlp_ratio)
    linear = config.depth * 2 * sequence.length * (4 * width**2 + 2 * width * hidden)
    attention = config.depth * 4 * width * sequence.attended
    head = sum(_head_flops(transformer, block) for block in sequence.blocks)
    inputs = 2 * (sequence.length - transformer.first) * config.branches * config.code_dim * width
    condition = config.depth * 2 * width * 6 * width + 2 * width * 2 * width
    return linear + attention + head + inputs + condition


def sample_flops(generator: Generator, guided: bool = True) -> float:
    """Sampling one image: every position twice under guidance (logits once where it is zero), and the decoder."""
    transformer, tokenizer = generator.transformer, generator.tokenizer
    total = transformer_flops(transformer) + decode_flops(tokenizer)
    if guided:
        total += transformer_flops(transformer)
        for i, block in enumerate(transformer.sequence.blocks):
            if transformer.sequence.guidance(i, 1.0) == 0:
                total -= _head_flops(transformer, block)
    return total


def _head_flops(transformer: Transformer, block: Block) -> float:
    config = transformer.config
    return 2 * block.size * config.width * len(block.branches) * config.codebook_size


def _phi_flops(tokenizer: Tokenizer, scales: int) -> float:
    config = tokenizer.config
    if len(config.scales) == 1:
        return 0.0
    return scales * 2 * config.latent_side**2 * 9 * config.code_dim**2
