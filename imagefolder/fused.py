"""Linear layers, GELU and attention on a CPU, as they run fastest (docs/performance.md, "bfloat16 on a CPU").

Inference multiplies by weights that are packed once. Training copies the transposed operand of a weight's gradient,
which oneDNN would otherwise read at half the speed. Attention sees numbers of keys that fill its vectors, and its
backward pass is a few products. Elsewhere (float32, GPUs, compiled code, and inside `plain()`) these are torch's own
operations, except that GELU in float32 computes no hyperbolic tangent.

The operators for packed weights are private to torch: if they are missing or compute something else, they are not used.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

KEYS = 16  # torch's attention on a CPU is up to twice as fast if the number of keys is a multiple of this

FEW_ROWS = 64
BLOCK = 544  # columns whose transposition fills a cache evenly: an odd multiple of its lines of 32 values

Gelu = Literal["none", "tanh"]

# GELU with the hyperbolic tangent is x * sigmoid(SLOPE * x + CUBIC * x**3)
SLOPE = 2 * math.sqrt(2 / math.pi)
CUBIC = 0.044715 * SLOPE

_allowed = True
_packed: Any = WeakTensorKeyDictionary()  # weight -> (its state when it was packed, packed weight)


@contextmanager
def plain() -> Iterator[None]:
    """Use torch's own operations: the results that every device and precision is compared with."""
    global _allowed
    before, _allowed = _allowed, False
    try:
        yield
    finally:
        _allowed = before


def is_fused(x: Tensor) -> bool:
    """Whether linear layers of `x` are computed as described above: in bfloat16, by itself or by autocast, on a CPU."""
    if not _allowed or x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    autocast = torch.is_autocast_enabled("cpu")
    return (torch.get_autocast_dtype("cpu") if autocast else x.dtype) == torch.bfloat16 and _is_available()


def added_keys(length: int, x: Tensor) -> int:
    """By how many positions to extend a sequence of this length, of which `x` is a part, for fast attention."""
    return -length % KEYS if is_fused(x) else 0


def mask_added(length: int, added: int) -> Tensor | None:
    """For attention: bfloat16 (1, 1, 1, length + added), 0 for every key and -inf for the added ones; None: none is."""
    return additive(torch.arange(length + added) < length)[None, None, None] if added else None


def additive(mask: Tensor) -> Tensor:
    """A bool mask, True where a query attends to a key, as attention takes it fastest: bfloat16, 0 and -inf."""
    return torch.zeros(mask.shape, dtype=torch.bfloat16).masked_fill_(~mask, -torch.inf)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    """`F.scaled_dot_product_attention` of (B, heads, n, d).

    Args:
        mask: for fused computation additive, with no other values than 0 and -inf; None: every query sees every key.
        scale: of the products; None: 1 / sqrt(d).
    """
    needs_gradient = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if needs_gradient and q.dtype == k.dtype == v.dtype == torch.bfloat16 and is_fused(q):
        return _Attention.apply(q, k, v, mask, q.shape[-1] ** -0.5 if scale is None else scale)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


