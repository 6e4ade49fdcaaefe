"""GELU with the hyperbolic tangent in float32 on a CPU is torch's, to rounding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import imagefolder.fused as fused


@pytest.fixture
def x() -> Tensor:
    return torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-1e6, -60.0, -0.0, 60.0, 1e6])])


def through(x: Tensor) -> Tensor:
    return fused.through(nn.Identity(), x, gelu="tanh")


def test_values_and_gradients(x: Tensor) -> None:
    exact = x.double().requires_grad_()
    wanted = F.gelu(exact, approximate="tanh")
    weight = torch.linspace(-1, 1, len(x))
    wanted.backward(weight.double())
    x.requires_grad_()
    found = through(x)
    found.backward(weight)
    assert "TanhGelu" in type(found.grad_fn).__name__
    torch.testing.assert_close(found, wanted.float(), rtol=1e-5, atol=1e-6)
    assert x.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(x.grad, exact.grad.float(), rtol=1e-5, atol=5e-6)
    with torch.inference_mode():
        assert torch.equal(through(x.detach()), found)


def test_torchs_own_in_plain_other_precisions_and_compiled_code(x: Tensor) -> None:
    with fused.plain():
        assert torch.equal(through(x), F.gelu(x, approximate="tanh"))
    for other in (x.double(), x.bfloat16()):
        assert torch.equal(through(other), F.gelu(other, approximate="tanh"))
    program = torch.export.export(Through(), (x,))
    assert "gelu" in str(program.graph)
    assert "sigmoid" not in str(program.graph)


class Through(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return through(x)
