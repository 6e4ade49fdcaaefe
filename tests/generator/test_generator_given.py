"""Sampling with some tokens given: they come back, the others see them, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from test_generator_model import MODELS, build, random_tokens
from torch import Tensor

import imagefolder
from imagefolder.generator.model import Generator
from imagefolder.generator.sampling import draw, draw_joint, uniforms

ORDERS = list(MODELS)
LABELS = [3, 0, 9]
SETTINGS = {"top_k": 20, "top_p": 0.9, "seed": 5}


def half(generator: Generator) -> Tensor:
    """A mask (B, P, L) of about half of the tokens, another one for each image and branch."""
    shape = (len(LABELS), generator.config.branches, generator.tokenizer.config.length)
    return torch.rand(shape, generator=torch.Generator().manual_seed(2)) < 0.5


@pytest.mark.parametrize("order", ORDERS)
def test_all_tokens_given_come_back_as_their_decoded_images(order: str) -> None:
    generator = build(order)
    given = random_tokens(generator, len(LABELS))
    out = generator.sample(LABELS, given=given, keep=torch.ones(given.shape[-1], dtype=torch.bool), guidance=2.0)
    assert torch.equal(out.tokens, given)
    torch.testing.assert_close(out.images * 2 - 1, generator.tokenizer.decode(given))


@pytest.mark.parametrize("order", ORDERS)
def test_no_token_kept_is_plain_sampling_to_the_bit(order: str) -> None:
    generator = build(order)
    given = random_tokens(generator, len(LABELS))
    plain = generator.sample(LABELS, guidance=2.0, **SETTINGS)
    out = generator.sample(
        LABELS, guidance=2.0, given=given, keep=torch.zeros_like(given, dtype=torch.bool), **SETTINGS
    )
    assert torch.equal(out.tokens, plain.tokens)
    assert torch.equal(out.images, plain.images)


@pytest.mark.parametrize("guidance", [0.0, 2.0])
@pytest.mark.parametrize("order", ORDERS)
@torch.no_grad()
def test_sampled_tokens_are_drawn_from_teacher_forcing_on_the_given_ones(order: str, guidance: float) -> None:
    generator = build(order)
    given, keep = random_tokens(generator, len(LABELS)), half(generator)
    out = generator.sample(LABELS, guidance=guidance, given=given, keep=keep, **SETTINGS).tokens
    assert torch.equal(out[keep], given[keep])
    labels = torch.tensor(LABELS)
    conditional, unconditional = generator(labels, out), generator(torch.full_like(labels, 10), out)
    u = uniforms(5, list(range(len(LABELS))), *out.shape[1:])
    sequence = generator.transformer.sequence
    for i, block in enumerate(sequence.blocks):
        where = (slice(None), list(block.branches), slice(block.first, block.last))
        t = sequence.guidance(i, guidance)
        drawn = draw((1 + t) * conditional[where] - t * unconditional[where], u[where], 20, 0.9)
        assert torch.equal(torch.where(keep[where], given[where], drawn), out[where])
    plain = generator.sample(LABELS, guidance=guidance, **SETTINGS).tokens
    assert not torch.equal(out[~keep], plain[~keep])  # the context matters


@pytest.mark.parametrize("order", ["folded", "raster"])
@torch.no_grad()
def test_joint_draws_use_the_random_numbers_of_joint_sampling(order: str) -> None:
    generator = build(order)
    given, keep = random_tokens(generator, len(LABELS)), half(generator)
    out = generator.sample(LABELS, guidance=0.0, joint=True, given=given, keep=keep, **SETTINGS).tokens
    logits, u = generator(torch.tensor(LABELS), out), uniforms(5, [0, 1, 2], *out.shape[1:])
    drawn = draw_joint(logits.transpose(1, 2), u[:, 0], 20, 0.9).mT
    assert torch.equal(torch.where(keep, given, drawn), out)


def test_neither_the_batch_nor_how_tokens_and_mask_are_shaped_matters() -> None:
    generator = build("folded")
    given, keep = random_tokens(generator, 1), torch.arange(14) % 3 > 0
    arguments = {"guidance": 1.5, **SETTINGS}
    whole = generator.sample(LABELS, given=given.expand(3, -1, -1), keep=keep.expand(3, 2, -1), **arguments).tokens
    for mask in (keep, keep.expand(2, -1), keep.expand(1, 2, -1), keep.expand(3, 1, -1)):
        assert torch.equal(generator.sample(LABELS, given=given, keep=mask, batch_size=2, **arguments).tokens, whole)
    alone = generator.sample(LABELS[2:], indices=[2], given=given, keep=keep, **arguments).tokens
    assert torch.equal(alone, whole[2:])


def test_each_image_keeps_its_own_tokens_in_batches() -> None:
    generator = build("folded")
    given, keep = random_tokens(generator, len(LABELS)), half(generator)
    whole, parts = (generator.sample(LABELS, given=given, keep=keep, batch_size=size).tokens for size in (None, 1))
    assert torch.equal(whole, parts)


@pytest.mark.parametrize("order", ORDERS)
def test_a_region_is_repainted_in_ten_lines(order: str) -> None:
    generator = build(order)
    tokenizer = generator.tokenizer
    tokens = tokenizer.encode(torch.rand(1, 3, 32, 32) * 2 - 1)
    inside = tokenizer.positions_inside((0, 0, 16, 16))
    edited = generator.sample([3] * 4, given=tokens, keep=~inside)
    assert torch.equal(edited.tokens[:, :, ~inside], tokens[:, :, ~inside].expand(4, -1, -1))
    assert len({tuple(sample.tolist()) for sample in edited.tokens[:, :, inside].flatten(1)}) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keep": None}, "given and keep go together"),
        ({"given": None}, "given and keep go together"),
        ({"given": [[1]]}, "must be tensors, not list and Tensor"),
        ({"given": torch.zeros(3, 2, 13, dtype=torch.int64)}, r"given: tokens must be int64 of shape \(B, 2, 14\)"),
        ({"given": torch.zeros(3, 2, 14)}, "given: tokens must be int64"),
        ({"given": torch.full((3, 2, 14), 32)}, r"given: tokens must lie in 0\.\.31"),
        ({"given": torch.zeros(2, 2, 14, dtype=torch.int64)}, "given: tokens of 2 images for 3 labels"),
        ({"keep": torch.ones(14)}, r"keep must be bool of shape \(14,\).*not torch\.float32 \(14,\)"),
        ({"keep": torch.ones(1, dtype=torch.bool)}, r"keep must be bool.*\(1,\)"),
        ({"keep": torch.ones(3, 14, dtype=torch.bool)}, r"keep must be bool.*\(3, 14\)"),
        ({"keep": torch.ones(2, 2, 14, dtype=torch.bool)}, r"keep must be bool.*\(2, 2, 14\)"),
        ({"keep": torch.ones(1, 3, 2, 14, dtype=torch.bool)}, "keep must be bool"),
    ],
)
def test_wrong_tokens_and_masks_are_named(change: dict[str, object], message: str) -> None:
    arguments = {"given": torch.zeros(3, 2, 14, dtype=torch.int64), "keep": torch.ones(14, dtype=torch.bool)}
    with pytest.raises(imagefolder.InputError, match=message) as caught:
        build("folded").sample(LABELS, **(arguments | change))
    assert "\n" not in str(caught.value)
