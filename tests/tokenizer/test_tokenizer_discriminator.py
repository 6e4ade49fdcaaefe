"""The DINO discriminator against plain computations."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagefolder.tokenizer.discriminator import DinoDiscriminator, LocalBatchNorm

WIDTH, LENGTH = 48, 196
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@pytest.fixture(autouse=True)
def _seeded_with_one_thread() -> Iterator[None]:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small_vit(**shape: int | float) -> nn.Module:
    options = {"depth": 12, "embed_dim": WIDTH, "num_heads": 2} | shape
    vit = timm.create_model("vit_small_patch16_224.dino", pretrained=False, num_classes=0, **options)
    nn.init.normal_(vit.cls_token)  # with timm's 1e-6 the test could not see whether it is added
    return vit


@pytest.fixture
def discriminator() -> DinoDiscriminator:
    return DinoDiscriminator(small_vit())


def images(batch: int, side: int) -> Tensor:
    return torch.rand(batch, 3, side, side) * 2 - 1


def shown_to_vit(discriminator: DinoDiscriminator, batch: Tensor) -> Tensor:
    """What reaches the transformer, with ImageNet's normalisation undone: in [-1, 1]."""
    seen = []
    handle = discriminator.vit.patch_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        discriminator(batch)
    handle.remove()
    return (seen[0] * STD[:, None, None] + MEAN[:, None, None]) * 2 - 1


@pytest.mark.parametrize("side", [32, 224, 256])
@pytest.mark.parametrize("training", [True, False])
def test_one_logit_per_patch_and_readout_for_any_side(discriminator, side, training):
    with torch.no_grad():
        logits = discriminator.train(training)(images(2, side))
    assert logits.shape == (2, 5 * LENGTH)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    assert all(part.std() > 1e-3 for part in logits.split(LENGTH, dim=1))


def test_readouts_are_patches_plus_class_token_before_block_0_and_after_2_5_8_11(discriminator):
    vit, shown, tokens = discriminator.vit, images(2, 224), []
    handles = [vit.blocks[0].register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0]))]
    for block in (2, 5, 8, 11):
        handles.append(vit.blocks[block].register_forward_hook(lambda *call: tokens.append(call[2])))
    with torch.no_grad():
        vit(shown)  # timm's own pass
        for handle in handles:
            handle.remove()
        readouts = discriminator.readouts(shown)
    assert len(readouts) == len(tokens) == 5
    for readout, expected in zip(readouts, tokens, strict=True):
        assert readout.shape == (2, WIDTH, LENGTH)
        patches, class_token = expected[:, 1:], expected[:, 0]
        torch.testing.assert_close(readout, (patches + class_token[:, None]).transpose(1, 2))


def test_each_head_reads_its_own_readout(discriminator):
    discriminator.eval()
    batch = images(2, 224)
    with torch.no_grad():
        readouts = discriminator.readouts(((batch + 1) / 2 - MEAN[:, None, None]) / STD[:, None, None])
        expected = [head(x)[:, 0] for head, x in zip(discriminator.heads, readouts, strict=True)]
        torch.testing.assert_close(discriminator(batch), torch.cat(expected, dim=1))


def plain_norm(x: Tensor, weight: Tensor, bias: Tensor, sizes: list[int]) -> Tensor:
    normed = []
    for group in x.split(sizes):
        mean = group.mean((0, 2), keepdim=True)
        variance = (group - mean).square().mean((0, 2), keepdim=True)
        normed.append((group - mean) / (variance + 1e-5).sqrt() * weight[:, None] + bias[:, None])
    return torch.cat(normed)


