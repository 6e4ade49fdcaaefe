"""The formulas for operations against torch's counter on running models."""

from __future__ import annotations

import pytest
import torch

import imagefolder
from imagefolder.flops import (
    counted_flops,
    decode_flops,
    encode_flops,
    lookup_flops,
    pixels_flops,
    sample_flops,
    search_flops,
    transformer_flops,
)
from imagefolder.generator.model import Generator

TOKENIZERS = {
    "mini-MSVR3P2-256": {},
    "mini-VQ-256": {},
    "MSBR10P2-4096": {"backbone": "vit_small_patch14_reg4_dinov2.lvd142m", "depth": 2, "image_size": 64},
    "MSVR10P2-4096": {"backbone": "vit_small_patch14_dinov2.lvd142m", "depth": 3, "image_size": 96},
}
GENERATORS = {
    "VAR-mini-MSVR3P2-256": "mini-MSVR3P2-256",
    "VAR-mini-MSVR3P2-256-unfolded": "mini-MSVR3P2-256",
    "AR-mini-VQ-256": "mini-VQ-256",
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers(name):
    tokenizer = imagefolder.load_tokenizer(name, **TOKENIZERS[name])
    side = tokenizer.config.image_size
    images = torch.zeros(1, 3, side, side)
    tokens = torch.zeros(1, tokenizer.config.branches, tokenizer.config.length, dtype=torch.int64)
    with torch.no_grad():
        latents, f_hat = tokenizer.latents(images), tokenizer.quantizer.decode(tokens)
    assert counted_flops(lambda: tokenizer.encode(images)) == encode_flops(tokenizer)
    assert counted_flops(lambda: tokenizer.decode(tokens)) == decode_flops(tokenizer)
    assert counted_flops(lambda: tokenizer.quantizer.encode(latents)) == search_flops(tokenizer)
    assert counted_flops(lambda: tokenizer.quantizer.decode(tokens)) == lookup_flops(tokenizer)
    assert counted_flops(lambda: tokenizer.pixels(f_hat)) == pixels_flops(tokenizer)


def generator_of(name: str) -> Generator:
    tokenizer = imagefolder.load_tokenizer(GENERATORS[name])
    return imagefolder.load_generator(name, tokenizer=tokenizer)


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_sampling(name, guidance):
    generator = generator_of(name)
    needed = sample_flops(generator, guided=guidance > 0)
    # Sampling adds the map of every scale, including the last one
    assert counted_flops(lambda: generator.sample(torch.tensor([3]), guidance=guidance)) == pytest.approx(
        needed, rel=1e-9
    )


def test_teacher_forcing_also_computes_the_masked_part_of_attention():
    generator = generator_of("VAR-mini-MSVR3P2-256")
    transformer, config = generator.transformer, generator.config
    inputs = torch.zeros(1, 13, 32)
    blocks = transformer.sequence.blocks
    seen = sum((block.stop - block.start) * block.stop for block in blocks)
    masked = config.depth * 4 * config.width * (14 * 14 - seen)
    whole = counted_flops(lambda: transformer(torch.tensor([3]), inputs))
    assert whole == transformer_flops(transformer) + masked


def test_the_released_models_by_hand():
    with torch.device("meta"):
        tokenizer = imagefolder.load_tokenizer("MSVR10P2-4096", device="meta")
    width, length, latents = 768, 257 + 242, 242
    linear = 11 * 24 * length * width**2 + 4 * length * width**2 + 20 * latents * width**2
    attention = 11 * 4 * length**2 * width + 4 * latents * length * width
    outside = 2 * 256 * 768 * width + 2 * latents * width * 32
    search, phi = 2 * 2 * 286 * 4096 * 32, 2 * 9 * 2 * 121 * 9 * 32 * 32
    assert encode_flops(tokenizer) == linear + attention + outside + search + phi


def test_attention_is_counted_on_every_version_of_torch():
    q, k, v = torch.zeros(2, 3, 5, 8), torch.zeros(2, 3, 7, 8), torch.zeros(2, 3, 7, 8)
    attention = torch.nn.functional.scaled_dot_product_attention
    assert counted_flops(lambda: attention(q, k, v)) == 2 * 3 * 2 * 2 * 5 * 7 * 8


def test_a_product_without_a_formula_is_an_error():
    with pytest.raises(NotImplementedError, match=r"aten::mv"):
        counted_flops(lambda: torch.mv(torch.zeros(3, 3), torch.zeros(3)))


def test_operators_that_are_no_matrix_products_count_as_zero():
    image = torch.zeros(1, 1, 4, 4)
    resized = torch.nn.functional.interpolate
    assert counted_flops(lambda: torch.lgamma(resized(image, (8, 8), mode="bilinear")).cummax(0)) == 0
