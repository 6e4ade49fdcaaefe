"""The repair of torchvision beside a CPU-only torch, which happens only after that failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MODULE = Path(__file__).parents[1] / "imagefolder" / "_torchvision.py"

# What a wheel linked against CUDA does beside a CPU build of torch: half of the package is imported, then this
NEEDS_OPERATORS = """
import torch
import torchvision.part
for name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, name):
        raise RuntimeError(f"operator torchvision::{name} does not exist")
"""
PROBE = """
import importlib.util, torch
spec = importlib.util.spec_from_file_location("repair", {module!r})
repair = importlib.util.module_from_spec(spec)
spec.loader.exec_module(repair)
import torchvision
print(torchvision.part.count(), hasattr(torch.ops.torchvision, "nms"), repair._library is not None)
"""


def run(folder: Path, source: str) -> subprocess.CompletedProcess[str]:
    """Execute the repairing module in a process that finds a torchvision with this source first on its path."""
    package = folder / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(source)
    (package / "part.py").write_text(
        "import os\n"
        "os.environ['IMPORTS'] = str(int(os.environ.get('IMPORTS', 0)) + 1)\n"
        "def count(): return os.environ['IMPORTS']\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(folder), "IMPORTS": "0"}
    code = PROBE.format(module=str(MODULE))
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_missing_operators_are_declared_and_torchvision_is_imported_again(tmp_path: Path) -> None:
    result = run(tmp_path, NEEDS_OPERATORS)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["2", "True", "True"]  # its modules were imported again


def test_working_torchvision_is_left_alone(tmp_path: Path) -> None:
    result = run(tmp_path, "import torchvision.part")
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["1", "False", "False"]


@pytest.mark.parametrize("error", ["RuntimeError('CUDA driver is too old')", "ImportError('libjpeg is missing')"])
def test_other_failures_propagate(tmp_path: Path, error: str) -> None:
    result = run(tmp_path, f"print('imported')\nraise {error}")
    assert result.returncode == 1
    assert result.stdout.split() == ["imported"]  # and not tried again
    name, message = error[:-2].split("('")
    assert result.stderr.rstrip().endswith(f"{name}: {message}")
