"""Make `import torchvision` work beside a CPU-only torch.

Linux wheels of torchvision link the CUDA libraries of torch. Beside a CPU build their compiled operators do not load,
and torchvision then fails while registering a shape function for `torchvision::nms`. Declaring the two missing
operators and importing again repairs transforms, models and data sets (not detection operators or image decoding).
This is done after that failure only: declaring them beside a working torchvision aborts the process.
"""

from __future__ import annotations

import importlib
import sys

import torch

_library: torch.library.Library | None = None  # must stay alive: operators vanish with it


def import_torchvision() -> None:
    """Import torchvision, repairing the missing-operator failure of a CPU-only torch; other failures propagate."""
    global _library
    try:
        importlib.import_module("torchvision")
        return
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    _library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        _library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    importlib.import_module("torchvision")


import_torchvision()