class _Attention(torch.autograd.Function):
    """torch's attention with a backward pass of five products per sample, which its own does at half the speed."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, logsumexp = flash(q, k, v, 0.0, False, attn_mask=mask, scale=scale)
        ctx.save_for_backward(q, k, v, out, logsumexp, mask)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, logsumexp, mask = ctx.saved_tensors
        hidden = None if mask is None else (mask != 0).view(-1, k.shape[2]).mT.contiguous()
        # Subtracting a number per query is part of the product: two more columns, as one holds too few digits
        ones = k.new_ones(*k.shape[:-1], 2)
        queries = _with_columns(q * ctx.scale, -logsumexp)
        gradients = _with_columns(gradient, -(gradient.float() * out).sum(-1))
        keys, values = torch.cat([k, ones], -1), torch.cat([v, ones], -1)
        q, k, gradient = q.contiguous(), k.contiguous(), gradient.contiguous()
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(k)
        weights = q.new_empty(q.shape[1], k.shape[2], q.shape[2])  # of one sample, (heads, keys, queries)
        errors = torch.empty_like(weights)
        for i in range(len(q)):
            torch.bmm(keys[i], queries[i].mT, out=weights).exp_()
            if hidden is not None:
                weights.masked_fill_(hidden, 0)
            torch.bmm(weights, gradient[i], out=dv[i])
            torch.bmm(values[i], gradients[i].mT, out=errors).mul_(weights)
            torch.bmm(errors, q[i], out=dk[i])
            torch.bmm(errors.mT, k[i], out=dq[i])
        return dq.mul_(ctx.scale), dk.mul_(ctx.scale), dv, None, None


def _with_columns(x: Tensor, column: Tensor) -> Tensor:
    """bfloat16 (..., d) with two columns whose sum is `column` (...) to twice the digits."""
    high = column.bfloat16()
    low = (column - high).bfloat16()
    return torch.cat([x, high[..., None], low[..., None]], -1)


def through(layer: nn.Module, x: Tensor, *, gelu: Gelu | None = None) -> Tensor:
    """A layer, followed by GELU in this approximation if given. Other modules than `nn.Linear` are called as they are;
    hooks of fused layers are not."""
    if type(layer) is nn.Linear and is_fused(x):
        return linear(x, layer.weight, layer.bias, gelu=gelu)
    y = layer(x)
    return y if gelu is None else _gelu(y, gelu)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, gelu: Gelu | None = None) -> Tensor:
    """A linear layer, followed by GELU in this approximation if given.

    Weights that change are packed again, unless they are changed behind autograd's back (`weight.data.mul_`).

    Args:
        x: (..., in).
        weight, bias: (out, in), (out,).
        gelu: as in `torch.nn.functional.gelu`.
    """
    fused, training = is_fused(x), torch.is_grad_enabled()
    # Parts of weights are new tensors each time, and would be packed each time
    packable = isinstance(weight, nn.Parameter) and not weight.is_inference()
    if fused and not training and packable and x.dtype == weight.dtype == torch.bfloat16:
        # torch computes GELU's hyperbolic tangent much more slowly than oneDNN, and its error function faster
        attribute = "gelu" if gelu == "tanh" else "none"
        y = torch.ops.mkldnn._linear_pointwise(x, _pack(weight), bias, attribute, [], gelu or "")
        return F.gelu(y) if gelu == "none" else y
    y = _Linear.apply(x, weight, bias) if fused and training else F.linear(x, weight, bias)
    return y if gelu is None else _gelu(y, gelu)


def _gelu(x: Tensor, approximate: Gelu) -> Tensor:
    own = approximate == "tanh" and x.dtype == torch.float32 and x.device.type == "cpu" and _allowed
    if own and not torch.compiler.is_compiling():
        return _TanhGelu.apply(x)
    return F.gelu(x, approximate=approximate)


class _TanhGelu(torch.autograd.Function):
    """GELU with the hyperbolic tangent, by the logistic function, which torch computes three times as fast."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gate = torch.addcmul(x.new_tensor(SLOPE), x, x, value=CUBIC).mul_(x).sigmoid_()
        ctx.save_for_backward(x, gate)
        return gate * x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x, gate = ctx.saved_tensors
        slope = torch.addcmul(x.new_tensor(SLOPE), x, x, value=3 * CUBIC).mul_(x)
        return torch.ops.aten.sigmoid_backward(gradient, gate).mul_(slope).addcmul_(gradient, gate)


class _Linear(torch.autograd.Function):
    """`F.linear` in bfloat16, under autocast or not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.dtypes = x.dtype, weight.dtype, weight.dtype if bias is None else bias.dtype
        x, weight = x.bfloat16(), weight.bfloat16()
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight, None if bias is None else bias.bfloat16())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.dtypes
        needed = ctx.needs_input_grad
        rows, inputs = gradient.flatten(0, -2), x.flatten(0, -2)
        dx = (gradient @ weight).to(of_x) if needed[0] else None
        dw = _weight_gradient(rows, inputs, of_weight) if needed[1] else None
        db = (rows.new_ones(1, len(rows)) @ rows)[0].to(of_bias) if needed[2] else None
        return dx, dw, db


def _weight_gradient(gradient: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """gradient.T @ x, (n, out) and (n, in) -> contiguous (out, in)."""
    rows, out, width = *gradient.shape, x.shape[1]
    if rows < FEW_ROWS:  # most of the work is to write the result
        return (gradient.T @ x).to(dtype)
    result = torch.empty(out, width, dtype=dtype)
    if out < width:
        transposed = gradient.T.contiguous()
        for part, columns in zip(result.split(BLOCK, 1), x.split(BLOCK, 1), strict=True):
            part.copy_(transposed @ columns)
    else:
        transposed = x.T.contiguous()
        for part, columns in zip(result.split(BLOCK), gradient.split(BLOCK, 1), strict=True):
            part.copy_((transposed @ columns).T)
    return result


def _pack(weight: Tensor) -> Tensor:
    """A packed weight, packed again when it has changed."""
    state = weight.data_ptr(), weight._version
    known = _packed.get(weight)
    if known is None or known[0] != state:
        known = _packed[weight] = state, torch.ops.mkldnn._reorder_linear_weight(weight.detach())
    return known[1]


@functools.cache
@torch.autocast("cpu", enabled=False)
def _is_available() -> bool:
    """Whether the private operators exist, and compute what they should."""
    try:
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        x = torch.linspace(-2, 2, 64).bfloat16().view(4, 16)
        weight, bias = torch.linspace(-1, 1, 512).bfloat16().view(32, 16), torch.ones(32).bfloat16()
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        found = [
            torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], ""),
            torch.ops.mkldnn._linear_pointwise(x, packed, bias, "gelu", [], "tanh"),
        ]
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    y = F.linear(x.float(), weight.float(), bias.float())
    wanted = [y, F.gelu(y, approximate="tanh")]
    return all(torch.allclose(a.float(), b, rtol=2e-2, atol=2e-2) for a, b in zip(found, wanted, strict=True))
