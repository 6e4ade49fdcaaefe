"""What the generator's positions see, and that sampling agrees with teacher forcing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import imagefolder
from imagefolder.generator.model import Generator
from imagefolder.generator.sampling import draw, uniforms
from imagefolder.generator.sequence import TokenSequence
from imagefolder.generator.transformer import Transformer
from imagefolder.kinds import ORDERS as KINDS

MODELS = {
    "folded": ("mini-MSVR3P2-256", "VAR-mini-MSVR3P2-256"),
    "unfolded": ("mini-MSVR3P2-256", "VAR-mini-MSVR3P2-256-unfolded"),
    "raster": ("mini-VQ-256", "AR-mini-VQ-256"),
}
ORDERS = list(MODELS)


def build(order: str, **overrides: object) -> Generator:
    """A generator with weights large enough that classes and all earlier tokens matter."""
    tokenizer_name, generator_name = MODELS[order]
    tokenizer = imagefolder.load_tokenizer(tokenizer_name, codebook_size=32)
    generator = imagefolder.load_generator(generator_name, tokenizer=tokenizer, **overrides)
    weights = torch.Generator().manual_seed(0)
    for parameter in [*generator.transformer.parameters(), *tokenizer.quantizer.parameters()]:
        parameter.data.normal_(std=0.15, generator=weights)
    return generator


def random_tokens(generator: Generator, batch: int = 2) -> Tensor:
    shape = (batch, generator.config.branches, generator.tokenizer.config.length)
    return torch.randint(0, 32, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("order", ORDERS)
@torch.no_grad()
def test_a_token_changes_logits_of_later_blocks_only(order, qk_norm):
    generator = build(order, qk_norm=qk_norm)
    tokens, labels = random_tokens(generator), torch.tensor([1, 7])
    before = generator(labels, tokens)
    blocks = generator.transformer.sequence.blocks
    # for each token (branch, position), which block predicts it
    block_of = torch.empty(tokens.shape[1:], dtype=torch.int64)
    for i, block in enumerate(blocks):
        block_of[list(block.branches), block.first : block.last] = i
    for branch in range(tokens.shape[1]):
        for position in range(tokens.shape[2]):
            changed = tokens.clone()
            changed[:, branch, position] = (changed[:, branch, position] + 11) % 32
            difference = (generator(labels, changed) - before).abs().amax((0, 3))
            own = block_of[branch, position]
            assert (difference[block_of <= own] == 0).all(), (branch, position)
            later = difference[block_of > own]
            assert later.numel() == 0 or later.max() > 1e-4, (branch, position)


@pytest.mark.parametrize("order", ORDERS)
@torch.no_grad()
def test_inputs_are_made_of_the_quantized_maps_of_earlier_blocks(order):
    """Against the quantizer's own decoder: what the tokens so far add up to, resized to the next block."""
    generator = build(order)
    quantizer, sequence, tokens = (
        generator.tokenizer.quantizer,
        generator.transformer.sequence,
        random_tokens(generator),
    )
    inputs = sequence.inputs(quantizer, tokens)
    torch.testing.assert_close(inputs, TokenSequence.inputs(sequence, quantizer, tokens), rtol=0, atol=0)
    first = sequence.blocks[0].stop
    for block in sequence.blocks[1:]:
        if order == "raster":
            expected = quantizer.decode(tokens).flatten(2)[:, :, block.first - 1, None].mT
        else:
            ahead = [p < block.branches[0] for p in range(2)]  # branches that know this scale already
            known = [quantizer.decode(tokens, block.scale + a) if block.scale + a else None for a in ahead]
            width, side = quantizer.dim, quantizer.scales[block.scale]
            zero = tokens.new_zeros(len(tokens), 2 * width, quantizer.side, quantizer.side).float()
            parts = [(zero if z is None else z)[:, p * width : (p + 1) * width] for p, z in enumerate(known)]
            expected = torch.nn.functional.interpolate(torch.cat(parts, dim=1), (side, side), mode="area").flatten(2).mT
        torch.testing.assert_close(inputs[:, block.start - first : block.stop - first], expected)


@pytest.mark.parametrize("order", ORDERS)
@torch.no_grad()
def test_the_class_changes_all_logits(order):
    generator = build(order)
    tokens = random_tokens(generator)
    difference = generator(torch.tensor([1, 1]), tokens) - generator(torch.tensor([2, 10]), tokens)
    assert (difference.abs().amax((0, 3)) > 1e-4).all()