def test_a_head_is_the_stated_formula(discriminator):
    """Circular padding by hand, statistics by hand, weights divided by their largest singular value."""
    head = discriminator.heads[1].eval()
    state = dict(head.state_dict())
    for name, value in state.items():
        if name.endswith(("weight", "bias")):
            value.copy_(torch.randn_like(value))

    def conv(prefix: str, x: Tensor) -> Tensor:
        original = state[f"{prefix}.parametrizations.weight.original"]
        u, v = (state[f"{prefix}.parametrizations.weight.0.{name}"] for name in ("_u", "_v"))
        weight = original / (u @ original.flatten(1) @ v)
        reach = weight.shape[2] // 2
        padded = torch.cat([x[..., -reach:], x, x[..., :reach]], dim=-1) if reach else x
        windows = padded.unfold(2, weight.shape[2], 1)  # (B, D, L, kernel)
        return torch.einsum("bdlk,odk->bol", windows, weight) + state[f"{prefix}.bias"][:, None]

    def block(prefix: str, x: Tensor) -> Tensor:
        x = plain_norm(conv(f"{prefix}0", x), state[f"{prefix}1.weight"], state[f"{prefix}1.bias"], [5, 5])
        return torch.where(x > 0, x, 0.2 * x)

    x = torch.randn(10, WIDTH, 30)
    with torch.no_grad():
        hidden = block("0.", x)
        hidden = (block("1.branch.", hidden) + hidden) / math.sqrt(2)
        torch.testing.assert_close(head(x), conv("2", hidden), rtol=1e-4, atol=1e-4)
    shapes = {name: tuple(value.shape) for name, value in state.items() if name.endswith("original")}
    assert list(shapes.values()) == [(WIDTH, WIDTH, 1), (WIDTH, WIDTH, 9), (1, WIDTH, 1)]


def test_training_brings_the_largest_singular_value_of_each_weight_to_one(discriminator):
    head = discriminator.heads[0]
    convs = [head[0][0], head[1].branch[0], head[2]]
    with torch.no_grad():
        for conv in convs:
            conv.parametrizations.weight.original.mul_(7)
        for _ in range(100):
            head(torch.zeros(1, WIDTH, 16))
        norms = [float(torch.linalg.matrix_norm(conv.weight.flatten(1), ord=2)) for conv in convs]
    assert norms == pytest.approx([1, 1, 1], rel=0.02)


@pytest.mark.parametrize(("batch", "sizes"), [(3, [3]), (8, [8]), (10, [5, 5]), (16, [8, 8]), (17, [6, 6, 5])])
@pytest.mark.parametrize("training", [True, False])
def test_local_batch_norm_takes_its_statistics_in_groups_of_about_eight(batch, sizes, training):
    norm = LocalBatchNorm(4).train(training)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(batch, 4, 7) * torch.arange(1, batch + 1)[:, None, None]
    torch.testing.assert_close(norm(x), plain_norm(x, norm.weight, norm.bias, sizes))
    assert set(norm.state_dict()) == {"weight", "bias"}


def test_the_transformer_is_not_part_of_parameters_state_or_modes(discriminator):
    before = copy.deepcopy(discriminator.vit.state_dict())
    assert set(discriminator.state_dict()) == {name for name in discriminator.state_dict() if name.startswith("heads.")}
    assert len(list(discriminator.parameters())) == 5 * (2 + 2 + 2 + 2 + 2)
    assert all(parameter.requires_grad for parameter in discriminator.parameters())
    for training in (False, True):
        discriminator.train(training).requires_grad_(training)
        assert not any(module.training for module in discriminator.vit.modules())
        assert not any(parameter.requires_grad for parameter in discriminator.vit.parameters())
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=0.1, weight_decay=0.1)
    discriminator(images(2, 32)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in discriminator.parameters())
    optimizer.step()
    for name, value in discriminator.vit.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_transformer_given_in_training_mode_is_frozen():
    vit = small_vit(drop_path_rate=0.5).train()
    discriminator = DinoDiscriminator(vit)
    assert not vit.training
    shown = images(2, 224)
    with torch.no_grad():
        torch.testing.assert_close(discriminator.readouts(shown), discriminator.readouts(shown), rtol=0, atol=0)


@pytest.mark.parametrize("frozen_heads", [True, False])
def test_gradients_reach_the_images_even_with_frozen_heads(discriminator, frozen_heads):
    discriminator.requires_grad_(not frozen_heads)
    batch = images(2, 256).requires_grad_()
    discriminator(batch).mean().backward()
    assert batch.grad.isfinite().all()
    assert (batch.grad.flatten(1).abs().sum(1) > 0).all()
    assert all((parameter.grad is None) == frozen_heads for parameter in discriminator.parameters())
    assert all(parameter.grad is None for parameter in discriminator.vit.parameters())


def test_the_state_restores_the_heads_on_the_same_transformer(discriminator, tmp_path):
    batch = images(2, 64)
    for _ in range(2):
        discriminator(batch)  # the power iteration advances in training mode
    torch.save(discriminator.state_dict(), tmp_path / "state.pt")
    other = DinoDiscriminator(discriminator.vit).eval()
    assert not torch.allclose(other(batch), discriminator.eval()(batch))
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    torch.testing.assert_close(other(batch), discriminator(batch), rtol=0, atol=0)


