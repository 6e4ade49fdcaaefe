"""What is said of a training's losses along the band of the reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from reference_curves import STEPS, curve, identity

from leaderboard.bands import Band, BandWatch
from leaderboard.reference_files import Curves, SeedCurve, thinned


def simulated(seeds: int = 5) -> Curves:
    kept = {seed: SeedCurve(f"m-{seed}", thinned(curve(seed), STEPS, Path())[1]) for seed in range(seeds)}
    return Curves(identity(), STEPS, 20, kept)


def told(band: Band, points: list[dict[str, float]], clock: Callable[[], float] = lambda: 0.0) -> list[tuple[int, str]]:
    watch, lines = BandWatch(band, clock), []
    for point in points:
        values = {name: value for name, value in point.items() if name != "step"}
        if line := watch.add(int(point["step"]), values):
            lines.append((int(point["step"]), line))
    return lines


def test_an_intact_training_is_told_to_be_inside_early_and_once():
    lines = told(Band(simulated()), curve(7))
    assert len(lines) == 1
    step, line = lines[0]
    assert step <= STEPS / 8 + 20
    assert line.startswith("until step 40, losses in the reference's band of 5 seeds: reconstruction ")
    assert "semantic" in line


@pytest.mark.parametrize("seeds", [3, 5])
def test_another_seed_is_rarely_told_to_be_outside(seeds):
    band = Band(simulated(seeds))
    outside = [bool([line for _, line in told(band, curve(seed)) if "OUTSIDE" in line]) for seed in range(100, 160)]
    assert sum(outside) <= 3


@pytest.mark.parametrize("factor", [0.3, 3.0])
def test_a_broken_training_is_told_at_the_first_comparison(factor):
    (first, *_) = told(Band(simulated()), curve(7, factor))
    assert first[0] <= STEPS / 8 + 20
    assert "OUTSIDE the reference's band of 5 seeds: reconstruction" in first[1]
    assert "semantic" not in first[1]
    assert "settings and data are the reference's" in first[1]


def test_a_training_that_breaks_later_and_recovers_is_told_both_times():
    points = [
        {**point, "reconstruction": point["reconstruction"] * (4 if 150 < point["step"] <= 280 else 1)}
        for point in curve(7)
    ]
    (_, first), (left, second), (back, third) = told(Band(simulated()), points)
    assert first.startswith("until step 40, losses in")
    assert second.startswith("since step ")
    assert "OUTSIDE" in second
    assert third.startswith("since step ")
    assert "losses in the reference's band" in third
    assert 150 < left < back


def test_a_slow_training_is_told_before_an_eighth_of_it_is_done():
    times = iter(range(0, 10_000, 25))
    (step, _), *_ = told(Band(simulated()), curve(7), lambda: float(next(times)))
    assert step < STEPS / 8


def test_a_resumed_training_is_compared_from_there_on():
    (step, line), *_ = told(Band(simulated()), curve(7, 3.0)[9:])
    assert step > 200
    assert "OUTSIDE" in line
