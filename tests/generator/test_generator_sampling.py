"""Drawing tokens: top-k, top-p and the resulting distribution."""

from __future__ import annotations

import pytest
import torch

from imagefolder.generator.sampling import draw, image_seed, uniforms

PROBABILITIES = torch.tensor([0.05, 0.4, 0.1, 0.25, 0.2])
LOGITS = PROBABILITIES.log()


def frequencies(top_k: int, top_p: float, n: int = 20_000) -> torch.Tensor:
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    tokens = draw(LOGITS.expand(n, 5), u, top_k, top_p)
    return torch.bincount(tokens, minlength=5) / n


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [
        (0, 1.0, [0, 1, 2, 3, 4]),
        (3, 1.0, [1, 3, 4]),
        (1, 1.0, [1]),
        (99, 1.0, [0, 1, 2, 3, 4]),
        (0, 0.94, [1, 2, 3, 4]),  # 0.05 is within 1 - 0.94
        (0, 0.96, [0, 1, 2, 3, 4]),  # 0.05 is not within 0.04
        (0, 0.84, [1, 3, 4]),  # 0.05 + 0.10 <= 0.16
        (0, 0.01, [1]),
        (3, 0.7, [1, 3]),  # of 0.4, 0.25, 0.2 renormalised, 0.2 / 0.85 <= 0.3
    ],
)
def test_kept_tokens_are_drawn_with_their_renormalised_probabilities(top_k, top_p, kept):
    expected = torch.zeros(5)
    expected[kept] = PROBABILITIES[kept] / PROBABILITIES[kept].sum()
    torch.testing.assert_close(frequencies(top_k, top_p), expected, atol=2e-4, rtol=0)


def test_extreme_uniform_numbers_give_kept_tokens():
    for u in (0.0, 1 - 2**-53):
        assert draw(LOGITS[None], torch.tensor([u], dtype=torch.float64), 3, 0.9)[0] in (1, 3, 4)


def test_uniform_numbers_belong_to_the_image():
    together = uniforms(7, [3, 0, 5], 2, 14)
    assert together.shape == (3, 2, 14)
    assert torch.equal(uniforms(7, [5], 2, 14)[0], together[2])
    assert not torch.equal(uniforms(8, [5], 2, 14)[0], together[2])
    assert len({image_seed(s, i) for s in range(20) for i in range(500)}) == 10_000


@pytest.mark.parametrize(("temperature", "power"), [(0.5, 2.0), (2.0, 0.5)])
def test_temperature_sharpens_or_flattens_a_known_distribution(temperature: float, power: float) -> None:
    """Dividing logits by T raises probabilities to the power 1 / T."""
    n = 20_000
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    found = torch.bincount(draw((LOGITS / temperature).expand(n, 5), u, 0, 0.0), minlength=5) / n
    expected = PROBABILITIES**power / (PROBABILITIES**power).sum()
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)
    assert (found.max() > PROBABILITIES.max()) == (temperature < 1)
