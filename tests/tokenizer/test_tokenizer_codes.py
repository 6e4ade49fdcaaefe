"""Binary codes, their entropy loss, nearest codes and latent perturbation, against plain computations."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imagefolder.config import TokenizerConfig
from imagefolder.errors import InputError
from imagefolder.kinds import QUANTIZERS
from imagefolder.tokenizer.codes import COMPARISONS, BinaryCodes, Codebook, build_codes
from imagefolder.tokenizer.quantizers import Perturbation, ProductQuantizer, perturb

BINARY = TokenizerConfig(
    scales=(1, 2, 3, 5), quantizer="bsq", codebook_size=64, code_dim=6, dropout_start=2, quantizer_dropout=0.5
)
ONE = replace(BINARY, branches=1, semantic="none")
PLAIN = TokenizerConfig(branches=2, scales=(4,), codebook_size=64, code_dim=6, semantic="none")


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
    unit = codes.on_sphere(z[:, None])[:, 0].flatten(2).mT
    torch.testing.assert_close(unit.norm(dim=-1), torch.ones(2, 25))
    assert torch.equal(codes.nearest(z), torch.cdist(unit, table.expand(2, -1, -1)).argmin(-1))


def binary_by_the_page(binary: ProductQuantizer, f: Tensor, base: float, spherical: bool) -> dict[str, list[Tensor]]:
    """Per scale the residual before it, the tokens, and f_hat after it, from the description alone."""
    if spherical:
        f = f / f.norm(dim=1, keepdim=True)  # once, before the loop
    rest, f_hat, found = f, torch.zeros_like(f), {"rest": [], "tokens": [], "f_hat": []}
    for k, s in enumerate((1, 2, 3, 5)):
        z = F.interpolate(rest, (s, s), mode="area") if s != 5 else rest
        h = torch.where(z > 0, 1.0, -1.0) * base**k / (6**0.5 if spherical else 1)
        found["rest"].append(f - f_hat)
        found["tokens"].append(sum((z[:, i] > 0).long() * 2**i for i in range(6)).flatten(1))
        h = F.interpolate(h, (5, 5), mode="bicubic") if s != 5 else h
        phi = binary.branches[0].phis[binary.phi_of_scale[k]]
        h = 0.5 * h + 0.5 * F.conv2d(h, phi.weight, phi.bias, padding=1)
        f_hat, rest = f_hat + h, rest - h
        found["f_hat"].append(f_hat)
    return found | {"f": [f]}


@pytest.mark.parametrize("quantizer", ["bsq", "lfq"])
@pytest.mark.parametrize("base", [1.0, 0.7])
def test_binary_residual_loop_by_the_page(quantizer, base):
    binary = ProductQuantizer(replace(ONE, quantizer=quantizer, binary_base=base)).eval()
    f = maps(2, 6, 5, 5) * 3
    page = binary_by_the_page(binary, f, base, quantizer == "bsq")
    f = f[:, None]
    out = binary(f)
    assert torch.equal(out.tokens[:, 0], torch.cat(page["tokens"], dim=1))
    torch.testing.assert_close(out.z, page["f_hat"][-1])
    torch.testing.assert_close(binary.decode(out.tokens), page["f_hat"][-1])
    assert torch.equal(binary.encode(f), out.tokens)
    errors = [float((f_hat - page["f"][0]).square().mean().detach()) for f_hat in page["f_hat"]]
    assert float(out.codebook_loss.detach()) == pytest.approx(sum(errors) / 4, rel=1e-5)
    # With binary codes, both are averaged over scales
    assert float(out.commitment_loss.detach()) == pytest.approx(0.25 * sum(errors) / 4, rel=1e-5)
    # The length of the input does not affect the tokens of spherical codes; it does affect those of lookup-free ones
    alike = torch.equal(binary.encode(f * torch.rand(2, 1, 1, 5, 5)), out.tokens)
    assert alike == (quantizer == "bsq")


def entropy(p: Tensor) -> Tensor:
    return -(p * p.log() + (1 - p) * (1 - p).log())


@pytest.mark.parametrize("quantizer", ["bsq", "lfq"])
def test_entropy_loss_by_the_page(quantizer):
    """Of the residual at full resolution, with independent bits; per scale, over the samples that keep it."""
    binary = ProductQuantizer(replace(ONE, quantizer=quantizer, binary_base=0.8))
    f, kept = maps(3, 6, 5, 5), torch.tensor([2, 4, 3])
    page = binary_by_the_page(binary, f, 0.8, quantizer == "bsq")
    terms = []
    for k, rest in enumerate(page["rest"]):
        p = torch.sigmoid(-4 * rest[kept > k] * 0.8**k / (6**0.5 if quantizer == "bsq" else 1))
        per_sample = entropy(p).sum(1).mean()
        codebook = entropy(p.mean((0, 2, 3))).sum()
        terms.append((per_sample - codebook) / (kept > k).float().mean())
    torch.testing.assert_close(binary(f[:, None], kept).entropy_loss, sum(terms) / 4)
    assert not torch.allclose(binary(f[:, None]).entropy_loss, sum(terms) / 4)


def test_entropy_loss_has_no_gradient_to_phi():
    binary = ProductQuantizer(BINARY)
    out = binary(maps(4, 2, 6, 5, 5).requires_grad_())
    gradients = torch.autograd.grad(out.entropy_loss, list(binary.parameters()), allow_unused=True)
    assert all(gradient is None for gradient in gradients)


def test_entropy_loss_reaches_the_encoder_and_is_zero_for_learned_codes():
    f = maps(4, 2, 6, 5, 5).requires_grad_()
    out = ProductQuantizer(BINARY)(f)
    assert torch.autograd.grad(out.entropy_loss, f)[0].abs().sum() > 0
    learned = ProductQuantizer(replace(BINARY, quantizer="vq", shared_phi=1))(f)
    assert float(learned.entropy_loss) == 0


def test_entropy_loss_is_low_when_bits_are_balanced_and_confident():
    quantizer = ProductQuantizer(replace(ONE, scales=(4,), quantizer="lfq", codebook_size=16, code_dim=4))
    even = 9 * quantizer.codes.lookup(torch.arange(16), 0).T.reshape(1, 1, 4, 4, 4)
    assert float(quantizer(even).entropy_loss) == pytest.approx(-4 * 0.6931, abs=1e-3)
    assert float(quantizer(9 * torch.ones(1, 1, 4, 4, 4)).entropy_loss) == pytest.approx(0, abs=1e-3)
    # Bits that are certain everywhere must still have a finite gradient
    certain = torch.full((1, 1, 4, 4, 4), 50.0, requires_grad=True)
    assert torch.autograd.grad(quantizer(certain).entropy_loss, certain)[0].isfinite().all()


@pytest.mark.parametrize("branches", [1, 2, 4])
@pytest.mark.parametrize("scales", [(1, 2, 5), (4,)])
@pytest.mark.parametrize("quantizer", ["bsq", "lfq"])
def test_binary_products_decode_what_they_encode(branches, scales, quantizer):
    config = replace(BINARY, branches=branches, scales=scales, quantizer=quantizer, quantizer_dropout=0.0)
    product = ProductQuantizer(config).eval()
    out = product(maps(2, branches, 6, scales[-1], scales[-1]))
    assert out.tokens.shape == (2, branches, sum(s * s for s in scales))
    torch.testing.assert_close(product.decode(out.tokens), out.z)
    assert torch.equal(product.encode(maps(2, branches, 6, scales[-1], scales[-1])), out.tokens)
    assert torch.isfinite(out.entropy_loss)


@pytest.mark.parametrize("cosine", [True, False])
def test_neighbours_are_the_nearest_codes_in_order(cosine):
    codebook = Codebook(50, 3, 1, cosine)
    with torch.no_grad():
        codebook.weight.copy_(maps(50, 3))
    z = maps(2, 3, 4, 4, seed=1)
    table = codebook.table([codebook])
    near = codebook.neighbours(z[:, None], 5, table)[:, 0]
    assert near.shape == (2, 16, 5)
    assert torch.equal(near[..., 0], codebook.nearest(z[:, None], table)[:, 0])
    codes = F.normalize(codebook.weight, dim=-1) if cosine else codebook.weight
    inputs = (F.normalize(z, dim=1) if cosine else z).flatten(2).mT
    assert torch.equal(near, torch.cdist(inputs, codes.expand(2, -1, -1)).argsort(-1)[..., :5])


@pytest.mark.parametrize("number", [7, 256])
def test_the_search_takes_the_first_of_equal_codes_however_many_it_compares_at_once(number, monkeypatch):
    codebook = Codebook(number, 2, 1, cosine=False)
    with torch.no_grad():
        codebook.weight.copy_(maps(2, 2).repeat_interleave(number // 2 + 1, dim=0)[:number])
    z = maps(40, 1, 2, 5, 5, seed=1)
    for comparisons in (1, 3 * number, 2**20):
        monkeypatch.setitem(COMPARISONS, "cpu", comparisons)
        tokens = codebook.nearest(z, codebook.table([codebook]))
        assert tokens.unique().tolist() == [0, number // 2 + 1]


def test_binary_neighbours_flip_the_least_certain_bits():
    codes, z = BinaryCodes(4, 1, 1.0, spherical=True), torch.tensor([0.5, -0.1, 0.3, -0.9]).view(1, 4, 1, 1)
    # 0b0101, then with bit 1 flipped, with bit 2, and with both
    assert codes.neighbours(z, 4)[0, 0].tolist() == [0b0101, 0b0111, 0b0001, 0b0011]
    assert codes.neighbours(z, 4)[..., 0].equal(codes.nearest(z))


@pytest.mark.parametrize("scales", [(1, 2, 3, 5), (5,)])
@pytest.mark.parametrize("quantizer", ["vq", "bsq"])
def test_the_neighbours_of_a_token_start_with_the_token(scales, quantizer):
    product = ProductQuantizer(replace(BINARY, scales=scales, quantizer=quantizer))
    f = maps(2, 2, 6, 5, 5)
    assert torch.equal(product.neighbours(f, 3)[..., 0], product.encode(f))


def test_perturbation_redraws_a_share_of_codes_from_the_nearest_including_the_nearest():
    near = torch.stack([torch.randperm(64)[:8] for _ in range(640)]).view(20, 2, 16, 8)
    tokens, u = near[..., 0], torch.rand(2, 20, 2, 16, dtype=torch.float64)
    changed = perturb(tokens, near, Perturbation(0.7, 5, u))
    ranks = (near == changed[..., None]).float().argmax(-1)
    drawn = u[0] < 0.7
    assert torch.equal(ranks[drawn], (u[1] * 5).long()[drawn])
    assert ranks[drawn].bincount(minlength=8).tolist()[5:] == [0, 0, 0]
    assert ranks[drawn].bincount(minlength=5).min() > 0.5 * int(drawn.sum()) / 5
    assert (ranks[~drawn] == 0).all()
    assert torch.equal(perturb(tokens, near, Perturbation(0.0, 5, u)), tokens)
    assert torch.equal(perturb(tokens, near, Perturbation(1.0, 1, u)), tokens)


def test_the_first_images_are_perturbed_but_the_losses_are_not():
    quantizer = ProductQuantizer(PLAIN)
    f = maps(8, 2, 6, 4, 4)
    expected = quantizer(f)
    perturbation = Perturbation(1.0, 8, torch.rand(2, 2, 2, 16))
    out = quantizer(f, perturbation=perturbation)
    near = quantizer.neighbours(f[:2], 8)
    assert torch.equal(out.tokens[:2], near.gather(-1, (perturbation.u[1] * 8).long()[..., None])[..., 0])
    assert 0 < (out.tokens[:2] == expected.tokens[:2]).float().mean() < 0.5
    assert torch.equal(out.tokens[2:], expected.tokens[2:])
    torch.testing.assert_close(out.z, quantizer.decode(out.tokens))
    assert torch.equal(out.commitment_loss, expected.commitment_loss)
    assert torch.equal(out.counts, expected.counts)


def test_every_registered_quantizer_builds_codes_of_its_configuration():
    shapes = {"vq": (60, 5), "bsq": (64, 6), "lfq": (64, 6), "fsq": (60, 3)}
    assert shapes.keys() == QUANTIZERS.keys()
    assert len({kind.letter for kind in QUANTIZERS.values()}) == len(QUANTIZERS)
    for name, (size, dim) in shapes.items():
        codes = build_codes(replace(BINARY, quantizer=name, codebook_size=size, code_dim=dim))
        assert (codes.size, codes.dim, codes.scales) == (size, dim, 4)
        assert codes.hits.shape == (4, size)
        assert any(True for _ in codes.parameters()) == QUANTIZERS[name].learned


def test_unknown_quantizers_are_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"quantizer 'fsqq': must be 'vq', 'bsq', 'lfq' or 'fsq'$"):
        replace(BINARY, quantizer="fsqq")


def test_both_kinds_of_codes_average_hits_the_same_way():
    for codes in (BinaryCodes(2, 1, 1.0, True), Codebook(4, 2, 1, cosine=False)):
        for counts in itertools.repeat(torch.tensor([[8.0, 0, 0, 0]]), 3):
            codes.record_hits(counts.clone())
        assert codes.hits.tolist() == [[8, 0, 0, 0]]
        assert codes.usage(16).tolist() == [0.25]
