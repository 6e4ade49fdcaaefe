"""CUDA graphs: all kernels of a function launched at once.

A batch of samples is thousands of small kernels; unless it is large, they take longer to launch than to run.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from imagefolder.errors import reason

Tensors = tuple[Tensor, ...]


class _Graph:
    """A function captured for inputs of these shapes."""

    def __init__(self, function: Callable[..., Tensors], inputs: Tensors) -> None:
        self.inputs, self.graph = [tensor.clone() for tensor in inputs], torch.cuda.CUDAGraph()
        # Other threads may use the GPU meanwhile
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.outputs = function(*self.inputs)

    def __call__(self, inputs: Tensors) -> Tensors:
        for held, given in zip(self.inputs, inputs, strict=True):
            held.copy_(given)
        self.graph.replay()
        return tuple(tensor.clone() for tensor in self.outputs)  # the next replay overwrites them


@dataclass
class _Calls:
    """Of one owner: the keys of its latest call and of its graph, and those that could not be captured."""

    latest: Hashable = None
    captured: Hashable = None
    graph: _Graph | None = None
    refused: set[Hashable] = field(default_factory=set)


_calls: WeakKeyDictionary[nn.Module, _Calls] = WeakKeyDictionary()


def replayed(
    owner: nn.Module, function: Callable[..., Tensors], inputs: Tensors, settings: Hashable
) -> tuple[Tensor, ...]:
    """`function(*inputs)`; on a GPU, the second such call in a row captures a graph, which it and later ones replay.

    One graph per owner is held, and with it the memory of the function's intermediate results, until other calls are
    captured, or `release`.

    Args:
        owner: the model whose weights the function reads. They may change in place; others are captured anew.
        function: of tensors to tensors, all on the GPU of the first one. It neither waits for the GPU nor depends on
            anything but its inputs, the weights, `settings`, and torch's own settings at the time of the capture.
        settings: what else the function depends on.

    Warns:
        UserWarning: the function cannot be captured (for example for lack of memory); it is then called each time.
    """
    device = inputs[0].device
    if device.type != "cuda" or torch.is_autocast_enabled("cuda"):
        return function(*inputs)
    weights = itertools.chain(owner.parameters(), owner.buffers())
    key = (
        settings,
        owner.training,
        tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in inputs),
        tuple(weight.data_ptr() for weight in weights),
    )
    calls = _calls.setdefault(owner, _Calls())
    if calls.graph is not None and calls.captured == key:
        return calls.graph(inputs)
    if calls.latest != key or key in calls.refused:
        calls.latest = key
        return function(*inputs)
    calls.graph = None  # its memory is free before the next capture
    try:
        with torch.cuda.device(device):
            calls.captured, calls.graph = key, _Graph(function, inputs)
    except RuntimeError as error:
        calls.refused.add(key)
        warnings.warn(f"sampling without a CUDA graph: {reason(error)}", stacklevel=2)
        return function(*inputs)
    return calls.graph(inputs)


def release(owner: nn.Module) -> None:
    """Free the graph of a model and its memory."""
    _calls.pop(owner, None)