def test_the_transformer_moves_and_is_copied_with_the_discriminator(discriminator):
    batch = images(2, 64)
    other = copy.deepcopy(discriminator).double().eval()
    assert {tensor.dtype for tensor in other.vit.state_dict().values()} == {torch.float64}
    assert {tensor.dtype for tensor in discriminator.vit.state_dict().values()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in other.vit.parameters())
    with torch.no_grad():
        logits = other(batch.double())
        torch.testing.assert_close(logits.float(), discriminator.eval()(batch), rtol=1e-3, atol=1e-4)
    assert logits.dtype == torch.float64
    assert {p.device.type for p in discriminator.to("meta").vit.parameters()} == {"meta"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
        ),
    ],
)
def test_autocast_agrees_with_float32(discriminator, device, dtype):
    discriminator.to(device)
    batch = images(2, 64).to(device).requires_grad_()
    with torch.no_grad():
        expected = discriminator.eval()(batch)
    half = []  # whether the power iteration runs under autocast; on the CPU, autocast would not affect it
    discriminator.heads[0][0][0].parametrizations.weight[0].register_forward_pre_hook(
        lambda *_: half.append(torch.is_autocast_enabled(device))
    )
    with torch.autocast(device, dtype=dtype):
        logits = discriminator(batch)
        loss = discriminator.train()(batch).mean()
    assert logits.dtype == torch.float32
    assert (logits - expected).abs().mean() < 0.1 * expected.std()
    loss.backward()
    assert batch.grad.isfinite().all()
    assert batch.grad.abs().sum() > 0
    assert half == [False, False]


def test_a_seed_fixes_training_mode_and_eval_mode_draws_nothing(discriminator):
    batch = images(2, 256)
    discriminator.eval()  # stops the power iteration
    discriminator.training = True
    with torch.no_grad():
        first, again, other = (discriminator(batch) for seed in (3, 3, 4) if torch.manual_seed(seed))
        assert torch.equal(first, again)
        assert not torch.allclose(first, other)
        state = torch.get_rng_state()
        assert torch.equal(discriminator.eval()(batch), discriminator(batch))
    assert torch.equal(torch.get_rng_state(), state)


def test_eval_shows_the_image_resized_by_area(discriminator):
    discriminator.eval()
    large = images(1, 448)
    means = large.view(1, 3, 224, 2, 224, 2).mean((3, 5))
    torch.testing.assert_close(shown_to_vit(discriminator, large), means)
    own = images(1, 224)
    torch.testing.assert_close(shown_to_vit(discriminator, own), own)
    small = images(1, 112)
    torch.testing.assert_close(
        shown_to_vit(discriminator, small), small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    )


def test_training_shows_crops_half_of_the_time(discriminator):
    discriminator.augment = nn.Identity()
    large, corners = images(1, 232), []
    resized = F.interpolate(large, (224, 224), mode="area")
    for _ in range(40):
        shown = shown_to_vit(discriminator, large)
        if torch.allclose(shown, resized, atol=1e-5):
            continue
        crops = {(y, x): large[..., y : y + 224, x : x + 224] for y in range(9) for x in range(9)}
        matches = [corner for corner, crop in crops.items() if torch.allclose(shown, crop, atol=1e-5)]
        assert len(matches) == 1
        corners += matches
    assert 10 <= len(corners) <= 30
    for axis in range(2):  # from one border to the other
        found = {corner[axis] for corner in corners}
        assert min(found) <= 1
        assert max(found) >= 7


def test_training_never_crops_images_that_are_not_larger(discriminator):
    discriminator.augment = nn.Identity()
    for side in (112, 224):
        batch = images(1, side)
        expected = batch.repeat_interleave(224 // side, 2).repeat_interleave(224 // side, 3)
        for _ in range(6):
            torch.testing.assert_close(shown_to_vit(discriminator, batch), expected)


def test_only_training_augments_and_it_augments_the_full_image(discriminator):
    sizes = []
    discriminator.augment.register_forward_hook(lambda _, inputs, __: sizes.append(inputs[0].shape[-1]))
    discriminator.eval()(images(1, 256))
    assert sizes == []
    discriminator.train()(images(1, 256))
    assert sizes == [256]
