"""Any tensor passed to the models as tokens, labels or images gives a result of the right shape or a one-line error."""

from __future__ import annotations

from typing import Any

import torch
from conftest import Tally
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import imagefolder
from imagefolder import InputError

TENSORS = 150
DTYPES = (torch.int64, torch.int32, torch.uint8, torch.bool, torch.float32, torch.float64, torch.bfloat16)

tokenizer = imagefolder.load_tokenizer("mini-MSVR3P2-256")
generator = imagefolder.load_generator("VAR-mini-MSVR3P2-256", tokenizer)


@st.composite
def tensors(draw: st.DrawFn, shape: tuple[int, ...], low: int, high: int) -> Tensor:
    """Mostly as required, (B, *shape) in [low, high), but with another dtype, side, number of sides, or value."""
    sides = [draw(st.integers(0, 3)), *shape]
    odd = draw(st.sampled_from(["nothing", "nothing", "dtype", "side", "sides", "value"]))
    if odd == "side" and shape:
        place = draw(st.integers(1, len(sides) - 1))
        sides[place] = draw(st.integers(0, sides[place] + 3))
    elif odd == "sides":
        sides = draw(st.lists(st.integers(0, 5), max_size=5))
    values = torch.randint(low, high, tuple(sides), generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    if odd == "value" and values.numel():
        values.view(-1)[draw(st.integers(0, values.numel() - 1))] = draw(st.integers(-(2**63), 2**63 - 1))
    return values.to(draw(st.sampled_from(DTYPES))) if odd == "dtype" else values


def attempt(counts: Any, act: Any) -> Tensor | None:
    """The result of a call, or None if it raises an `InputError` (which is one line)."""
    try:
        result = act()
    except InputError:
        counts.add("refused")
        return None
    counts.add("right")
    return result


CONFIG = tokenizer.config
SHAPE = (CONFIG.branches, CONFIG.length)


@settings(max_examples=TENSORS, deadline=None, derandomize=True)
@given(tensors(SHAPE, 0, CONFIG.codebook_size))
def test_tokens_become_images_or_an_error(tokens: Tensor) -> None:
    images = attempt(Tally("odd tensors"), lambda: tokenizer.decode(tokens))
    if images is not None:
        assert images.shape == (len(tokens), 3, CONFIG.image_size, CONFIG.image_size)
        assert bool((images.abs() <= 1).all())  # NaN would fail


@settings(max_examples=TENSORS, deadline=None, derandomize=True)
@given(tensors(SHAPE, 0, CONFIG.codebook_size), tensors((), 0, 11))
def test_tokens_and_labels_become_logits_or_an_error(tokens: Tensor, labels: Tensor) -> None:
    logits = attempt(Tally("odd tensors"), lambda: generator(labels, tokens))
    if logits is not None:
        assert logits.shape == (len(tokens), *SHAPE, CONFIG.codebook_size)
        assert bool(torch.isfinite(logits).all())


@settings(max_examples=TENSORS, deadline=None, derandomize=True)
@given(tensors((3, CONFIG.image_size, CONFIG.image_size), -1, 2), st.sampled_from([1.0, 0.5, 1.5, float("nan")]))
def test_images_become_tokens_or_an_error(values: Tensor, scale: float) -> None:
    images = values if values.dtype != torch.int64 else values.float() * scale
    tokens = attempt(Tally("odd tensors"), lambda: tokenizer.encode(images))
    if tokens is not None:
        assert tokens.shape == (len(images), *SHAPE)
        assert tokens.dtype == torch.int64
        assert bool(((tokens >= 0) & (tokens < CONFIG.codebook_size)).all())
