"""Float32 has full precision on a GPU, and earlier settings are restored."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import imagefolder
from imagefolder.numerics import float32_only, without_tf32

HAS_SWITCHES = hasattr(torch.backends.cuda.matmul, "fp32_precision")
CPU, GPU = torch.device("cpu"), torch.device("cuda")
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICES = [pytest.param(CPU, id="cpu"), pytest.param(GPU, id="cuda", marks=gpu)]


def legacy(name: str) -> None:
    torch.set_float32_matmul_precision(name)


def per_kind(value: str) -> None:
    for switch in (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn):
        switch.fp32_precision = value


def now() -> list[str]:
    if not HAS_SWITCHES:
        return [torch.get_float32_matmul_precision(), str(torch.backends.cudnn.allow_tf32)]
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)
    return [switch.fp32_precision for switch in switches]


@pytest.mark.parametrize(
    ("setting", "value"), [(None, ""), (legacy, "high"), (legacy, "highest"), (per_kind, "tf32"), (per_kind, "ieee")]
)
def test_settings_are_restored_even_after_an_error(setting: Callable[[str], None] | None, value: str) -> None:
    """Whichever way they were set. Each in its own process, as torch cannot switch back from one way to the other."""
    if setting is per_kind and not HAS_SWITCHES:
        pytest.skip("this torch has only one switch")
    lines = "" if setting is None else f"tests.{setting.__name__}({value!r})"
    script = f"""
import contextlib, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch, test_numerics as tests
from imagefolder.numerics import without_tf32
{lines}
before, inside = tests.now(), []
for _ in range(2):
    with contextlib.suppress(ZeroDivisionError), without_tf32(torch.device("cuda")), without_tf32(torch.device("cuda")):
        inside.append(tests.now())
        1 / 0
assert tests.now() == before, (tests.now(), before)
assert all(value in ("ieee", "highest", "False") for found in inside for value in found), inside
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_is_off_inside_and_restored_afterwards(device: torch.device) -> None:
    a = torch.randn(4, 4, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        with float32_only(device):
            assert (a @ a).dtype == torch.float32
        assert (a @ a).dtype == torch.bfloat16


def test_the_meta_device_is_supported() -> None:
    with float32_only(torch.device("meta")):
        assert torch.zeros(2, device="meta").sum().shape == ()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_convolution_on_the_gpu_equals_that_on_the_cpu() -> None:
    """By default it does not: TF32 is off by a thousandth."""
    torch.manual_seed(0)
    x, weight = torch.randn(8, 64, 64, 64), torch.randn(64, 64, 3, 3)  # large enough for cuDNN to choose TF32
    expected = F.conv2d(x.double(), weight.double(), padding=1)

    def error() -> float:
        found = F.conv2d(x.cuda(), weight.cuda(), padding=1).cpu().double()
        return float((found - expected).abs().max() / expected.std())

    with without_tf32(GPU):
        exact = error()
    assert exact < 2e-5
    if torch.cuda.get_device_capability() >= (8, 0):
        assert error() > 10 * exact


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["MSVR10P2-4096", "MSBR10P2-4096", "VQ-4096"])
def test_tokens_on_the_gpu_equal_those_on_the_cpu(name: str) -> None:
    torch.manual_seed(0)
    tokenizer = imagefolder.load_tokenizer(name, backbone="vit_small_patch14_dinov2.lvd142m")
    for parameter in tokenizer.quantizer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    images = torch.rand(4, 3, 256, 256) * 2 - 1
    tokens = tokenizer.encode(images)
    assert (tokenizer.cuda().encode(images.cuda()).cpu() == tokens).float().mean() > 0.999


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_samples_on_the_gpu_decode_from_their_tokens() -> None:
    """Even with codes as large as those of trained models, whose maps TF32 would change."""
    torch.manual_seed(0)
    tokenizer = imagefolder.load_tokenizer("MSVR10P2-4096", depth=2, device="cuda")
    generator = imagefolder.load_generator("VAR-d17-MSVR10P2-4096", tokenizer=tokenizer, depth=2, device="cuda")
    out = generator.sample([1, 2, 3, 4])
    torch.testing.assert_close(out.images, (tokenizer.decode(out.tokens) + 1) / 2, rtol=1e-4, atol=1e-4)
