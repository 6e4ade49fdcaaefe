"""Variants of sampling: both branches at once, temperature per scale, no class, batches in parts."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy.stats import chisquare
from test_generator_model import ORDERS, build
from torch import Tensor

import imagefolder
from imagefolder.generator.sampling import draw, draw_joint, uniforms

SIZE = 6
LOGITS = torch.tensor([[0.3, 2.1, -1.0, 1.2, 0.9, -0.2], [1.5, -0.4, 0.8, -2.0, 1.9, 0.1]])
CUTS = [(0, 1.0), (0, 0.0), (1, 1.0), (5, 1.0), (3, 0.8), (0, 0.9), (0, 0.4), (99, 0.99)]


def cut(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Probabilities (V,) of one branch: the top_k best kept, then the least likely ones removed, by plain loops."""
    kept = sorted(((p, i) for i, p in enumerate(logits.double().softmax(-1).tolist())), reverse=True)[: top_k or None]
    total, removed = sum(p for p, _ in kept), 0.0
    while 0 < top_p < 1 and len(kept) > 1 and removed + kept[-1][0] / total <= 1 - top_p:
        removed += kept.pop()[0] / total
    expected = torch.zeros(len(logits), dtype=torch.float64)
    for p, i in kept:
        expected[i] = p
    return expected / expected.sum()


