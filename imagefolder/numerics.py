"""Full-precision float32, where results must be the same on every device; seeds; and tensors that are not finite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# torch 2.9 and later have a switch per kind of operation; once one is set, reading the older switches is an error
_SWITCHES: list[Any] = [torch.backends.cuda.matmul]
_SWITCHES += [getattr(torch.backends.cudnn, kind, None) for kind in ("conv", "rnn")]
_PER_KIND = all(hasattr(switch, "fp32_precision") for switch in _SWITCHES)


@contextmanager
def without_tf32(device: torch.device) -> Iterator[None]:
    """Run convolutions and matrix products of float32 tensors in full precision.

    By default, torch runs convolutions on a GPU in TF32, which keeps 10 of float32's 23 bits: the nearest code of some
    positions then differs from that on a CPU. A backward pass outside of the context is not covered.
    """
    if device.type != "cuda":
        yield
    elif _PER_KIND:
        before = [switch.fp32_precision for switch in _SWITCHES]
        _set_precisions(["ieee"] * len(_SWITCHES))
        try:
            yield
        finally:
            _set_precisions(before)
    else:
        cudnn, precision = torch.backends.cudnn, torch.get_float32_matmul_precision()
        kept = {"enabled": cudnn.enabled, "benchmark": cudnn.benchmark, "deterministic": cudnn.deterministic}
        torch.set_float32_matmul_precision("highest")
        try:
            with cudnn.flags(**kept, allow_tf32=False):
                yield
        finally:
            torch.set_float32_matmul_precision(precision)


def _set_precisions(values: list[str]) -> None:
    for switch, value in zip(_SWITCHES, values, strict=True):
        switch.fp32_precision = value


@contextmanager
def float32_only(device: torch.device) -> Iterator[None]:
    """Neither autocast nor TF32 on a device."""
    kind = "cpu" if device.type == "meta" else device.type  # the meta device has no autocast
    with torch.autocast(kind, enabled=False), without_tf32(device):
        yield


def any_seed(seed: int) -> int:
    """A seed of any size and sign, mapped to one that torch accepts; seeds in 0..2^63-1 are unchanged."""
    return seed % 2**63


def not_finite(values: Any, name: str = "") -> list[str]:
    """Names of the tensors that hold NaN or infinity, in any nesting of mappings and sequences."""
    if isinstance(values, Tensor):
        if not (values.is_floating_point() or values.is_complex()):
            return []
        values = values.float() if values.element_size() == 1 else values  # torch cannot check float8
        return [] if bool(torch.isfinite(values).all()) else [name]
    if isinstance(values, Mapping):
        return [bad for key, value in values.items() for bad in not_finite(value, f"{name}.{key}".lstrip("."))]
    if isinstance(values, list | tuple):
        return [bad for i, value in enumerate(values) for bad in not_finite(value, f"{name}[{i}]")]
    return []
