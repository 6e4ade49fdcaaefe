"""Float32 that is float32, where results must be the same on every device."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# torch 2.9 and later have a second switch, which would overrule `allow_tf32`
_IEEE = (
    {"fp32_precision": "ieee"} if "fp32_precision" in inspect.signature(torch.backends.cudnn.flags).parameters else {}
)


@contextmanager
def without_tf32(device: torch.device) -> Iterator[None]:
    """Convolutions and matrix products of float32 tensors in full precision.

    By default, torch runs convolutions on a GPU in TF32, which keeps 10 of float32's 23 bits: enough for the nearest
    code of some positions to be another one than on a CPU. Operations of a backward pass that runs outside are not
    covered.
    """
    if device.type != "cuda":
        yield
        return
    cudnn, precision = torch.backends.cudnn, torch.get_float32_matmul_precision()
    kept = {"enabled": cudnn.enabled, "benchmark": cudnn.benchmark, "deterministic": cudnn.deterministic}
    torch.set_float32_matmul_precision("highest")
    try:
        with cudnn.flags(**kept, allow_tf32=False, **_IEEE):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


@contextmanager
def float32_only(device: torch.device) -> Iterator[None]:
    """Neither autocast nor TF32 on a device."""
    kind = "cpu" if device.type == "meta" else device.type  # the meta device knows no autocast
    with torch.autocast(kind, enabled=False), without_tf32(device):
        yield