def product(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Probabilities (V, V) of the pairs; each branch is cut separately."""
    return torch.outer(*(cut(branch, top_k, top_p) for branch in logits))


def frequencies(tokens: Tensor, size: int) -> Tensor:
    """Share of every pair: int64 (N, 2) -> (size, size)."""
    return torch.bincount(tokens[:, 0] * size + tokens[:, 1], minlength=size**2).view(size, size) / len(tokens)


@pytest.mark.parametrize(("top_k", "top_p"), CUTS)
def test_pairs_are_drawn_from_the_product_of_the_cut_branches(top_k, top_p):
    n = 100_000
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    drawn = draw_joint(LOGITS.expand(n, 2, SIZE), u, top_k, top_p)
    expected = product(LOGITS, top_k, top_p)
    found = frequencies(drawn, SIZE).double()
    torch.testing.assert_close(found, expected, atol=3e-5, rtol=0)
    assert ((found > 0) == (expected > 0)).all()


def test_the_pair_at_u_is_the_first_token_at_u_and_the_second_within_it():
    """Against the V x V pairs listed in order of the first branch's tokens and then of the second's."""
    weights = torch.Generator().manual_seed(3)
    logits = torch.randn(300, 2, 16, generator=weights) * torch.rand(300, 2, 1, generator=weights) * 5
    u = torch.rand(300, generator=weights, dtype=torch.float64)
    drawn = draw_joint(logits, u, 9, 0.9)
    for row, number, pair in zip(logits, u.tolist(), drawn.tolist(), strict=True):
        first, second = (cut(branch, 9, 0.9) for branch in row)
        orders = (first.argsort(descending=True).tolist(), second.argsort(descending=True).tolist())
        listed = list(itertools.product(*orders))
        sums = torch.tensor([float(first[i] * second[j]) for i, j in listed], dtype=torch.float64).cumsum(0)
        assert tuple(pair) == listed[int((sums <= number).sum())]


def test_a_cut_at_zero_or_one_is_no_cut():
    logits, u = torch.randn(50, 2, SIZE), torch.rand(50, 2, dtype=torch.float64)
    for top_k in (0, 3):
        assert torch.equal(draw(logits, u, top_k, 0.0), draw(logits, u, top_k, 1.0))
        assert not torch.equal(draw(logits, u, top_k, 0.3), draw(logits, u, top_k, 1.0))


@torch.no_grad()
def first_logits(generator: imagefolder.Generator, label: int) -> Tensor:
    """Logits (P, V) of the first position, which sees only the class."""
    tokens = torch.zeros(1, generator.config.branches, generator.tokenizer.config.length, dtype=torch.int64)
    return generator(torch.tensor([label]), tokens)[0, :, 0]


def chi_square(counts: Tensor, probabilities: Tensor) -> float:
    """p-value of counts, with everything expected fewer than five times pooled; 0 if something impossible happened."""
    counts, probabilities = counts.flatten().double(), probabilities.flatten().double()
    if counts[probabilities == 0].any():
        return 0.0
    expected = probabilities / probabilities.sum() * counts.sum()
    often = expected >= 5
    found, wanted = ([*x[often].tolist(), float(x[~often].sum())] for x in (counts, expected))
    return float(chisquare(found, wanted).pvalue) if wanted[-1] else float(chisquare(found[:-1], wanted[:-1]).pvalue)


def test_joint_samples_follow_the_product_as_separate_ones_do():
    generator = build("folded")
    settings = {"guidance": 0.0, "top_k": 8, "top_p": 0.9, "batch_size": 500}
    logits = first_logits(generator, 4)
    drawn = [generator.sample([4] * 3000, joint=joint, **settings).tokens[:, :, 0] for joint in (True, False)]
    assert not torch.equal(*drawn)
    for tokens in drawn:
        counts = frequencies(tokens, 32) * 3000
        assert chi_square(counts, product(logits, 8, 0.9)) > 1e-3
        assert chi_square(counts, product(logits, 16, 0.9)) < 1e-6  # the test can tell them apart


@torch.no_grad()
def test_joint_sampling_equals_recomputation_without_cache():
    generator = build("folded")
    labels = torch.tensor([3, 0, 9])
    out = generator.sample(labels, guidance=2.0, top_k=20, top_p=0.9, seed=5, joint=True)
    conditional, unconditional = generator(labels, out.tokens), generator(torch.full_like(labels, 10), out.tokens)
    u = uniforms(5, [0, 1, 2], 2, 14)
    sequence = generator.transformer.sequence
    for i, block in enumerate(sequence.blocks):
        t = sequence.guidance(i, 2.0)
        logits = (1 + t) * conditional[:, :, block.tokens] - t * unconditional[:, :, block.tokens]
        drawn = draw_joint(logits.transpose(1, 2), u[:, 0, block.tokens], 20, 0.9)
        assert torch.equal(drawn.mT, out.tokens[:, :, block.tokens])


def test_joint_sampling_of_one_branch_is_ordinary_sampling():
    generator = build("raster")
    settings = {"guidance": 1.5, "top_k": 20, "top_p": 0.9}
    labels = [1, 2, 3]
    assert torch.equal(
        generator.sample(labels, joint=True, **settings).tokens, generator.sample(labels, **settings).tokens
    )


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_divides_the_logits(temperature):
    generator = build("folded")
    drawn = generator.sample(
        [4] * 3000, guidance=0.0, top_k=0, top_p=1.0, temperature=(temperature, 1, 1), batch_size=500
    ).tokens[:, :, 0]
    for branch, logits in enumerate(first_logits(generator, 4)):
        counts = torch.bincount(drawn[:, branch], minlength=32)
        assert chi_square(counts, (logits / temperature).softmax(-1)) > 1e-3
        assert chi_square(counts, logits.softmax(-1)) < 1e-6


@pytest.mark.parametrize("order", ["folded", "unfolded"])
def test_each_scale_has_its_own_temperature(order):
    generator = build(order)
    settings = {"guidance": 1.5, "top_k": 0, "top_p": 1.0}
    plain = generator.sample([1, 2, 3], **settings).tokens
    last = generator.sample([1, 2, 3], temperature=[1.0, 1.0, 0.2], **settings).tokens
    assert torch.equal(last[:, :, :5], plain[:, :, :5])
    assert not torch.equal(last[:, :, 5:], plain[:, :, 5:])
    everywhere = generator.sample([1, 2, 3], temperature=0.2, **settings).tokens
    assert torch.equal(everywhere, generator.sample([1, 2, 3], temperature=(0.2, 0.2, 0.2), **settings).tokens)
    assert not torch.equal(everywhere, last)


@pytest.mark.parametrize("joint", [False, True])
def test_the_smallest_temperature_is_greedy(joint):
    generator = build("folded")
    greedy = generator.sample([1, 2], top_k=1).tokens
    assert torch.equal(generator.sample([1, 2], temperature=1e-30, joint=joint).tokens, greedy)


def test_labels_may_be_a_list_with_none_for_no_class():
    generator = build("folded")
    expected = generator.sample(torch.tensor([3, 10, 7])).tokens
    assert torch.equal(generator.sample([3, None, 7]).tokens, expected)
    assert torch.equal(generator.sample([3, 10, 7]).tokens, expected)
    assert not torch.equal(generator.sample([3, 0, 7]).tokens[1], expected[1])


@pytest.mark.parametrize("guidance", [0.0, 3.0])
@torch.no_grad()
def test_class_free_images_follow_the_unconditional_logits_with_any_guidance(guidance):
    generator = build("folded")
    out = generator.sample([None, None], guidance=guidance, top_k=20, top_p=0.9, seed=2)
    logits = generator(torch.tensor([10, 10]), out.tokens)
    assert torch.equal(draw(logits, uniforms(2, [0, 1], 2, 14), 20, 0.9), out.tokens)


@pytest.mark.parametrize(("order", "joint"), [*((order, False) for order in ORDERS), ("folded", True)])
def test_the_outcome_does_not_depend_on_the_batch_size(order, joint):
    generator = build(order)
    labels, indices = [1, None, 3, 4, 5, 6, 7], [5, 0, 9, 2, 11, 3, 4]
    settings = {"guidance": 1.5, "seed": 3, "indices": indices, "temperature": 0.8, "joint": joint}
    whole = generator.sample(labels, **settings)
    for batch_size in (1, 3, 7, 50):
        parts = generator.sample(labels, batch_size=batch_size, **settings)
        assert torch.equal(parts.tokens, whole.tokens)
        torch.testing.assert_close(parts.images, whole.images, atol=1e-5, rtol=0)
    swapped = generator.sample(labels, batch_size=3, **{**settings, "indices": indices[::-1]})
    assert not torch.equal(swapped.tokens, whole.tokens)


@pytest.mark.parametrize(
    ("labels", "settings", "message"),
    [
        ([1, 11], {}, r"0\.\.10"),
        ([1, -1], {}, r"0\.\.10"),
        ([1.0], {}, "integers"),
        ([True], {}, "integers"),
        ([], {}, "no labels"),
        ([1], {"temperature": 0.0}, "temperature"),
        ([1], {"temperature": [1.0, 1.0, float("nan")]}, "temperature"),
        ([1], {"temperature": [1.0, 1.0]}, "2 temperatures for the 3 scales"),
        ([1], {"batch_size": 0}, "batch_size"),
        ([1], {"guidance": float("nan")}, "guidance"),
    ],
)
def test_wrong_variants_are_refused(labels, settings, message):
    with pytest.raises(imagefolder.InputError, match=message):
        build("folded").sample(labels, **settings)


def test_joint_sampling_needs_folded_branches_of_any_number():
    with pytest.raises(imagefolder.InputError, match="unfolded"):
        build("unfolded").sample([1], joint=True)
    tokenizer = imagefolder.load_tokenizer("mini-MSVR3P2-256", branches=3)
    generator = imagefolder.load_generator("VAR-mini-MSVR3P2-256", tokenizer=tokenizer)
    assert generator.sample([1], joint=True).tokens.shape == (1, 3, 14)
