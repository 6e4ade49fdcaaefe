"""Finite scalar quantization against a plain version of the paper's listing, alone and in whole models."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import imagefolder
from imagefolder.checkpoints.native import save_checkpoint
from imagefolder.config import TokenizerConfig
from imagefolder.flops import counted_flops, encode_flops, sample_flops, search_flops
from imagefolder.kinds import fsq_levels
from imagefolder.tokenizer.fsq import FiniteScalarCodes
from imagefolder.tokenizer.quantizers import ProductQuantizer

FSQ: dict[str, Any] = {"quantizer": "fsq", "codebook_size": 240, "code_dim": 3}
CONFIG = TokenizerConfig(scales=(1, 2, 3, 5), dropout_start=2, quantizer_dropout=0.5, **FSQ)
ONE = replace(CONFIG, branches=1, semantic="none")
SINGLE = TokenizerConfig(branches=1, scales=(4,), semantic="none", **FSQ)
LEVELS = [(8, 6, 5), (7, 5, 5, 5, 5), (3, 2), (2, 2, 2, 2), (64,)]


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    "levels", [(8, 6, 5), (8, 5, 5, 5), (7, 5, 5, 5, 5), (8, 8, 8, 6, 5), (8, 8, 8, 5, 5, 5), (2,) * 8, (1021,)]
)
def test_levels_are_those_of_the_papers_table(levels):
    assert fsq_levels(math.prod(levels), len(levels)) == levels


@given(st.lists(st.integers(2, 12), min_size=1, max_size=6).filter(lambda factors: math.prod(factors) <= 2**26))
@settings(max_examples=200, deadline=None)
def test_levels_are_factors_with_no_larger_sum_than_any_others(factors):
    levels = fsq_levels(math.prod(factors), len(factors))
    assert math.prod(levels) == math.prod(factors)
    assert len(levels) == len(factors)
    assert min(levels) >= 2
    assert sum(levels) <= sum(factors)
    assert list(levels) == sorted(levels, reverse=True)


@pytest.mark.parametrize(
    ("size", "dim", "message"),
    [
        (97, 3, "codebook_size 97 is not a product of code_dim 3 factors.*nearest that are: 96 and 98$"),
        (3, 2, "nearest that are: 4$"),
        (42_000_001, 25, "nearest that are: 33554432 and 50331648$"),
        (2**26, 27, "no size up to 67108864 is"),
    ],
)
def test_sizes_without_levels_are_refused_with_the_nearest_that_have_some(size, dim, message):
    with pytest.raises(imagefolder.InputError, match=message):
        fsq_levels(size, dim)
    with pytest.raises(imagefolder.InputError, match="fsq: codebook_size"):
        replace(CONFIG, codebook_size=97)


def by_the_paper(z: np.ndarray, levels: tuple[int, ...]) -> tuple[list[float], int]:
    """Code in [-1, 1] and index of one vector (C,), channel by channel."""
    code, index, place = [], 0, 1
    for value, number in zip(z.tolist(), levels, strict=True):
        reach = (number - 1) * (1 - 1e-3) / 2
        offset = 0.0 if number % 2 else 0.5
        level = round(math.tanh(value + math.tan(offset / reach)) * reach - offset)
        code.append(level / (number // 2))
        index += (level + number // 2) * place
        place *= number
    return code, index


@pytest.mark.parametrize("levels", LEVELS)
def test_codes_and_tokens_are_those_of_the_papers_listing(levels):
    codes = FiniteScalarCodes(levels, 1)
    f = 3 * maps(2, len(levels), 6, 6)
    tokens = codes.nearest(codes.enter(f))
    expected = [[by_the_paper(vector, levels) for vector in image.flatten(1).T.numpy()] for image in f]
    assert tokens.tolist() == [[index for _, index in image] for image in expected]
    vectors = torch.tensor([[code for code, _ in image] for image in expected])
    torch.testing.assert_close(codes.lookup(tokens, 0), vectors, rtol=0, atol=0)
    assert len(tokens.unique()) > min(25, codes.size // 2)


@pytest.mark.parametrize("levels", LEVELS)
def test_every_code_is_on_the_grid_once_and_is_its_own_nearest(levels):
    codes = FiniteScalarCodes(levels, 2)
    table = codes.lookup(torch.arange(codes.size), 1)
    grid = [[(i - n // 2) / (n // 2) for i in range(n)] for n in levels]
    assert sorted(map(tuple, table.tolist())) == sorted(
        tuple(torch.tensor(code).tolist()) for code in itertools.product(*grid)
    )
    assert table.min() == -1
    assert codes.nearest(table.T[None, :, :, None]).tolist() == [list(range(codes.size))]
    # A residual may lie outside the grid
    assert codes.nearest(torch.full((1, codes.dim, 1, 1), 9.0)).item() == codes.size - 1
    assert codes.nearest(torch.full((1, codes.dim, 1, 1), -9.0)).item() == 0


@pytest.mark.parametrize("levels", LEVELS)
def test_bounded_values_reach_all_levels_and_none_beyond(levels):
    codes = FiniteScalarCodes(levels, 1)
    f = torch.linspace(-20, 20, 20_001).expand(1, codes.dim, -1)[..., None]
    bounded = codes.enter(f)
    assert (bounded.diff(dim=2) >= 0).all()
    for channel, number in enumerate(levels):
        steps = (bounded[0, channel] * (number // 2)).round().unique()
        assert steps.tolist() == list(range(-(number // 2), number - number // 2))
    middle = codes.lookup(codes.nearest(codes.enter(torch.zeros(1, codes.dim, 1, 1))), 0)
    assert middle.abs().max() == 0  # zero is a level, of even numbers of levels too


@pytest.mark.parametrize("scales", [(4,), (1, 2, 4)])
def test_neighbours_are_the_nearest_codes_by_distance(scales):
    for levels in LEVELS[:4]:
        codes = FiniteScalarCodes(levels, len(scales))
        z, number = maps(2, codes.dim, 4, 4), min(codes.size, 20)
        near = codes.neighbours(z, number)
        assert near.shape == (2, 16, number)
        assert torch.equal(near[..., 0], codes.nearest(z))
        table = codes.lookup(torch.arange(codes.size), 0).double()
        distances = (z.flatten(2).mT.double()[:, :, None] - table).square().sum(-1)
        torch.testing.assert_close(distances.gather(-1, near), distances.sort(-1).values[..., :number])
        assert all(len(row.unique()) == number for row in near.flatten(0, 1))


def test_the_single_scale_gradient_is_that_of_the_bound():
    quantizer, f = ProductQuantizer(SINGLE), maps(2, 1, 3, 4, 4).requires_grad_()
    out, weights = quantizer(f), maps(2, 3, 4, 4, seed=1)
    (straight,) = torch.autograd.grad((out.z * weights).sum(), f)
    (bound,) = torch.autograd.grad((quantizer.codes.enter(f)[:, 0] * weights).sum(), f)
    assert torch.equal(straight, bound)
    assert torch.equal(out.z, quantizer.decode(out.tokens))


def multi_scale_by_the_page(quantizer: ProductQuantizer, f: Tensor) -> tuple[list[Tensor], Tensor]:
    """Tokens per scale and f_hat of a branch (B, C, K, K), from the description alone."""
    rest, f_hat, tokens = quantizer.codes.enter(f), torch.zeros_like(f), []
    table = quantizer.codes.lookup(torch.arange(240), 0)
    for k, s in enumerate((1, 2, 3, 5)):
        z = F.interpolate(rest, (s, s), mode="area") if s != 5 else rest
        index = torch.cdist(z.flatten(2).mT, table.expand(len(f), -1, -1)).argmin(-1)
        h = table[index].mT.unflatten(-1, (s, s))
        h = F.interpolate(h, (5, 5), mode="bicubic") if s != 5 else h
        phi = quantizer.branches[0].phis[quantizer.phi_of_scale[k]]
        h = 0.5 * h + 0.5 * F.conv2d(h, phi.weight, phi.bias, padding=1)
        rest, f_hat = rest - h, f_hat + h
        tokens.append(index)
    return tokens, f_hat


def test_the_residual_loop_quantizes_the_map_bounded_once():
    quantizer, f = ProductQuantizer(ONE).eval(), 2 * maps(2, 3, 5, 5)
    tokens, f_hat = multi_scale_by_the_page(quantizer, f)
    out = quantizer(f[:, None])
    assert torch.equal(out.tokens[:, 0], torch.cat(tokens, dim=1))
    assert torch.equal(quantizer.encode(f[:, None]), out.tokens)
    torch.testing.assert_close(out.z, f_hat)
    torch.testing.assert_close(quantizer.decode(out.tokens), f_hat)


def test_there_are_no_losses_and_phi_learns_from_the_reconstruction():
    quantizer, f = ProductQuantizer(CONFIG), (maps(4, 2, 3, 5, 5) + 0.7).requires_grad_()
    out = quantizer(f, torch.tensor([2, 4, 4, 3]))
    assert [float(x) for x in (out.codebook_loss, out.commitment_loss, out.entropy_loss)] == [0, 0, 0]
    assert out.bits.numel() == 0
    gradients = torch.autograd.grad(out.z.square().sum(), [f, *quantizer.parameters()])
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    bounded = quantizer.codes.enter(f)
    (straight,) = torch.autograd.grad(bounded, f, 2 * out.z.detach().unflatten(1, (2, 3)))
    torch.testing.assert_close(gradients[0], straight)


@pytest.mark.parametrize("branches", [1, 2, 4])
@pytest.mark.parametrize("scales", [(1, 2, 5), (4,)])
def test_products_decode_what_they_encode(branches, scales):
    config = replace(CONFIG, branches=branches, scales=scales, quantizer_dropout=0.0)
    product, f = ProductQuantizer(config).eval(), maps(2, branches, 3, scales[-1], scales[-1])
    out = product(f)
    assert out.z.shape == (2, branches * 3, scales[-1], scales[-1])
    assert out.tokens.shape == (2, branches, config.length)
    assert out.counts.shape == (branches, len(scales), 240)
    assert torch.equal(product.encode(f), out.tokens)
    torch.testing.assert_close(product.decode(out.tokens), out.z)
    assert torch.equal(product.neighbours(f, 3)[..., 0], out.tokens)
    assert not product.has_entropy


class Elementwise(TorchDispatchMode):
    """Counts the floating-point results of elementwise arithmetic; clamping compares with two bounds."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        costs = {"mul": 1, "round": 1, "clamp": 2}
        if isinstance(result, Tensor) and result.is_floating_point():
            self.total += costs.get(func.overloadpacket.__name__, 0) * result.numel()
        return result


