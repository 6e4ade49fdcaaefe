"""Free memory, and batches that fit in it."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest
import torch

import imagefolder
from imagefolder import memory
from imagefolder.environment import dtype_for, fast_dtype, matmul_peak


@pytest.fixture(scope="module")
def generator():
    tokenizer = imagefolder.load_tokenizer("mini-MSVR3P2-256")
    return imagefolder.load_generator("VAR-mini-MSVR3P2-256", tokenizer=tokenizer)


def test_free_memory_is_that_of_the_system():
    assert 0 < memory.free_memory("cpu") <= psutil.virtual_memory().total


def test_batches_follow_the_free_memory(generator, monkeypatch):
    need = memory.sample_bytes(generator)
    for free, expected in ((0, 1), (need, 1), (10 * need / memory.SHARE, 10), (10**15, memory.MOST)):
        monkeypatch.setattr(memory, "free_memory", lambda device, free=free: int(free) + 1)
        assert memory.fitting_batch(generator) == expected


FRESH = """
import psutil, torch, imagefolder
from imagefolder.environment import peak_memory_mib, reset_peak_memory
tokenizer = imagefolder.load_tokenizer("mini-MSVR3P2-256")
generator = imagefolder.load_generator("VAR-mini-MSVR3P2-256", tokenizer=tokenizer)
generator.sample(torch.zeros(1, dtype=torch.int64))
reset_peak_memory()
before = psutil.Process().memory_info().rss / 2**20
generator.sample(torch.zeros(256, dtype=torch.int64))
print(peak_memory_mib() - before)
"""


def test_the_estimate_covers_the_memory_that_sampling_uses(generator):
    # In a separate process: here, sampling would reuse freed memory, which the measurement cannot see
    result = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, check=True, timeout=120)
    used, estimate = float(result.stdout), 256 * memory.sample_bytes(generator) / 2**20
    assert 10 < used < estimate < 8 * used  # an upper estimate, but not far off


def test_the_peak_is_a_plausible_rate():
    peak = matmul_peak("cpu", torch.float32, seconds=0.05)
    assert 1e8 < peak < 1e15


def test_the_automatic_dtype_follows_the_layers_of_the_model():
    # Of small layers, either may be a little faster beside other work
    assert dtype_for(torch.nn.Linear(8, 8), (4, 8), "cpu") in (torch.float32, fast_dtype("cpu"))
    assert dtype_for(torch.nn.Linear(1024, 4096), (256, 1024), "cpu") == fast_dtype("cpu")


def test_the_automatic_dtype_is_supported_and_invalid_ones_are_refused(generator):
    tokenizer = imagefolder.load_tokenizer("mini-MSVR3P2-256", dtype="auto")
    assert tokenizer.quant_conv.weight.dtype in (torch.float32, fast_dtype("cpu"))
    assert tokenizer.quantizer.branches[0].codebook.weight.dtype == torch.float32
    for wrong in ("fast", torch.int64):
        with pytest.raises(imagefolder.InputError, match="dtype must be"):
            imagefolder.load_tokenizer("mini-MSVR3P2-256", dtype=wrong)


def test_the_quantizer_keeps_its_float32_weights():
    states = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        tokenizer = imagefolder.load_tokenizer("mini-MSVR3P2-256", dtype=dtype)
        assert tokenizer.decoder.to_pixels.weight.dtype == dtype
        states.append(tokenizer.quantizer.state_dict())
    for name, value in states[0].items():
        assert torch.equal(states[1][name], value), name


def test_bfloat16_models_sample_and_reconstruct():
    tokenizer = imagefolder.load_tokenizer("mini-MSVR3P2-256", dtype=torch.bfloat16)
    generator = imagefolder.load_generator("VAR-mini-MSVR3P2-256", tokenizer=tokenizer, dtype=torch.bfloat16)
    out = generator.sample(torch.tensor([1, 2]))
    assert out.images.dtype == torch.float32
    assert generator(torch.tensor([1, 2]), out.tokens).dtype == torch.float32
    assert tokenizer.reconstruct(torch.rand(2, 3, 32, 32) * 2 - 1).dtype == torch.float32
