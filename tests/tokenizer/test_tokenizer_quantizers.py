"""Identities of the quantizers."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imagefolder.config import TokenizerConfig
from imagefolder.tokenizer.codes import Codebook
from imagefolder.tokenizer.quantizers import (
    ProductQuantizer,
    floor_of_share,
    phi_of_scale,
    usage_and_perplexity,
)
from imagefolder.zoo import TOKENIZERS

CONFIG = TokenizerConfig(scales=(1, 2, 3, 5), codebook_size=64, code_dim=6, dropout_start=2, quantizer_dropout=0.5)


def one_branch(**changes: Any) -> ProductQuantizer:
    return ProductQuantizer(replace(CONFIG, branches=1, semantic="none", **changes))


def alone(product: ProductQuantizer, branch: int, **changes: Any) -> ProductQuantizer:
    """A quantizer of one branch of a product."""
    quantizer = one_branch(**changes).eval()
    quantizer.branches[0].load_state_dict(product.branches[branch].state_dict())
    return quantizer


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("shared_phi", [0, 1, 2, 4])
@pytest.mark.parametrize("cosine", [True, False])
def test_decoding_what_was_encoded_gives_the_straight_through_output(shared_phi, cosine):
    quantizer = one_branch(shared_phi=shared_phi, cosine=cosine).eval()
    f = maps(3, 1, 6, 5, 5)
    out = quantizer(f)
    assert torch.equal(quantizer.encode(f), out.tokens)
    assert out.tokens.shape == (3, 1, 1 + 4 + 9 + 25)
    torch.testing.assert_close(quantizer.decode(out.tokens), out.z)


@pytest.mark.parametrize("branches", [1, 2, 4])
@pytest.mark.parametrize("scales", [(1, 2, 5), (4,)])
def test_branches_are_independent_and_concatenated(branches, scales):
    config = replace(CONFIG, branches=branches, scales=scales, quantizer_dropout=0.0)
    quantizer = ProductQuantizer(config).eval()
    f = maps(2, branches, 6, scales[-1], scales[-1])
    out = quantizer(f)
    assert out.z.shape == (2, branches * 6, scales[-1], scales[-1])
    torch.testing.assert_close(quantizer.decode(quantizer.encode(f)), out.z)
    for p in range(branches):
        one, part = alone(quantizer, p, scales=scales), f[:, p : p + 1]
        torch.testing.assert_close(one(part).z, out.z[:, 6 * p : 6 * (p + 1)])
        assert torch.equal(one.encode(part), out.tokens[:, p : p + 1])
        assert torch.equal(one.neighbours(part, 3), quantizer.neighbours(f, 3)[:, p : p + 1])
        assert torch.equal(one(part).counts, out.counts[p : p + 1])


@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("quantizer", ["vq", "bsq"])
@pytest.mark.parametrize("scales", [(1, 2, 3, 5), (5,)])
def test_losses_and_gradients_of_a_product_are_the_means_over_its_branches(scales, quantizer, cosine):
    changes: dict[str, Any] = {"scales": scales, "quantizer": quantizer, "cosine": cosine}
    product, names = ProductQuantizer(replace(CONFIG, **changes)).eval(), ("codebook_loss", "commitment_loss")
    f, weights = maps(3, 2, 6, 5, 5).requires_grad_(), maps(3, 12, 5, 5, seed=1)
    kept = torch.tensor([2, 4, 3]) if len(scales) > 1 else None
    results, gradients = [], []
    for pairs in (
        [(product, f, weights)],
        [(alone(product, p, **changes), f[:, p : p + 1], weights[:, 6 * p : 6 * p + 6]) for p in (0, 1)],
    ):
        found = [(one(part, kept), w) for one, part, w in pairs]
        losses = [torch.stack([getattr(out, name) for out, _ in found]).mean() for name in (*names, "entropy_loss")]
        results.append(torch.stack(losses))
        parameters = [weight for one, _, _ in pairs for weight in one.parameters()]
        total = sum(losses) + sum((out.z * w).sum() for out, w in found)
        gradients.append(torch.autograd.grad(total, [f, *parameters], allow_unused=True))
    torch.testing.assert_close(*results)
    for together, separate in zip(*gradients, strict=True):
        if separate is None:  # a phi that no scale uses
            assert together is None
        else:
            torch.testing.assert_close(together, separate)


def by_the_page(quantizer: ProductQuantizer, f: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """f_hat, tokens and residual after every scale of a branch (B, C, K, K), from the description alone."""
    branch = quantizer.branches[0]
    codes = branch.codebook.weight.detach()
    rest, f_hat, side = f, torch.zeros_like(f), f.shape[-1]
    maps_, tokens, rests = [], [], []
    for k, s in enumerate(quantizer.scales):
        z = F.interpolate(rest, (s, s), mode="area") if s != side else rest
        z = F.normalize(z.permute(0, 2, 3, 1).reshape(-1, f.shape[1]), dim=-1)
        index = (z @ F.normalize(codes, dim=-1).T).argmax(-1)
        h = codes[index].reshape(len(f), s, s, -1).permute(0, 3, 1, 2)
        if s != side:
            h = F.interpolate(h, (side, side), mode="bicubic")
        phi = branch.phis[quantizer.phi_of_scale[k]]
        h = 0.5 * h + 0.5 * F.conv2d(h, phi.weight, phi.bias, padding=1)
        f_hat, rest = f_hat + h, rest - h
        maps_.append(f_hat.detach())
        tokens.append(index.reshape(len(f), -1))
        rests.append(rest.detach())
    return maps_, tokens, rests


def test_area_down_bicubic_up_and_phi_are_as_documented():
    quantizer = one_branch().eval()
    f = maps(2, 6, 5, 5)
    f_hats, tokens, _ = by_the_page(quantizer, f)
    out = quantizer(f[:, None])
    assert torch.equal(out.tokens[:, 0], torch.cat(tokens, dim=1))
    torch.testing.assert_close(out.z, f_hats[-1])


@pytest.mark.parametrize(("over_scales", "divisor"), [("mean", 4), ("sum", 1)])
def test_codebook_loss_is_averaged_and_commitment_averaged_or_summed_over_scales(over_scales, divisor):
    quantizer = one_branch(commitment_over_scales=over_scales).eval()
    f = maps(2, 6, 5, 5)
    errors = [float((f_hat - f).square().mean()) for f_hat in by_the_page(quantizer, f)[0]]
    out = quantizer(f[:, None])
    assert float(out.codebook_loss.detach()) == pytest.approx(sum(errors) / 4, rel=1e-5)
    assert float(out.commitment_loss.detach()) == pytest.approx(0.25 * sum(errors) / divisor, rel=1e-5)


def test_commitment_is_averaged_by_default_and_in_imagefolder():
    assert TokenizerConfig().commitment_over_scales == "mean"
    assert {TOKENIZERS[f"MSVR10P2-{size}"].commitment_over_scales for size in (4096, 8192, 16384)} == {"mean"}


def test_each_loss_has_its_own_gradients():
    quantizer = one_branch()
    f, codes = maps(2, 1, 6, 5, 5).requires_grad_(), quantizer.branches[0].codebook.weight
    out = quantizer(f)
    (straight,) = torch.autograd.grad(out.z.sum(), f, retain_graph=True)
    assert torch.equal(straight, torch.ones_like(f))
    assert torch.autograd.grad(out.codebook_loss, f, retain_graph=True, allow_unused=True) == (None,)
    assert torch.autograd.grad(out.codebook_loss, codes, retain_graph=True)[0].abs().sum() > 0
    commitment = torch.autograd.grad(out.commitment_loss, [f, codes], retain_graph=True, allow_unused=True)
    assert commitment[0].abs().sum() > 0
    assert commitment[1] is None


def test_residual_energy_falls_over_scales_with_a_rich_codebook():
    # With codes of all directions and lengths and phi the identity, every scale reduces the residual
    quantizer = one_branch(code_dim=2, codebook_size=4096, cosine=False, shared_phi=1)
    with torch.no_grad():
        quantizer.branches[0].codebook.weight.copy_(maps(4096, 2) * 1.5)
        phi = quantizer.branches[0].phis[0]
        phi.weight.zero_()
        phi.bias.zero_()
        phi.weight[[0, 1], [0, 1], 1, 1] = 1.0
        f = maps(16, 2, 5, 5, seed=1)
        tokens = quantizer.encode(f[:, None])
        rests = [f, *(f - quantizer.decode(tokens, number) for number in (1, 2, 3, 4))]
    energy = [float(rest.square().mean()) for rest in rests]
    assert all(after < before for before, after in itertools.pairwise(energy)), energy
    assert energy[-1] < 0.05 * energy[0]


@pytest.mark.parametrize(("scales", "shared"), [(10, 4), (10, 2), (10, 3), (5, 4), (10, 1)])
def test_partially_shared_phi_is_the_nearest_tick(scales, shared):
    margin = 1 / 3 / 4 if shared == 4 else 1 / 2 / shared
    ticks = np.linspace(margin, 1 - margin, shared)
    expected = [int(np.argmin(np.abs(ticks - k / (scales - 1)))) for k in range(scales)]
    assert phi_of_scale(scales, shared) == expected
    assert sorted(set(expected)) == list(range(shared))


def test_phi_sharing_of_the_released_models():
    # Scales 2 and 7 lie between two ticks; the recorded outputs in tests/parity confirm which one they use
    assert phi_of_scale(10, 4) == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert phi_of_scale(10, 0) == list(range(10))
    assert len(one_branch(shared_phi=0).branches[0].phis) == 4


def test_single_scale_outputs_normalised_codes():
    quantizer = one_branch(scales=(4,)).eval()
    codes = quantizer.branches[0].codebook.weight
    with torch.no_grad():
        codes.mul_(torch.rand(64, 1) + 0.5)
    f = maps(2, 6, 4, 4)
    out = quantizer(f[:, None])
    normalised = F.normalize(f, dim=1)
    torch.testing.assert_close(out.z.norm(dim=1), torch.ones(2, 4, 4))
    torch.testing.assert_close(quantizer.decode(out.tokens), out.z)
    similarity = torch.einsum("bchw,vc->bhwv", normalised, F.normalize(codes, dim=-1))
    assert torch.equal(similarity.argmax(-1).flatten(1), out.tokens[:, 0])
    error = (out.z - normalised).square().mean()
    torch.testing.assert_close(out.codebook_loss, error)
    torch.testing.assert_close(out.commitment_loss, 0.25 * error)


def test_quantizer_dropout_affects_only_the_first_share_of_a_batch():
    quantizer = ProductQuantizer(CONFIG).train()
    drawn = torch.stack([quantizer.draw_kept(9) for _ in range(200)])
    assert (drawn[:, 4:] == 4).all()
    assert set(drawn[:, :4].flatten().tolist()) == {2, 3, 4}
    assert quantizer.share_kept(torch.tensor([2, 4, 4, 3])).tolist() == [1, 1, 0.75, 0.5]
    assert quantizer.draw_kept(1) is None  # floor(0.5 x 1) images
    assert ProductQuantizer(replace(CONFIG, quantizer_dropout=0.0)).draw_kept(9) is None
    assert ProductQuantizer(replace(CONFIG, scales=(5,))).draw_kept(9) is None


def test_dropped_scales_add_nothing_and_losses_average_over_the_rest():
    quantizer = one_branch().eval()
    f = maps(3, 6, 5, 5)
    f_hats, _, _ = by_the_page(quantizer, f)
    out = quantizer(f[:, None], kept=torch.tensor([2, 4, 3]))
    for sample, kept in enumerate((2, 4, 3)):
        torch.testing.assert_close(out.z[sample], f_hats[kept - 1][sample])
    users = [[0, 1, 2], [0, 1, 2], [1, 2], [1]]
    errors = [float((f_hats[k] - f)[use].square().mean()) for k, use in enumerate(users)]
    assert float(out.codebook_loss.detach()) == pytest.approx(sum(errors) / 4, rel=1e-5)


def test_parts_of_a_batch_add_up_to_the_whole():
    """Losses of equal parts, given the shares of the whole, average to those of the whole."""
    for config in (CONFIG, replace(CONFIG, quantizer="bsq")):
        quantizer = ProductQuantizer(config)
        f, kept = maps(4, 2, 6, 5, 5), torch.tensor([2, 4, 3, 4])
        share = quantizer.share_kept(kept)
        whole = quantizer(f, kept)
        parts = [quantizer(f[at : at + 2], kept[at : at + 2], share) for at in (0, 2)]
        for name in ("codebook_loss", "commitment_loss", "sample_entropy", "bits"):
            mean = torch.stack([getattr(part, name) for part in parts]).mean(0)
            torch.testing.assert_close(mean, getattr(whole, name))
        assert torch.equal(parts[0].counts + parts[1].counts, whole.counts)
        torch.testing.assert_close(torch.cat([part.z for part in parts]), whole.z)


def test_one_draw_of_dropout_serves_all_branches():
    quantizer = ProductQuantizer(CONFIG).eval()
    f, kept = maps(2, 2, 6, 5, 5), torch.tensor([2, 4])
    z = quantizer(f, kept).z
    for p in (0, 1):
        torch.testing.assert_close(z[:, 6 * p : 6 * p + 6], alone(quantizer, p)(f[:, p : p + 1], kept).z)


def test_hit_counts_are_averaged_with_the_released_rates():
    codebook = Codebook(4, 2, 1, cosine=True)
    codebook.record_hits(torch.tensor([[8.0, 0, 0, 0]]))
    assert codebook.hits.tolist() == [[8, 0, 0, 0]]
    codebook.record_hits(torch.tensor([[0.0, 8, 0, 0]]))
    torch.testing.assert_close(codebook.hits, torch.tensor([[7.2, 0.8, 0, 0]]))
    codebook.updates.fill_(100)
    codebook.record_hits(torch.tensor([[0.0, 0, 8, 0]]))
    torch.testing.assert_close(codebook.hits, torch.tensor([[7.128, 0.792, 0.08, 0]]))
    # The fair share of 40 tokens is 10 per code; a code counts as used from 0.8 on
    assert codebook.usage(40).tolist() == [0.25]
    assert codebook.usage(39).tolist() == [0.5]


def test_a_forward_pass_counts_codes_without_updating_the_averages():
    quantizer = ProductQuantizer(CONFIG).train()
    out = quantizer(maps(3, 2, 6, 5, 5))
    assert out.counts.shape == (2, 4, 64)
    assert out.counts.sum(-1).tolist() == [[3, 12, 27, 75]] * 2
    assert all(int(branch.codebook.updates) == 0 for branch in quantizer.branches)
    quantizer.record_hits(out.counts)
    for branch, counts in zip(quantizer.branches, out.counts, strict=True):
        assert torch.equal(branch.codebook.hits, counts.float())


def test_shares_of_numbers_are_exact_despite_floating_point():
    assert [floor_of_share(share, number) for share, number in ((0.7, 90), (0.9, 100), (0.55, 100), (0.1, 1024))] == [
        63, 90, 55, 102,
    ]  # fmt: skip


def test_usage_and_perplexity():
    used, perplexity = usage_and_perplexity(torch.tensor([0, 0, 1, 1, 2, 2]), 4)
    assert (used, perplexity) == (0.75, pytest.approx(3.0))
    assert usage_and_perplexity(torch.tensor([3, 3]), 4) == (0.25, pytest.approx(1.0))


def test_quantizers_work_in_float32_under_autocast():
    quantizer = ProductQuantizer(CONFIG).eval()
    f = maps(2, 2, 6, 5, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = quantizer(f)
    assert inside.z.dtype == torch.float32
    assert torch.equal(inside.z, quantizer(f).z)
