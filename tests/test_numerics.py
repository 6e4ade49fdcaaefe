"""Float32 stays float32 on a GPU too, and what was set before is set again afterwards."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F

import imagefolder
from imagefolder.numerics import float32_only, without_tf32

CPU, GPU = torch.device("cpu"), torch.device("cuda")
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICES = [pytest.param(CPU, id="cpu"), pytest.param(GPU, id="cuda", marks=gpu)]


def settings() -> dict[str, object]:
    cudnn = torch.backends.cudnn
    names = ("enabled", "benchmark", "deterministic", "allow_tf32")
    return {name: getattr(cudnn, name) for name in names} | {"matmul": torch.get_float32_matmul_precision()}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("matmul", ["highest", "high"])
def test_settings_are_restored_also_after_an_error(device: torch.device, matmul: str) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(matmul)
    try:
        outside = settings()
        with contextlib.suppress(ZeroDivisionError), float32_only(device), without_tf32(device):
            inside = settings()
            raise ZeroDivisionError
        assert settings() == outside
        if device.type == "cuda":
            assert inside == outside | {"allow_tf32": False, "matmul": "highest"}
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_is_off_inside_and_on_again_afterwards(device: torch.device) -> None:
    a = torch.randn(4, 4, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        with float32_only(device):
            assert (a @ a).dtype == torch.float32
        assert (a @ a).dtype == torch.bfloat16


def test_the_meta_device_is_no_hindrance() -> None:
    with float32_only(torch.device("meta")):
        assert torch.zeros(2, device="meta").sum().shape == ()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_convolution_on_the_gpu_is_that_of_the_cpu() -> None:
    """By default it is not: TF32 is off by a thousandth."""
    torch.manual_seed(0)
    x, weight = torch.randn(8, 64, 64, 64), torch.randn(64, 64, 3, 3)  # large enough for cuDNN to choose TF32
    expected = F.conv2d(x.double(), weight.double(), padding=1)

    def error() -> float:
        found = F.conv2d(x.cuda(), weight.cuda(), padding=1).cpu().double()
        return float((found - expected).abs().max() / expected.std())

    with without_tf32(GPU):
        exact = error()
    assert exact < 2e-5
    if torch.backends.cudnn.allow_tf32 and torch.cuda.get_device_capability() >= (8, 0):
        assert error() > 10 * exact


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["MSVR10P2-4096", "MSBR10P2-4096", "VQ-4096"])
def test_tokens_on_the_gpu_are_those_of_the_cpu(name: str) -> None:
    torch.manual_seed(0)
    tokenizer = imagefolder.load_tokenizer(name, backbone="vit_small_patch14_dinov2.lvd142m")
    for parameter in tokenizer.quantizer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    images = torch.rand(4, 3, 256, 256) * 2 - 1
    tokens = tokenizer.encode(images)
    assert (tokenizer.cuda().encode(images.cuda()).cpu() == tokens).float().mean() > 0.999
