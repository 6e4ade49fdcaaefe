"""Rounds of a benchmark, repeated until they agree."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from pytest_benchmark.stats import Stats

from leaderboard.speed_record import STEADY

MOST_ATTEMPTS = 3  # at rounds whose quartiles lie close together


def repeat_until_steady(seconds: list[float], timed: Callable[[], Any]) -> int:
    """Time as many rounds again, `MOST_ATTEMPTS` times at most, while the quartiles of `seconds` lie too far apart.

    The rounds of the steadiest attempt replace the content of `seconds`. Returns the number of attempts.
    """
    attempts = 1
    while spread_of(seconds) > STEADY and attempts < MOST_ATTEMPTS:
        again = []
        for _ in seconds:
            clock = time.perf_counter()
            timed()
            again.append(time.perf_counter() - clock)
        seconds[:] = min(seconds[:], again, key=spread_of)
        attempts += 1
    return attempts


def spread_of(seconds: list[float]) -> float:
    """Distance of the quartiles as a share of the median, as the benchmark's file has them."""
    stats = Stats()
    stats.data.extend(seconds)
    return stats.iqr / stats.median
