"""CUDA graphs: all kernels of a function launched at once.

A batch of samples is thousands of small kernels; unless it is large, they take longer to launch than to run.
"""

from __future__ import annotations

import itertools
import threading
import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from imagefolder.errors import reason

Tensors = tuple[Tensor, ...]


class _Graph:
    """A function captured for inputs of these shapes."""

    def __init__(self, function: Callable[..., Tensors], inputs: Tensors) -> None:
        device = inputs[0].device
        self.inputs, self.graph = [tensor.clone() for tensor in inputs], torch.cuda.CUDAGraph()
        # torch's own stream for captures is on the GPU of the first one; other threads may use this GPU meanwhile
        options = {"stream": torch.cuda.Stream(device), "capture_error_mode": "thread_local"}
        with torch.cuda.device(device), torch.cuda.graph(self.graph, **options):
            self.outputs = function(*self.inputs)

    def __call__(self, inputs: Tensors) -> Tensors:
        for held, given in zip(self.inputs, inputs, strict=True):
            held.copy_(given)
        self.graph.replay()
        return tuple(tensor.clone() for tensor in self.outputs)  # the next replay overwrites them


@dataclass
class Calls:
    """Those of one owner: keys of the latest one and of the graph, and keys that cannot be captured."""

    graph: _Graph | None = None
    captured: Hashable = None
    latest: Hashable = None
    refused: set[Hashable] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self, key: Hashable) -> Literal["replay", "capture", "launch"]:
        """What to do with a call of this key. A graph of another one is freed: its memory is needed."""
        again, self.latest = self.latest == key, key
        if self.graph is not None and self.captured == key:
            return "replay"
        self.graph = self.captured = None
        return "capture" if again and key not in self.refused else "launch"

    def capture(self, key: Hashable, function: Callable[..., Tensors], inputs: Tensors) -> str:
        """Capture a graph; why that is not possible, "" if it is."""
        stream = torch.cuda.current_stream(inputs[0].device)
        try:
            self.graph, self.captured = _Graph(function, inputs), key
        except RuntimeError as error:
            self.refused.add(key)
            torch.cuda.set_stream(stream)  # a failed capture may end on its own
            return reason(error)
        return ""


calls_of: WeakKeyDictionary[nn.Module, Calls] = WeakKeyDictionary()


def replayed(owner: nn.Module, function: Callable[..., Tensors], inputs: Tensors, settings: Hashable) -> Tensors:
    """`function(*inputs)`; on a GPU, the second such call in a row captures a graph, which it and later ones replay.

    The graph is held, and with it the memory of the function's intermediate results, until the owner's next call with
    other settings or shapes, or `release`. Threads take turns.

    Args:
        owner: the model whose weights the function reads. They may change in place; others are captured anew.
        function: of tensors to tensors, all on the GPU of the first one. It neither waits for the GPU nor depends on
            anything but its inputs, the weights, `settings`, and torch's own settings at the time of the capture.
        settings: what else the function depends on.

    Warns:
        UserWarning: the function cannot be captured (for example for lack of memory); it is then called each time.
    """
    if inputs[0].device.type != "cuda" or torch.is_autocast_enabled("cuda"):
        return function(*inputs)
    weights = itertools.chain(owner.parameters(), owner.buffers())
    key = (
        settings,
        owner.training,
        torch.is_inference_mode_enabled(),
        tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in inputs),
        tuple(weight.data_ptr() for weight in weights),
    )
    calls = calls_of.setdefault(owner, Calls())
    with calls.lock:
        what = calls.next(key)
        problem = calls.capture(key, function, inputs) if what == "capture" else ""
        if calls.graph is not None:
            return calls.graph(inputs)
    if problem:  # told here, where nothing holds the memory of the attempt any more
        warnings.warn(f"no CUDA graph, kernels are launched one by one: {problem}", stacklevel=2)
    return function(*inputs)


def release(owner: nn.Module) -> None:
    """Free the graph of a model and its memory."""
    calls_of.pop(owner, None)
