"""Binary codes, their entropy loss, near codes and latent perturbation, against plain computations."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imagefolder.config import TokenizerConfig
from imagefolder.tokenizer.codes import BinaryCodes, Codebook
from imagefolder.tokenizer.quantizers import MultiScaleQuantizer, ProductQuantizer, SingleScaleQuantizer, perturb

BINARY = TokenizerConfig(
    scales=(1, 2, 3, 5), quantizer="bsq", codebook_size=64, code_dim=6, dropout_start=2, quantizer_dropout=0.5
)
PLAIN = TokenizerConfig(branches=1, scales=(4,), codebook_size=64, code_dim=6, semantic="none")


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def test_bit_i_of_a_token_is_the_sign_of_channel_i():
    codes = BinaryCodes(3, 2, base=0.5, spherical=False)
    z = torch.tensor([[1.0, -2.0, 0.1], [-1.0, 3.0, -0.1], [0.0, 0.0, 0.0]])
    assert codes.nearest(z.T.reshape(1, 3, 3, 1)).tolist() == [[0b101, 0b010, 0]]
    assert codes.lookup(torch.tensor([[5, 2]]), 0).tolist() == [[[1, -1, 1], [-1, 1, -1]]]
    assert codes.lookup(torch.tensor([[5]]), 1).tolist() == [[[0.5, -0.5, 0.5]]]


def test_spherical_codes_lie_on_the_sphere_and_are_the_nearest_of_all():
    codes = BinaryCodes(6, 1, base=1.0, spherical=True)
    table = codes.lookup(torch.arange(64), 0)
    torch.testing.assert_close(table.norm(dim=-1), torch.ones(64))
    assert len(table.unique(dim=0)) == 64
    z = maps(2, 6, 5, 5)
    unit = codes.on_sphere(z).flatten(2).mT
    torch.testing.assert_close(unit.norm(dim=-1), torch.ones(2, 25))
    assert torch.equal(codes.nearest(z), torch.cdist(unit, table.expand(2, -1, -1)).argmin(-1))


@pytest.mark.parametrize("quantizer", ["bsq", "lfq"])
@pytest.mark.parametrize("base", [1.0, 0.7])
def test_binary_residual_loop_by_the_page(quantizer, base):
    binary = MultiScaleQuantizer(replace(BINARY, quantizer=quantizer, binary_base=base)).eval()
    f = maps(2, 6, 5, 5)
    rest, f_hat, tokens, errors = f, torch.zeros_like(f), [], []
    for k, s in enumerate((1, 2, 3, 5)):
        z = F.interpolate(rest, (s, s), mode="area") if s != 5 else rest
        h = torch.where(z > 0, 1.0, -1.0) * base**k / (6**0.5 if quantizer == "bsq" else 1)
        tokens.append(sum((z[:, i] > 0).long() * 2**i for i in range(6)).flatten(1))
        h = F.interpolate(h, (5, 5), mode="bicubic") if s != 5 else h
        phi = binary.phis[binary.phi_of_scale[k]]
        h = 0.5 * h + 0.5 * F.conv2d(h, phi.weight, phi.bias, padding=1)
        f_hat, rest = f_hat + h, rest - h
        errors.append(float((f_hat - f).square().mean().detach()))
    out = binary(f)
    assert torch.equal(out.tokens, torch.cat(tokens, dim=1))
    torch.testing.assert_close(out.z, f_hat)
    torch.testing.assert_close(binary.decode(out.tokens), f_hat)
    assert torch.equal(binary.encode(f), out.tokens)
    assert float(out.codebook_loss.detach()) == pytest.approx(sum(errors) / 4, rel=1e-5)
    # Both are averaged over scales with binary codes
    assert float(out.commitment_loss.detach()) == pytest.approx(0.25 * sum(errors) / 4, rel=1e-5)


@pytest.mark.parametrize("spherical", [True, False])
def test_entropy_loss_equals_the_sum_over_the_whole_codebook(spherical):
    codes = BinaryCodes(5, 2, base=0.8, spherical=spherical)
    z = maps(3, 5, 2, 2)
    table = codes.lookup(torch.arange(32), 1)
    unit = (F.normalize(z, dim=1) if spherical else z).flatten(2).mT.reshape(-1, 5)
    probability = (2 * unit @ table.T).softmax(-1)
    per_sample = -(probability * probability.log()).sum(-1).mean()
    mean = probability.mean(0)
    expected = per_sample + (mean * mean.log()).sum()
    torch.testing.assert_close(codes.entropy_loss(z, 1, None), expected)
    # With weights: as if the samples left out were not there
    torch.testing.assert_close(
        codes.entropy_loss(z, 1, torch.tensor([1.0, 0.0, 1.0])), codes.entropy_loss(z[[0, 2]], 1, None)
    )


def test_entropy_loss_reaches_the_encoder_and_is_zero_for_learned_codes():
    f = maps(4, 6, 5, 5).requires_grad_()
    out = MultiScaleQuantizer(BINARY)(f)
    assert torch.autograd.grad(out.entropy_loss, f)[0].abs().sum() > 0
    learned = MultiScaleQuantizer(replace(BINARY, quantizer="vq", shared_phi=1))(f)
    assert float(learned.entropy_loss) == 0


def test_entropy_loss_falls_when_codes_are_used_evenly_and_surely():
    codes = BinaryCodes(4, 1, base=1.0, spherical=False)
    even = 9 * codes.lookup(torch.arange(16), 0).T.reshape(1, 4, 4, 4)
    one = 9 * torch.ones(1, 4, 4, 4)
    assert float(codes.entropy_loss(even, 0, None)) == pytest.approx(-4 * 0.6931, abs=1e-3)
    assert float(codes.entropy_loss(one, 0, None)) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("branches", [1, 2, 4])
@pytest.mark.parametrize("scales", [(1, 2, 5), (4,)])
@pytest.mark.parametrize("quantizer", ["bsq", "lfq"])
def test_binary_products_decode_what_they_encode(branches, scales, quantizer):
    config = replace(BINARY, branches=branches, scales=scales, quantizer=quantizer, quantizer_dropout=0.0)
    product = ProductQuantizer(config).eval()
    out = product(maps(2, branches, 6, scales[-1], scales[-1]))
    assert out.tokens.shape == (2, branches, sum(s * s for s in scales))
    torch.testing.assert_close(product.decode(out.tokens), out.z)
    assert torch.isfinite(out.entropy_loss)


@pytest.mark.parametrize("cosine", [True, False])
def test_near_codes_are_the_nearest_others_in_order(cosine):
    codebook = Codebook(50, 3, 1, cosine)
    with torch.no_grad():
        codebook.weight.copy_(maps(50, 3))
    codes = F.normalize(codebook.weight, dim=-1) if cosine else codebook.weight
    tokens = torch.tensor([7, 0, 7, 31])
    near = codebook.neighbours(tokens, 4)
    for row, token in zip(near.tolist(), tokens.tolist(), strict=True):
        distance = (codes - codes[token]).norm(dim=-1)
        assert row == [i for i in distance.argsort().tolist() if i != token][:4]


def test_near_binary_codes_differ_in_one_bit():
    near = BinaryCodes(6, 1, 1.0, spherical=True).neighbours(torch.tensor([0b101100]), 6)
    assert sorted(near[0].tolist()) == sorted(0b101100 ^ (1 << i) for i in range(6))


def test_perturbation_replaces_the_share_by_one_of_the_nearest():
    quantizer = SingleScaleQuantizer(PLAIN)
    tokens = torch.randint(64, (40, 16))
    u = torch.rand(2, 40, 16, dtype=torch.float64)
    changed = perturb(tokens, quantizer.codebook, 0.7, 5, u)
    moved = changed != tokens
    assert 0.64 < float(moved.float().mean()) < 0.76
    near = quantizer.codebook.neighbours(tokens.flatten(), 5).view(40, 16, 5)
    assert bool(((near == changed[..., None]).any(-1) | ~moved).all())
    ranks = (near == changed[..., None]).float().argmax(-1)[moved]
    assert ranks.bincount(minlength=5).min() > 0.5 * len(ranks) / 5
    assert torch.equal(ranks, (u[1] * 5).long()[moved])
    assert torch.equal(moved, u[0] < 0.7)
    assert torch.equal(perturb(tokens, quantizer.codebook, 0.0, 5, u), tokens)
    assert bool((perturb(tokens, quantizer.codebook, 1.0, 5, u) != tokens).all())


def test_training_perturbs_the_first_images_only_and_not_the_losses():
    config = replace(PLAIN, perturbed_images=0.25, perturbation_depth=8)
    quantizer, plain = SingleScaleQuantizer(config), SingleScaleQuantizer(PLAIN)
    plain.load_state_dict(quantizer.state_dict())
    f = maps(8, 6, 4, 4)
    out, expected = quantizer(f), plain(f)
    assert bool((out.tokens[:2] != expected.tokens[:2]).all())
    assert torch.equal(out.tokens[2:], expected.tokens[2:])
    torch.testing.assert_close(out.z, quantizer.decode(out.tokens))
    assert torch.equal(out.commitment_loss, expected.commitment_loss)
    assert torch.equal(quantizer.eval()(f).tokens, expected.tokens)


def test_hits_of_both_kinds_average_alike():
    for codes in (BinaryCodes(2, 1, 1.0, True), Codebook(4, 2, 1, cosine=False)):
        for counts in itertools.repeat(torch.tensor([[8.0, 0, 0, 0]]), 3):
            codes.record_hits(counts.clone())
        assert codes.hits.tolist() == [[8, 0, 0, 0]]
        assert codes.usage(16).tolist() == [0.25]
