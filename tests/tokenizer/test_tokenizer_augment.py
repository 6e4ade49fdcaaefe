"""The augmentation of what a discriminator sees, against plain computations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imagefolder.tokenizer.augment import DiffAugment, change_colour, cut_out, translate


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def images(batch: int, side: int) -> Tensor:
    return torch.rand(batch, 3, side, side) * 2 - 1


def test_colour_is_brightness_saturation_contrast_within_their_ranges():
    """With grey g(x) = channel mean and m(x) = image mean, the three draws can be read off the result and checked."""
    x = images(512, 6).double()
    y = change_colour(x)
    grey, grey_y = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
    mean, mean_y = x.mean((1, 2, 3), keepdim=True), y.mean((1, 2, 3), keepdim=True)
    brightness = mean_y - mean
    contrast = ((grey_y - mean_y) * (grey - mean)).sum((1, 2, 3), keepdim=True)
    contrast = contrast / (grey - mean).square().sum((1, 2, 3), keepdim=True)
    saturation = ((y - grey_y) * (x - grey)).sum((1, 2, 3), keepdim=True)
    saturation = saturation / (x - grey).square().sum((1, 2, 3), keepdim=True) / contrast
    expected = mean + brightness + contrast * (grey - mean) + contrast * saturation * (x - grey)
    torch.testing.assert_close(y, expected)
    for draw, low, high in ((brightness, -0.5, 0.5), (saturation, 0.0, 2.0), (contrast, 0.5, 1.5)):
        share = (draw.flatten() - low) / (high - low)
        assert share.min() >= 0
        assert share.min() < 0.05
        assert share.max() <= 1
        assert share.max() > 0.95
        assert float(share.mean()) == pytest.approx(0.5, abs=0.06)
    draws = torch.stack([brightness, saturation, contrast]).flatten(1)
    assert (torch.corrcoef(draws) - torch.eye(3)).abs().max() < 0.2


def test_translation_shifts_by_up_to_an_eighth_and_fills_with_zeros():
    side, reach = 24, 3
    x = images(400, side)
    y = translate(x, 0.125)
    padded = F.pad(x, (reach,) * 4)
    seen = []
    for before, after in zip(padded, y, strict=True):
        shifts = [
            (down, right)
            for down in range(-reach, reach + 1)
            for right in range(-reach, reach + 1)
            if torch.equal(before[:, reach - down :, reach - right :][:, :side, :side], after)
        ]
        assert len(shifts) == 1
        seen += shifts
    assert len(set(seen)) == (2 * reach + 1) ** 2  # every pair of shifts: the axes are independent


def test_cutout_zeroes_one_square_anywhere_and_nothing_else():
    side, size = 20, 4
    x = images(600, side) + 2
    y = cut_out(x, 0.2)
    seen = set()
    for before, after in zip(x, y, strict=True):
        hit = (after == 0).all(0)
        assert torch.equal(after, before * ~hit)
        rows, columns = hit.any(1).nonzero().flatten(), hit.any(0).nonzero().flatten()
        assert torch.equal(hit, hit.any(1)[:, None] & hit.any(0))
        for found in (rows, columns):
            first, last = int(found[0]), int(found[-1])
            assert len(found) == last - first + 1
            assert len(found) == size or (2 <= len(found) < size and (first == 0 or last == side - 1))
        seen |= {(int(rows[0]), int(rows[-1])), (int(columns[0]), int(columns[-1]))}
    assert len(seen) == side + 1  # every centre from border to border
    assert {(0, 1), (0, 3), (8, 11), (18, 19)} <= seen


@pytest.mark.parametrize("step", [change_colour, lambda x: translate(x, 0.25), lambda x: cut_out(x, 0.4)])
def test_augmentation_is_differentiable(step):
    def seeded(x: Tensor) -> Tensor:
        torch.manual_seed(1)
        return step(x)

    assert torch.autograd.gradcheck(seeded, images(3, 5).double().requires_grad_())


def test_augmentation_is_drawn_per_image_and_fixed_by_the_seed():
    x = images(1, 32).expand(6, -1, -1, -1)
    first, again, other = (DiffAugment()(x) for seed in (1, 1, 2) if torch.manual_seed(seed))
    assert first.shape == x.shape
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert all(not torch.allclose(first[i], first[j]) for i in range(6) for j in range(i))


def test_augmentation_translates_changes_the_colour_and_cuts_out_in_this_order():
    x = torch.ones(200, 3, 40, 40) * 0.9
    torch.manual_seed(1)
    y = DiffAugment()(x)
    torch.manual_seed(1)
    assert torch.equal(y, cut_out(change_colour(translate(x, 0.125)), 0.2))
    zeros = (y == 0).all(1).float().mean((1, 2))
    assert ((zeros >= 0.01) & (zeros <= 0.04)).all()  # all or part of the cutout, and nothing else
    levels = [image[image != 0].unique() for image in y]
    assert sum(len(level) > 1 for level in levels) > 150  # the border that was shifted in has a different colour
    brightest = [float(level.max()) for level in levels]
    assert max(brightest) - min(brightest) > 0.9
