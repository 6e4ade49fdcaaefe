"""Statistics over seeds: paired t-tests, their correction, the seeds that one needs; prediction intervals; noise.

scipy is imported by the functions: trainings use the intervals, and start faster without `scipy.stats`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.05  # of any false decision among all tests of a family, and outside a test's confidence interval
MIN_SEEDS = 3  # with two, all rests on the normal distribution: prediction intervals are 90 standard deviations wide
PREDICTED = 0.99  # of further values lie in a prediction interval
POWER = 0.8  # probability of a decision that `seeds_needed` asks for
MOST_SEEDS = 100  # that `seeds_needed` considers
ROUNDING = 1e-12  # of the largest value: differences that vary less differ by floating-point rounding only


@dataclass(frozen=True)
class Test:
    """A two-sided paired t-test of one difference over seeds.

    Attributes:
        seeds: number of pairs.
        mean: of the differences.
        deviation: their standard deviation (ddof=1); NaN for one seed.
        low, high: confidence interval of the difference, at 1 - `LEVEL` and not corrected for other tests.
        p: not corrected either.

    `low`, `high` and `p` are NaN for one seed and for differences that are all equal: their spread is not known.
    """

    __test__ = False  # not for pytest

    seeds: int
    mean: float
    deviation: float
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan

    @property
    def has_spread(self) -> bool:
        """Whether the differences vary, so that the test exists."""
        return not math.isnan(self.p)


def paired_test(values: Sequence[tuple[float, float]]) -> Test:
    """The test of first minus second for at least one pair of values, one per seed."""
    from scipy import stats

    first, second = np.array(values, dtype=np.float64).T
    differences = first - second
    n, mean = len(values), float(differences.mean())
    deviation = float(differences.std(ddof=1)) if n > 1 else math.nan
    if n < 2 or deviation <= ROUNDING * float(np.abs(values).max()):
        return Test(n, mean, deviation)
    result = stats.ttest_rel(first, second)
    interval = result.confidence_interval(1 - LEVEL)
    return Test(n, mean, deviation, float(interval.low), float(interval.high), float(result.pvalue))


def holm(p: np.ndarray | Sequence[float]) -> np.ndarray:
    """The p-values (..., m) of families of m tests, corrected (Holm, Scand. J. Statist. 6, 1979), in the same order.

    Rejecting where a corrected p is at most `LEVEL` makes any false rejection in a family at most that likely, however
    the tests depend on each other.
    """
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p, axis=-1)
    factors = np.arange(p.shape[-1], 0, -1)
    ordered = np.maximum.accumulate(np.take_along_axis(p, order, axis=-1) * factors, axis=-1)
    corrected = np.empty_like(p)
    np.put_along_axis(corrected, order, np.minimum(ordered, 1), axis=-1)
    return corrected


def seeds_needed(test: Test, level: float) -> int | None:
    """How many seeds a test at `level` needs to reject with probability `POWER`, if mean and spread are the true ones.

    More than it has; None if that takes more than `MOST_SEEDS`, or if the spread is not known.
    """
    from scipy import stats

    if not test.has_spread:
        return None
    n = np.arange(max(test.seeds + 1, MIN_SEEDS), MOST_SEEDS + 1)
    # The other side of the two-sided test would reject with the wrong sign; it is left out
    power = stats.nct.sf(stats.t.isf(level / 2, n - 1), n - 1, abs(test.mean) / test.deviation * np.sqrt(n))
    enough = n[power >= POWER]
    return int(enough[0]) if len(enough) else None


def prediction_interval(values: Sequence[float], number: int = 1, level: float = PREDICTED) -> tuple[float, float]:
    """Where the mean of `number` further values of the same kind lies with a probability of `level`.

    mean ± t s √(1/number + 1/n), for n >= 2 values that are normally distributed; the t is Student's with n - 1 degrees
    of freedom.
    """
    from scipy.special import stdtrit

    n, mean = len(values), statistics.fmean(values)
    half = float(stdtrit(n - 1, (1 + level) / 2)) * statistics.stdev(values) * math.sqrt(1 / number + 1 / n)
    return mean - half, mean + half


def noise_parts(values: Sequence[float], sampling: Sequence[float]) -> tuple[float, float]:
    """Standard deviations from training and from sampling that together make the spread of a value over seeds.

    Each seed's value is of one training and one draw of samples, so its variance is the sum of both. Sampling's is the
    mean over the models of the variance over several draws of one model; the rest is training's, or 0 if none is left.

    Args:
        values: of at least two seeds.
        sampling: the standard deviation over several draws, for each of them.
    """
    drawn = float(np.mean(np.square(sampling)))
    return math.sqrt(max(0.0, float(np.var(values, ddof=1)) - drawn)), math.sqrt(drawn)
