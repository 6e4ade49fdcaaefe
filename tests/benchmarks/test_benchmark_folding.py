"""The paper's efficiency claim: folded against unfolded at equal tokens, and against one branch and raster order."""

from __future__ import annotations

import pytest
import torch
from benchmark_models import DEVICES, DTYPES, fast, generator_of

import imagefolder
from imagefolder.flops import encode_flops, sample_flops

MINI = {
    "folded": ("VAR-mini-MSVR3P2-256", "mini-MSVR3P2-256"),
    "unfolded": ("VAR-mini-MSVR3P2-256-unfolded", "mini-MSVR3P2-256"),
    "one branch": ("VAR-mini-MSVR3-256", "mini-MSVR3-256"),
    "raster": ("AR-mini-VQ-256", "mini-VQ-256"),
}
RELEASED = {
    "folded": ("VAR-d17-MSVR10P2-4096", "MSVR10P2-4096"),
    "unfolded": ("VAR-d17-MSVR10P2-4096-unfolded", "MSVR10P2-4096"),
    "one branch": ("VAR-d17-MSVR10-4096", "MSVR10-4096"),
    "raster": ("AR-d17-VQ-4096", "VQ-4096"),
}
devices = pytest.mark.parametrize("device", DEVICES)


def sample_case(measure, names: tuple[str, str], batch: int, device: str, order: str, group: str, **about) -> None:
    dtype = fast(device)
    generator = generator_of(*names, device, dtype)
    config, sequence = generator.config, generator.transformer.sequence
    labels = torch.arange(batch, device=device) % config.num_classes
    out = measure(
        lambda: generator.sample(labels), "sample", batch, device, dtype, batch * sample_flops(generator), rounds=2,
        model=names[0], group=group, order=order, positions=sequence.length,
        tokens=batch * config.branches * generator.tokenizer.config.length, **about,
    )  # fmt: skip
    assert len(out.images) == batch


@devices
@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("order", MINI)
def test_orders_at_mini(measure, order, batch, device):
    sample_case(measure, MINI[order], batch, device, order, "folding")


@devices
@pytest.mark.large
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("order", RELEASED)
def test_orders_at_released_size(measure, order, batch, device):
    sample_case(measure, RELEASED[order], batch, device, order, "folding")


@devices
@pytest.mark.parametrize("batch", [1, 2, 4, 8, 16, 32, 64, 128])
@pytest.mark.parametrize("order", ["folded", "unfolded"])
def test_growth_with_batch(measure, order, batch, device):
    sample_case(measure, MINI[order], batch, device, order, "growth", growth="batch", growth_value=float(batch))


@devices
@pytest.mark.parametrize("scales", [(1, 4), (1, 2, 4), (1, 2, 3, 4), (1, 1, 2, 3, 3, 4)], ids=len)
@pytest.mark.parametrize("order", ["folded", "unfolded"])
def test_growth_with_scales(measure, order, scales, device):
    torch.manual_seed(0)
    tokenizer = imagefolder.load_tokenizer("mini-MSVR3P2-256", device=device, scales=scales)
    generator = imagefolder.load_generator(MINI[order][0], tokenizer=tokenizer, device=device)
    batch, labels = 16, torch.arange(16, device=device) % 10
    measure(
        lambda: generator.sample(labels), "sample", batch, device, "float32", batch * sample_flops(generator),
        model=MINI[order][0], group="growth", order=order, growth="scales", growth_value=float(len(scales)),
        positions=generator.transformer.sequence.length, tokens=batch * 2 * tokenizer.config.length,
    )  # fmt: skip
    assert DTYPES["float32"] == tokenizer.quant_conv.weight.dtype


@devices
@pytest.mark.parametrize("side", [32, 64, 96, 128])
def test_growth_of_encoding_with_the_image_size(measure, side, device):
    torch.manual_seed(0)
    tokenizer = imagefolder.load_tokenizer("mini-MSVR3P2-256", device=device, image_size=side)
    images = torch.rand(16, 3, side, side, device=device) * 2 - 1
    measure(
        lambda: tokenizer.encode(images), "encode", 16, device, "float32", 16 * encode_flops(tokenizer),
        model="mini-MSVR3P2-256", group="growth", growth="image size", growth_value=float(side),
        tokens=16 * 2 * tokenizer.config.length,
    )  # fmt: skip
    assert tokenizer.config.image_size == side
