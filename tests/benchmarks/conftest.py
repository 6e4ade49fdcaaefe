"""Throughput and memory, relative to the machine's rate in a plain matrix product of the same run and dtype.

Benchmarks only run with `pytest --benchmark-only`. Cases marked `large` (released sizes at the batches of the published
comparisons) take minutes each on a CPU: `pytest --benchmark-only -m large`.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark_models import DTYPES, generator_of, scale_of, tokenizer_of
from benchmark_rounds import repeat_until_steady

from imagefolder.environment import describe, matmul_peak, peak_memory_mib, synchronize
from imagefolder.training.trial import memory_in_use
from reproductions.alone import Others

HERE = Path(__file__).parent
BUSY_CORES = 0.5  # kept by other processes; beside so much work, rounds do not get steadier
ENOUGH_SECONDS, MOST_ROUNDS = 1.0, 30  # short cases are repeated until their quartiles are meaningful
PEAK_SECONDS = 0.1  # per measurement of the peak; every case takes two


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Either benchmarks or tests; on a CPU, large benchmarks only by their marker."""
    wanted = bool(config.getoption("benchmark_only", default=False))
    large = "large" in config.getoption("markexpr") or torch.cuda.is_available()

    def runs(item: pytest.Item) -> bool:
        benchmark = HERE in item.path.parents
        return benchmark == wanted and (not benchmark or large or item.get_closest_marker("large") is None)

    left_out = [item for item in items if not runs(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if runs(item)]


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["imagefolder"] = describe()


@pytest.fixture(autouse=True, scope="module")
def models_are_freed() -> Any:
    """Free the models of each file: they would count in the memory figures of the next one."""
    yield
    tokenizer_of.cache_clear()
    generator_of.cache_clear()
    gc.collect()


@pytest.fixture
def measure(benchmark: Any) -> Callable[..., Any]:
    """Run and record one case; `leaderboard.speed_record.SpeedRecord` describes the keys of `extra_info`."""

    def run(
        function: Callable[[], Any],
        stage: str,
        images: int,
        device: str = "cpu",
        dtype: str = "float32",
        flops: float = 0.0,
        rounds: int = 3,
        **about: Any,
    ) -> Any:
        def timed() -> Any:
            result = function()
            synchronize(torch.device(device))
            return result

        benchmark.extra_info |= {
            "stage": stage,
            "group": "stages",
            "model": "",
            "scale": scale_of(about.get("model", "")),
            "device": device,
            "dtype": dtype,
            "threads": torch.get_num_threads(),
            "images": images,
            "batch": images,
            "tokens": 0,
            "flops": float(flops),
            "order": "",
            "positions": 0,
            "growth": "",
            "growth_value": 0.0,
            **about,
        }
        peak_before = matmul_peak(device, DTYPES[dtype], PEAK_SECONDS)
        before = memory_in_use() / 2**20
        clock = time.perf_counter()
        timed()  # warm-up, and an estimate of the duration
        many = max(rounds, min(int(ENOUGH_SECONDS / (time.perf_counter() - clock)), MOST_ROUNDS))
        with Others() as others:
            result = benchmark.pedantic(timed, rounds=many, iterations=1)
        if (others.cores or 0.0) < BUSY_CORES:
            benchmark.extra_info["attempts"] = repeat_until_steady(benchmark.stats.stats.data, timed)
        peak = peak_memory_mib()
        benchmark.extra_info |= {"peak_memory_mib": peak, "memory_growth_mib": max(peak - before, 0.0)}
        # Measured with each case, not once per run: clock rates of shared machines change by a third within minutes
        benchmark.extra_info["peak_flops"] = max(peak_before, matmul_peak(device, DTYPES[dtype], PEAK_SECONDS))
        return result

    return run
