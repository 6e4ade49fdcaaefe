"""Files as `pytest --benchmark-only --benchmark-json FILE` writes them, without running benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CPU = "Example CPU @ 2 GHz, 2 cores"
GPU = "Example GPU 80GB"
PEAKS = {("cpu", "float32"): 1.0e11, ("cpu", "bfloat16"): 2.0e10, ("cuda", "bfloat16"): 5e14, ("cuda", "float32"): 4e13}


def benchmark(stage: str = "encode", seconds: float = 0.1, spread: float = 0.02, **about: Any) -> dict[str, Any]:
    """One entry: `seconds` per call, quartiles `spread` (relative) below and above; `about` goes to `extra_info`."""
    batch = about.get("batch", 8)
    info = {
        "stage": stage, "model": "MSVR10P2-4096", "group": "stages", "device": "cpu", "dtype": "float32",
        "batch": batch, "threads": 2, "images": batch, "tokens": batch * 572, "flops": 1e9 * batch,
        "peak_memory_mib": 1812.5, "order": "", "positions": 0, "growth": "", "growth_value": 0.0,
    } | about  # fmt: skip
    info.setdefault("peak_flops", PEAKS[info["device"], info["dtype"]])
    case = "-".join(str(value) for value in info.values())
    low, high = seconds * (1 - spread), seconds * (1 + spread)
    return {
        "group": None,
        "name": f"test_{stage}[{case}]",
        "fullname": f"tests/benchmarks/test_it.py::test_{stage}[{case}]",
        "params": {"batch": batch},
        "param": case,
        "extra_info": info,
        "options": {"disable_gc": False, "timer": "perf_counter", "min_rounds": 5, "warmup": False},
        "stats": {
            "min": low * 0.99, "max": high * 1.1, "mean": seconds * 1.01, "stddev": seconds * spread, "rounds": 5,
            "median": seconds, "iqr": high - low, "q1": low, "q3": high, "iqr_outliers": 0, "stddev_outliers": 1,
            "outliers": "1;0", "ld15iqr": low, "hd15iqr": high, "ops": 1 / seconds, "total": 5 * seconds,
            "iterations": 1, "data": [low, seconds, seconds, seconds, high],
        },
    }  # fmt: skip


def document(entries: list[dict[str, Any]], **machine: Any) -> dict[str, Any]:
    """The complete file; `machine` replaces fields of the machine."""
    described = {
        "git_commit": "0123456789abcdef" * 2, "git_dirty": False, "packages": {"torch": "2.13.0", "numpy": "2.3.0"},
        "python": "3.11.7", "platform": "Linux-6.1-x86_64", "cpu": CPU, "threads": 2, "gpu": None, "memory_gib": 8.0,
    } | machine  # fmt: skip
    return {
        "machine_info": {"node": "vm", "machine": "x86_64", "system": "Linux", "imagefolder": described},
        "commit_info": {"id": "unversioned", "dirty": False, "project": "main"},
        "benchmarks": entries,
        "datetime": "2026-01-02T03:04:05.678901+00:00",
        "version": "5.3.1",
    }


def write(path: Path, entries: list[dict[str, Any]], **machine: Any) -> Path:
    path.write_text(json.dumps(document(entries, **machine), indent=4))
    return path


def folding(device: str = "cpu", speed: float = 1.0) -> list[dict[str, Any]]:
    """The four orders at two batches; `speed` divides all times."""
    entries = []
    for order, prefix, positions, seconds in (
        ("folded", "VAR-mini-MSVR3P2-256", 14, 0.020),
        ("unfolded", "VAR-mini-MSVR3P2-256-unfolded", 28, 0.031),
        ("one branch", "VAR-mini-MSVR3-256", 14, 0.019),
        ("raster", "AR-mini-VQ-256", 16, 0.065),
    ):
        tokens = 28 if "folded" in order else positions
        for batch in (1, 64):
            about = {"order": order, "positions": positions, "group": "folding", "model": prefix, "device": device}
            about |= {"scale": "mini", "tokens": tokens * batch, "flops": 5e7 * batch, "batch": batch}
            entries.append(benchmark("sample", seconds * batch**0.7 / speed, **about))
    return entries


def growing(device: str = "cpu") -> list[dict[str, Any]]:
    entries = []
    for order, factor in (("folded", 1.0), ("unfolded", 1.6)):
        about = {"group": "growth", "model": "VAR-mini-MSVR3P2-256", "order": order, "device": device}
        for batch in (1, 2, 4, 8, 16, 32, 64, 128):
            entries.append(benchmark("sample", factor * (0.015 + 0.002 * batch), batch=batch, growth="batch",
                                     growth_value=float(batch), **about))  # fmt: skip
        for scales in (2, 3, 4, 6):
            entries.append(benchmark("sample", factor * 0.02 * scales, batch=16, growth="scales",
                                     growth_value=float(scales), **about))  # fmt: skip
    for side in (32, 64, 96, 128):
        entries.append(benchmark("encode", 0.02 * (side / 32) ** 2.2, batch=16, group="growth", growth="image size",
                                 growth_value=float(side), model="mini-MSVR3P2-256", device=device))  # fmt: skip
    return entries


def stages(device: str = "cpu", dtype: str = "float32", share: float = 0.5) -> list[dict[str, Any]]:
    """Every stage of the models, at about `share` of the peak."""
    entries = []
    for index, (stage, model, gflop) in enumerate(
        (("encode", "MSVR10P2-4096", 47.0), ("decode", "MSVR10P2-4096", 49.0), ("quantize", "MSVR10P2-4096", 0.0),
         ("reconstruct", "MSVR10P2-4096", 96.0), ("teacher forcing", "VAR-d17-MSVR10P2-4096", 260.0),
         ("sample", "VAR-d17-MSVR10P2-4096", 570.0), ("sample: transformer", "VAR-d17-MSVR10P2-4096", 520.0),
         ("sample: draw", "VAR-d17-MSVR10P2-4096", 0.0), ("sample: decode", "VAR-d17-MSVR10P2-4096", 49.0),
         ("train generator", "VAR-d17-MSVR10P2-4096", 780.0), ("train tokenizer", "MSVR10P2-4096", 300.0),
         ("train tokenizer with discriminator", "MSVR10P2-4096", 420.0))
    ):  # fmt: skip
        for batch in (1, 8):
            flops = gflop * 1e9 * batch
            seconds = flops / PEAKS[device, dtype] / (share + 0.03 * index) if flops else 0.004 * batch
            about = {"model": model, "device": device, "dtype": dtype, "flops": flops, "batch": batch}
            entries.append(benchmark(stage, seconds, **about))
    if device == "cpu" and dtype == "float32":
        entries.append(benchmark("load images", 0.05, model="", batch=20, tokens=0, flops=0.0))
        entries.append(benchmark("Frechet distance", 2.1, model="2048 features", batch=5000, tokens=0, flops=0.0))
    return entries