@pytest.mark.parametrize("guidance", [0.0, 2.0])
@pytest.mark.parametrize("order", ORDERS)
@torch.no_grad()
def test_cached_sampling_equals_recomputation_without_cache(order, guidance):
    generator = build(order)
    labels = torch.tensor([3, 0, 9, 4, 4])
    out = generator.sample(labels, guidance=guidance, top_k=20, top_p=0.9, seed=5)
    conditional = generator(labels, out.tokens)
    unconditional = generator(torch.full_like(labels, 10), out.tokens)
    u = uniforms(5, list(range(5)), generator.config.branches, generator.tokenizer.config.length)
    sequence = generator.transformer.sequence
    for i, block in enumerate(sequence.blocks):
        branches, span = list(block.branches), slice(block.first, block.last)
        t = sequence.guidance(i, guidance)
        logits = (1 + t) * conditional[:, branches, span] - t * unconditional[:, branches, span]
        assert torch.equal(draw(logits, u[:, branches, span], 20, 0.9), out.tokens[:, branches, span])
    assert len(out.tokens.unique()) > 5


@pytest.mark.parametrize("order", ORDERS)
def test_images_are_the_decoded_tokens(order):
    generator = build(order)
    out = generator.sample(torch.tensor([3, 0]), guidance=1.0)
    assert (out.images.min() >= 0) & (out.images.max() <= 1)
    torch.testing.assert_close(out.images * 2 - 1, generator.tokenizer.decode(out.tokens))


def passes(monkeypatch: pytest.MonkeyPatch, generator: Generator, **settings: object) -> list[tuple[int, int]]:
    """(batch, positions) of every pass through the transformer while sampling 3 images."""
    seen = []
    run = Transformer.run

    def spy(self, x, *arguments, **keywords):
        seen.append(tuple(x.shape[:2]))
        return run(self, x, *arguments, **keywords)

    monkeypatch.setattr(Transformer, "run", spy)
    generator.sample(torch.tensor([1, 2, 3]), **settings)
    return seen


@pytest.mark.parametrize(
    ("order", "sizes"), [("folded", [1, 4, 9]), ("unfolded", [1, 1, 4, 4, 9, 9]), ("raster", [1] * 16)]
)
def test_parallel_prediction_is_one_pass_per_scale(monkeypatch, order, sizes):
    assert passes(monkeypatch, build(order), guidance=2.0) == [(6, size) for size in sizes]


@pytest.mark.parametrize("order", ORDERS)
def test_no_guidance_computes_no_unconditional_batch(monkeypatch, order):
    assert {batch for batch, _ in passes(monkeypatch, build(order), guidance=0.0)} == {3}


def test_guidance_of_the_first_scale_is_zero_and_grows_linearly():
    sequence = build("folded").transformer.sequence
    assert [sequence.guidance(i, 3.0) for i in range(3)] == [0.0, 1.5, 3.0]
    unfolded = build("unfolded").transformer.sequence
    assert [unfolded.guidance(i, 3.0) for i in range(6)] == [0.0, 0.0, 1.5, 1.5, 3.0, 3.0]
    raster = build("raster").transformer.sequence
    assert {raster.guidance(i, 3.0) for i in range(16)} == {3.0}


@pytest.mark.parametrize("order", ORDERS)
def test_an_image_depends_on_its_own_seed_only(order):
    generator = build(order)
    labels = torch.arange(7)
    together = generator.sample(labels, seed=3, guidance=1.5).tokens
    for i in range(7):
        alone = generator.sample(labels[i : i + 1], seed=3, guidance=1.5, indices=[i]).tokens
        assert torch.equal(alone[0], together[i])
    shuffled = [4, 0, 6, 2, 5]
    assert torch.equal(
        generator.sample(labels[shuffled], seed=3, guidance=1.5, indices=shuffled).tokens, together[shuffled]
    )
    assert not torch.equal(generator.sample(labels, seed=4, guidance=1.5).tokens, together)


def test_same_label_with_another_index_is_another_image():
    tokens = build("folded").sample(torch.tensor([5, 5]), guidance=0.0).tokens
    assert not torch.equal(tokens[0], tokens[1])


@pytest.mark.parametrize("order", ORDERS)
def test_sampling_and_teacher_forcing_under_autocast_build_the_same_maps(order):
    """The quantizer still computes in float32, so that images match their tokens."""
    generator = build(order)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = generator.sample([1, 2], seed=1)
        logits = generator(torch.tensor([1, 2]), out.tokens)
        decoded = generator.tokenizer.decode(out.tokens)
    torch.testing.assert_close(out.images, (decoded + 1) / 2, rtol=0, atol=0.02)  # the decoder itself is in bfloat16
    assert logits.isfinite().all()


