"""Wrong images and tokens are refused with what to do about it; images in [0, 1] are noticed."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import imagefolder
from imagefolder.tokenizer.model import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    torch.manual_seed(0)
    return imagefolder.load_tokenizer("mini-MSVR3P2-256")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), r"not uint8; convert them: images / 127.5 - 1"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.int32), r"not int32; convert them: x / 127.5 - 1"),
        (torch.zeros(3, 32, 32), r"\(3, 32, 32\); add the batch dimension: images\[None\]"),
        (torch.zeros(32, 32, 3), r"images.movedim\(-1, 0\)\[None\]"),
        (torch.zeros(2, 32, 32, 3), r"channels first: images.movedim\(-1, 1\)"),
        (torch.zeros(2, 1, 32, 32), r"images.expand\(-1, 3, -1, -1\)"),
        (torch.zeros(2, 3, 64, 64), r"\(B, 3, 32, 32\).*read_image\(path, size=32\)"),
        (torch.full((1, 3, 32, 32), 255.0), r"not 255 to 255; for 8-bit values x: x / 127.5 - 1"),
        (torch.full((1, 3, 32, 32), -1.06), r"not -1.06 to -1.06; .*images.clamp\(-1, 1\)"),
        (torch.full((1, 3, 32, 32), torch.nan), r"contain NaN"),
        (Image.new("RGB", (32, 32)), r"not a PIL image; read it: imagefolder.read_image\(..., size=32\)\[None\]"),
        ("photo.jpg", r"not a path; read it: imagefolder.read_image"),
        (np.zeros((2, 32, 32, 3), np.uint8), r"numpy array \(uint8 .*torch.stack\(\[imagefolder.read_image"),
        (np.zeros((2, 3, 32, 32)), r"numpy array \(float64 .*torch.from_numpy\(images\)"),
        ([torch.zeros(3, 32, 32)], r"of type list; .*torch.stack\(images\)"),
    ],
)
def test_wrong_images_are_refused_with_the_conversion(tokenizer, bad, message):
    for call in (tokenizer.encode, tokenizer.reconstruct, lambda images: tokenizer.neighbours(images, 2)):
        with pytest.raises(imagefolder.InputError, match=message):
            call(bad)


def test_the_conversions_that_messages_name_are_right(tokenizer, images):
    eight_bits = ((images + 1) * 127.5).round().to(torch.uint8)
    converted = eight_bits / 127.5 - 1
    expected = tokenizer.encode(converted)
    assert torch.equal(tokenizer.encode((converted + 1) / 2 * 2 - 1), expected)
    arrays = eight_bits.permute(0, 2, 3, 1).numpy()
    read = torch.stack([imagefolder.read_image(x, size=32) for x in arrays])
    assert torch.equal(tokenizer.encode(read), expected)
    channels_last = torch.from_numpy(arrays) / 127.5 - 1
    assert torch.equal(tokenizer.encode(channels_last.movedim(-1, 1)), expected)
    assert torch.equal(tokenizer.encode(converted[0][None]), expected[:1])
    grey = converted[:, :1]
    assert torch.equal(tokenizer.encode(grey.expand(-1, 3, -1, -1)), tokenizer.encode(grey.repeat(1, 3, 1, 1)))


@pytest.mark.parametrize("method", ["encode", "reconstruct"])
def test_images_from_0_to_1_are_noticed_where_they_are_passed(tokenizer, images, method):
    with pytest.warns(UserWarning, match=r"none of these values is below 0.*images \* 2 - 1") as caught:
        getattr(tokenizer, method)((images + 1) / 2)
    assert [warning.filename for warning in caught] == [__file__]


def test_right_images_cause_no_warning(tokenizer, images):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer.reconstruct(images)
        tokenizer.encode(torch.zeros(1, 3, 32, 32))  # grey
        tokenizer.encode(torch.ones(1, 3, 32, 32))  # white
        tokenizer.encode(images[:0])
        for dtype in (torch.float64, torch.float16, torch.bfloat16):
            assert tokenizer.encode(images.to(dtype)).dtype == torch.int64


def test_without_the_check_tokens_and_images_are_the_same(tokenizer, images):
    tokens = tokenizer.encode(images)
    assert torch.equal(tokenizer.encode(images, check=False), tokens)
    assert torch.equal(tokenizer.decode(tokens, check=False), tokenizer.decode(tokens))
    assert torch.equal(tokenizer.neighbours(images, 3, check=False), tokenizer.neighbours(images, 3))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(2, 14, dtype=torch.int64), r"\(B, 2, 14\).*not int64 \(2, 14\); .*tokens\[None\]"),
        (torch.zeros(2, 2, 14, dtype=torch.int32), r"not int32 \(2, 2, 14\); convert them: tokens.long\(\)"),
        (torch.zeros(2, 2, 13, dtype=torch.int64), r"not int64 \(2, 2, 13\)$"),
        (torch.zeros(2, 2, 14), r"not float32 \(2, 2, 14\)$"),
        (torch.full((1, 2, 14), 256), r"in 0\.\.255, the codebook of mini-MSVR3P2-256, not 256\.\.256"),
        (torch.full((1, 2, 14), -1), r"not -1\.\.-1"),
        (np.zeros((2, 2, 14), np.int64), r"numpy array .*torch.from_numpy\(tokens\)"),
        ([[0] * 14] * 2, r"of type list; convert them: torch.as_tensor\(tokens\)"),
    ],
)
def test_wrong_tokens_are_refused_with_the_conversion(tokenizer, bad, message):
    for call in (tokenizer.decode, tokenizer.decode_progressively, lambda tokens: tokenizer.swap_branches(tokens, bad)):
        with pytest.raises(imagefolder.InputError, match=message):
            call(bad)


def test_images_grow_scale_by_scale(tokenizer, images):
    tokens = tokenizer.encode(images)
    steps = tokenizer.decode_progressively(tokens)
    assert steps.shape == (3, 2, 3, 32, 32)
    assert torch.equal(steps[-1], tokenizer.decode(tokens))
    # A step depends on its scales alone: 1, 1 + 4 and 1 + 4 + 9 positions
    for step, positions in enumerate((1, 5)):
        changed = tokens.clone()
        changed[..., positions:] = (changed[..., positions:] + 1) % 256
        assert torch.equal(tokenizer.decode_progressively(changed)[step], steps[step])
        changed[..., positions - 1] = (changed[..., positions - 1] + 1) % 256
        assert not torch.equal(tokenizer.decode_progressively(changed)[step], steps[step])


def test_one_scale_grows_in_one_step(images):
    tokenizer = imagefolder.load_tokenizer("mini-VQ-256")
    tokens = tokenizer.encode(images)
    assert torch.equal(tokenizer.decode_progressively(tokens), tokenizer.decode(tokens)[None])
    with pytest.raises(imagefolder.InputError, match="mini-VQ-256 has one branch: there is nothing to swap"):
        tokenizer.swap_branches(tokens, tokens)


@pytest.mark.parametrize("branch", [0, 1, -1])
def test_branches_are_swapped(tokenizer, images, branch):
    a, b = tokenizer.encode(images)[:, None]
    before = a.clone(), b.clone()
    swapped_a, swapped_b = tokenizer.swap_branches(a, b, branch)
    assert torch.equal(swapped_a[:, branch], b[:, branch])
    assert torch.equal(swapped_b[:, branch], a[:, branch])
    other = 1 - branch % 2
    assert torch.equal(swapped_a[:, other], a[:, other])
    assert torch.equal(swapped_b[:, other], b[:, other])
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])


def test_what_cannot_be_swapped_is_named(tokenizer, images):
    tokens = tokenizer.encode(images)
    with pytest.raises(imagefolder.InputError, match=r"branch must lie in 0..1 .*, not 2"):
        tokenizer.swap_branches(tokens, tokens, branch=2)
    with pytest.raises(imagefolder.InputError, match="2 and 1 were given"):
        tokenizer.swap_branches(tokens, tokens[:1])