def test_the_search_is_elementwise_and_counted():
    tokenizer = imagefolder.load_tokenizer("mini-MSVR3P2-256", **FSQ)
    codes = tokenizer.quantizer.branches[0].codebook
    with Elementwise() as counter:
        codes.nearest(maps(1, 3, 3, 3))
    assert counter.total == 9 * codes.search_flops > 0
    latents = tokenizer.latents(torch.zeros(1, 3, 32, 32))
    products = counted_flops(lambda: tokenizer.quantizer.encode(latents))
    assert search_flops(tokenizer) == products + 2 * 14 * codes.search_flops
    assert encode_flops(tokenizer) > search_flops(tokenizer)


@pytest.mark.parametrize("name", ["mini-MSVR3P2-256", "mini-VQ-256"])
def test_training_lowers_the_loss(name):
    tokenizer = imagefolder.load_tokenizer(name, **FSQ).train()
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=3e-3)
    images = F.interpolate(torch.rand(8, 3, 4, 4) * 2 - 1, (32, 32))
    losses = []
    for _ in range(40):
        loss = F.mse_loss(tokenizer(images).images, images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0], losses


@pytest.mark.parametrize(
    ("tokenizer_name", "generator_name"),
    [("mini-MSVR3P2-256", "VAR-mini-MSVR3P2-256"), ("mini-VQ-256", "AR-mini-VQ-256")],
)
def test_a_generator_on_its_tokens_and_both_from_disk(tmp_path: Path, tokenizer_name, generator_name):
    tokenizer = imagefolder.load_tokenizer(tokenizer_name, **FSQ)
    generator = imagefolder.load_generator(generator_name, tokenizer)
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    tokens = tokenizer.encode(images)
    F.cross_entropy(generator(torch.tensor([0, 1, 2]), tokens).flatten(0, 2), tokens.flatten()).backward()
    assert all(p.grad is not None for p in generator.transformer.parameters())
    samples = generator.sample([1, None], guidance=1.0, seed=3)
    assert samples.tokens.max() < 240
    torch.testing.assert_close(samples.images * 2 - 1, tokenizer.decode(samples.tokens))
    assert sample_flops(generator) > 0
    save_checkpoint(tmp_path / "tokenizer", tokenizer, tokenizer.config)
    save_checkpoint(tmp_path / "generator", generator.transformer, generator.config)
    again = imagefolder.load_tokenizer(tokenizer_name, tmp_path / "tokenizer", **FSQ)
    assert torch.equal(again.encode(images), tokens)
    from_disk = imagefolder.load_generator(generator_name, again, tmp_path / "generator")
    assert torch.equal(from_disk.sample([1, None], guidance=1.0, seed=3).tokens, samples.tokens)


def test_tokens_do_not_depend_on_the_models_dtype():
    codes = FiniteScalarCodes((1021, 2), 1)
    f = maps(1, 2, 8, 8)
    expected = codes.nearest(codes.enter(f))
    codes.to(torch.bfloat16).float()  # as load_tokenizer(dtype=...) does
    assert torch.equal(codes.nearest(codes.enter(f)), expected)
    assert torch.equal(codes.lookup(expected, 0), FiniteScalarCodes((1021, 2), 1).lookup(expected, 0))


def test_latent_perturbation_while_training_is_for_learned_codes():
    with pytest.raises(imagefolder.InputError, match="latent perturbation"):
        replace(SINGLE, perturbed_images=0.1)