def test_every_registered_order_is_tested_here_and_unknown_ones_are_refused():
    assert list(KINDS) == ORDERS
    assert all(isinstance(build(order).transformer.sequence, TokenSequence) for order in ORDERS)
    with pytest.raises(imagefolder.InputError, match=r"order 'sideways': must be 'folded', 'unfolded' or 'raster'$"):
        imagefolder.GeneratorConfig(order="sideways")


@torch.no_grad()
def test_one_scale_at_once_is_a_sequence_without_inputs():
    """A next-scale generator on a single-scale tokenizer predicts all tokens in its only pass."""
    tokenizer = imagefolder.load_tokenizer("mini-VQ-256")
    generator = imagefolder.load_generator("VAR-mini-MSVR3P2-256", tokenizer=tokenizer)
    tokens, labels = random_tokens(generator), torch.tensor([1, 7])
    logits = generator(labels, tokens)
    assert logits.shape == (2, 1, 16, 256)
    assert torch.equal(logits, generator(labels, (tokens + 1) % 32))
    assert generator.sample(labels, top_k=0).tokens.shape == (2, 1, 16)


def test_folding_halves_the_sequence():
    folded, unfolded = build("folded"), build("unfolded")
    assert folded.transformer.sequence.length == 14
    assert unfolded.transformer.sequence.length == 28
    assert folded(torch.tensor([1]), random_tokens(folded, 1)).shape == (1, 2, 14, 32)
    assert unfolded(torch.tensor([1]), random_tokens(unfolded, 1)).shape == (1, 2, 14, 32)


def test_a_fresh_generator_ignores_its_blocks_and_predicts_about_evenly():
    torch.manual_seed(0)
    tokenizer = imagefolder.load_tokenizer("mini-MSVR3P2-256")
    generator = imagefolder.load_generator("VAR-mini-MSVR3P2-256", tokenizer=tokenizer)
    width = generator.config.width
    gammas = torch.stack([layer.ada.weight[: 2 * width].abs().max() for layer in generator.transformer.layers])
    assert generator.config.gamma_init == 1e-4  # of the released command
    assert gammas.max() < 1e-4 < 20 * gammas.max()
    tokens = tokenizer.encode(torch.rand(2, 3, 32, 32) * 2 - 1)
    with torch.no_grad():
        logits = generator(torch.tensor([0, 1]), tokens)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 2), tokens.flatten())
    assert float(loss) == pytest.approx(5.545, abs=0.02)  # log 256


@pytest.mark.parametrize(
    ("labels", "settings", "message"),
    [
        (torch.tensor([11]), {}, r"0\.\.10"),
        (torch.tensor([1.0]), {}, "int64"),
        (torch.tensor([[1]]), {}, r"\(1, 1\)"),
        (torch.tensor([1]), {"top_p": -0.1}, "top_p"),
        (torch.tensor([1]), {"top_p": 1.1}, "top_p"),
        (torch.tensor([1]), {"top_k": -1}, "top_k"),
        (torch.tensor([1]), {"indices": [1, 2]}, "2 indices for 1 labels"),
    ],
)
def test_wrong_arguments_are_refused(labels, settings, message):
    with pytest.raises(imagefolder.InputError, match=message):
        build("folded").sample(labels, **settings)


def test_a_generator_refuses_tokens_of_another_shape():
    other = imagefolder.load_tokenizer("mini-MSVR3-256")
    with pytest.raises(imagefolder.InputError, match=r"branches 2.*has 1"):
        Generator(build("folded").config, other)


@torch.no_grad()
def test_token_dropout_replaces_a_share_of_the_inputs_while_training():
    generator = build("folded", token_dropout=0.3)
    transformer, embedding = generator.transformer, torch.zeros(50, 96)
    inputs = torch.randn(50, 13, 32, generator=torch.Generator().manual_seed(2))
    plain = transformer.eval().embed(inputs, embedding, 0, 14)
    torch.manual_seed(0)
    dropped = transformer.train().embed(inputs, embedding, 0, 14)
    offset = transformer.position_embed + transformer.level_embed(transformer.level_of_position)
    empty = (transformer.empty_embed + offset).expand(50, -1, -1)
    replaced = (dropped != plain).any(-1)
    assert not replaced[:, 0].any()  # the class is dropped elsewhere
    torch.testing.assert_close(dropped[replaced], empty[replaced])
    assert float(replaced[:, 1:].float().mean()) == pytest.approx(0.3, abs=0.07)
