"""Averaged weights of a model in training."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn


class Averages:
    """Averaged weights (EMA): `module`, a copy of the model in eval mode.

    Parameters and buffers are averaged with the same decay from the first step on; integers are copied. The model's
    tensors are listed once, as listing them takes most of an update of a small model: it must be on its device already,
    and nothing may replace its buffers.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = deepcopy(model).eval()
        pairs = zip(_tensors(self.module), _tensors(model), strict=True)
        floats, others = [], []
        for pair in pairs:
            (floats if pair[0].is_floating_point() else others).append(pair)
        self._averaged, self._current = ([pair[side] for pair in floats] for side in (0, 1))
        self._copied, self._weight = others, 1.0 - decay

    @torch.no_grad()
    def update(self) -> None:
        """Average in the model's current weights."""
        torch._foreach_lerp_(self._averaged, self._current, weight=self._weight)  # pyright: ignore[reportPrivateImportUsage]
        for copy, original in self._copied:
            copy.copy_(original)


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return list(module.state_dict(keep_vars=True).values())
