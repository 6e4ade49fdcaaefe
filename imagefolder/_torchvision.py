"""Make `import torchvision` work beside a CPU-only torch.

Linux wheels of torchvision link the CUDA libraries of torch. Beside a CPU build their compiled operators do not load,
and torchvision then fails while registering a shape function for `torchvision::nms`. Declaring the two missing
operators and executing it again repairs transforms, models and data sets (not detection operators or image decoding).
This happens after that failure only: declaring them beside a working torchvision aborts the process.

Nothing is imported here: the repair waits in `sys.meta_path` for the first import of torchvision.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_library: Any = None  # a torch.library.Library; it must stay alive, as the operators vanish with it


class _Finder(MetaPathFinder):
    """Finds torchvision where Python does, and has it loaded by `_Loader`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "torchvision":
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """Executes torchvision, a second time after the missing-operator failure; other failures propagate."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader
        try:
            self.loader.exec_module(module)
        except RuntimeError as error:
            if "torchvision::nms" not in str(error):
                raise
            _declare_operators()
            for name in [name for name in sys.modules if name.startswith("torchvision.")]:
                del sys.modules[name]
            self.loader.exec_module(module)


def _declare_operators() -> None:
    global _library
    import torch

    _library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        _library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


sys.meta_path.insert(0, _Finder())
