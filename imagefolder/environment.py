"""Where a number comes from: code, packages and machine; and how much memory a piece of work took."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch import nn

PACKAGES = (
    "accelerate",
    "clean-fid",
    "lpips",
    "numpy",
    "safetensors",
    "scikit-image",
    "scikit-learn",
    "scipy",
    "timm",
    "torch",
    "torch-fidelity",
    "torchvision",
)


DEFAULT_THREADS = torch.get_num_threads()
"""What torch uses unless told otherwise: all cores, or OMP_NUM_THREADS"""


def git_state() -> tuple[str | None, bool | None]:
    """Commit of the source tree and whether it has uncommitted changes; (None, None) outside its own checkout."""
    root = Path(__file__).resolve().parent.parent
    # GIT_DIR and similar variables may point to another repository
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None, None  # unpacked or installed inside another repository
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def describe() -> dict[str, Any]:
    """Commit, versions and hardware: fields of a record's `run`."""
    commit, dirty = git_state()
    return {
        "git_commit": commit,
        "git_dirty": dirty,
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(_total_memory() / 2**30, 1),
        **hardware(),
    }


def hardware() -> dict[str, str | None]:
    """Names of the processor and of the GPU: "cpu" and "gpu" (None without one)."""
    return {"cpu": _cpu_name(), "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None}


def reset_peak_memory() -> None:
    """Restart the measurement of peak memory, if the system can (Linux, CUDA)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):  # otherwise the peak is that of the whole process
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mib() -> float:
    """Peak memory since the reset in MiB: allocated on the GPU if there is one, else the resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def use_threads(number: int) -> None:
    """Set the number of threads of torch and of the libraries below numpy and scipy: rounding depends on it."""
    torch.set_num_threads(number)
    threadpool_limits(number)


def tune_allocator() -> bool:
    """Have the C library keep large blocks, and torch put its own on large pages; False if the library cannot.

    glibc maps blocks above 32 MB afresh every time, and gives the end of its heap back: the system then zeroes the same
    pages again and again, which took a tenth of the time of large batches, and 38% of that of a convolutional
    extractor's. On pages of 2 MB instead of 4 KB, encoding at the released size took a tenth to a fifth less time.
    Commands call this before the first tensor; a library should not.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it when it allocates for the first time
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    trim_threshold, mmap_threshold = -1, -3  # names of mallopt(3)
    return bool(mallopt(mmap_threshold, 2**30) and mallopt(trim_threshold, 2**31 - 1))


def matmul_peak(device: torch.device | str, dtype: torch.dtype, seconds: float = 0.4) -> float:
    """FLOP/s of plain matrix products on this machine: the best over growing square matrices, each timed a few times.

    Fractions of the peak refer to this. The size grows until a product takes `seconds` / 8. Values are random: a GPU
    needs less power for equal ones, and then runs at a higher clock than a model lets it.
    """
    device = torch.device(device)
    generator = torch.Generator(device).manual_seed(0)
    size, best = 256, 0.0
    while True:
        a, b = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
        elapsed = min(_timed(lambda a=a, b=b: a @ b, device) for _ in range(4))
        best = max(best, 2 * size**3 / elapsed)
        # One small product is not reliable: on a busy machine it may wait longer than it computes
        if (elapsed > seconds / 8 and (size >= 1024 or elapsed > seconds)) or size >= 16384:
            return best
        size *= 2


@functools.cache
def fast_dtype(device: torch.device | str) -> torch.dtype:
    """bfloat16 if its matrix products are measured at least 1.5 times as fast as those of float32, else float32.

    Recent GPUs and CPUs with AMX are several times as fast; other CPUs emulate it, hundreds of times slower than
    float32.
    """
    device = torch.device(device)
    full, half = (torch.ones(256, 256, device=device).to(dtype) for dtype in (torch.float32, torch.bfloat16))
    times = [(_timed(lambda: full @ full, device), _timed(lambda: half @ half, device)) for _ in range(10)]
    fastest = [min(each) for each in zip(*times, strict=True)]  # in turn, so that other work on the machine slows both
    return torch.bfloat16 if fastest[1] * 1.5 < fastest[0] else torch.float32


def dtype_for(layer: nn.Module, shape: tuple[int, int], device: torch.device | str) -> torch.dtype:
    """bfloat16 if the device is fast at it and `layer` is measured to be at least 1.2 times as fast, else float32.

    Small layers spend more on conversions and launches than they gain.

    Args:
        layer: a typical one of a model.
        shape: of its input for one image, which it is timed with.
    """
    if fast_dtype(device) == torch.float32:
        return torch.float32
    device, runs = torch.device(device), []
    for dtype in (torch.float32, torch.bfloat16):
        copied, x = deepcopy(layer).to(device, dtype), torch.ones(1, *shape, device=device, dtype=dtype)
        runs.append(partial(copied, x))
    with torch.no_grad():
        times = [[_timed(run, device) for run in runs] for _ in range(10)]
    full, half = (min(each) for each in zip(*times, strict=True))
    return torch.bfloat16 if half * 1.2 < full else torch.float32


def _timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, including the work queued on the device."""
    synchronize(device)
    clock = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - clock


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def _total_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0
