"""Bootstrap intervals over images: as wide as the distances of fresh sets of images spread."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from imagefolder.data.images import DataSplits
from imagefolder.evaluation.bootstrap import frechet_interval
from imagefolder.evaluation.extractor import Extractor
from imagefolder.evaluation.metrics import frechet, needs_features
from imagefolder.evaluation.protocols import measure_reconstructions, measure_samples
from imagefolder.evaluation.results import Measurement, Result
from imagefolder.evaluation.statistics import MeanCovariance

N, WIDTH, CLASSES = 600, 24, 10


def moments(features: Tensor) -> MeanCovariance:
    values = features.double().numpy()
    return {"mu": values.mean(0), "sigma": np.cov(values, rowvar=False)}


def features(generator: torch.Generator, number: int = N, shift: float = 0.0) -> Tensor:
    """Like those of a network: positive, of several classes in turn, in some directions with little variance."""
    fixed = torch.Generator().manual_seed(9)
    centres = torch.randn(CLASSES, WIDTH, generator=fixed)
    mixing = torch.randn(WIDTH, WIDTH, generator=fixed) * torch.linspace(0.01, 0.4, WIDTH)
    noise = torch.randn(number, WIDTH, generator=generator) @ mixing
    return (centres[torch.arange(number) % CLASSES] + noise + shift).clamp(min=0)


REAL = moments(features(torch.Generator().manual_seed(7), 20_000))


def samples(generator: torch.Generator, shift: float) -> tuple[float, tuple[float, float]]:
    made = features(generator, shift=shift)
    value = frechet(moments(made), REAL)
    return value, frechet_interval(value, made, moments(made), REAL, labels=torch.arange(N) % CLASSES)


def reconstructions(generator: torch.Generator, error: float) -> tuple[float, tuple[float, float]]:
    originals = features(generator)[torch.randint(N, (N,), generator=generator)]  # of no fixed number per class
    made = 0.9 * originals + error * torch.randn(originals.shape, generator=generator)
    value = frechet(moments(made), moments(originals))
    return value, frechet_interval(value, made, moments(made), moments(originals), originals=originals)


@pytest.mark.parametrize(
    ("draw", "change"), [(samples, 0.1), (samples, 0.5), (reconstructions, 0.1), (reconstructions, 0.4)]
)
def test_interval_is_as_wide_as_the_distances_of_other_images_spread(draw, change: float) -> None:
    generator = torch.Generator().manual_seed(1)
    drawn = [draw(generator, change) for _ in range(60)]
    values = np.array([value for value, _ in drawn])
    spread, widths = values.std(ddof=1), [high - low for _, (low, high) in drawn]
    assert np.mean(widths) / 3.92 == pytest.approx(spread, rel=0.3)  # 60 values tell their spread to 9 %
    assert all(low < value < high for value, (low, high) in drawn)
    covered = sum(low <= values.mean() <= high for _, (low, high) in drawn)
    assert covered >= 52


def test_images_of_one_class_are_resampled_together() -> None:
    """A bootstrap that lets the numbers per class vary gives wider intervals than balanced samples spread."""
    made = features(torch.Generator().manual_seed(1), shift=0.5)
    balanced, free = (
        frechet_interval(5.0, made, moments(made), REAL, labels=labels) for labels in (torch.arange(N) % CLASSES, None)
    )
    assert balanced[1] - balanced[0] < 0.95 * (free[1] - free[0])
    few = torch.arange(N) // 9  # too few of each
    assert frechet_interval(5.0, made, moments(made), REAL, labels=few) == free


def test_derivatives_are_those_of_the_distance() -> None:
    """One image counted twice changes the distance by its influence, which the interval's width rests on."""
    from imagefolder.evaluation.bootstrap import _influence

    generator = torch.Generator().manual_seed(3)
    originals = features(generator, 200)
    made = 0.8 * originals + 0.3 * torch.randn(originals.shape, generator=generator)
    influence = _influence(made, moments(made), moments(originals), originals)

    def weighted(values: Tensor, weights: np.ndarray) -> MeanCovariance:
        x = values.double().numpy()
        return {"mu": weights @ x, "sigma": np.cov(x, rowvar=False, aweights=weights, ddof=0)}

    even = np.full(200, 1 / 200)
    step = 1e-6
    for i in range(5):
        distances = []
        for sign in (1, -1):
            weights = (1 - sign * step) * even
            weights[i] += sign * step
            distances.append(frechet(weighted(made, weights), weighted(originals, weights)))
        slope = (distances[0] - distances[1]) / (2 * step)
        assert influence[i] == pytest.approx(slope, rel=0.02, abs=0.02 * float(np.abs(influence).max()))


def test_directions_without_variance_do_no_harm() -> None:
    """A unit that is always 0, and fewer images than features."""
    made = features(torch.Generator().manual_seed(1), 20)
    made[:, 0] = 0
    value = frechet(moments(made), REAL)
    low, high = frechet_interval(value, made, moments(made), REAL)
    assert 0 <= low < value < high < 3 * value


def test_interval_is_the_same_every_time_and_moves_no_other_random_number() -> None:
    made = features(torch.Generator().manual_seed(1))
    before = np.random.get_state()[1].copy(), torch.random.get_rng_state()  # noqa: NPY002
    first, second = (frechet_interval(1.0, made, moments(made), REAL) for _ in range(2))
    assert first == second
    assert (np.random.get_state()[1] == before[0]).all()  # noqa: NPY002
    assert torch.equal(torch.random.get_rng_state(), before[1])


def by_name(result: Result) -> dict[str, Measurement]:
    return {m.protocol.name: m for m in result.measurements}


def test_only_frechet_distances_have_intervals(few: DataSplits, proxy: Extractor) -> None:
    noise = torch.Generator().manual_seed(0)
    originals = few.test.plain().__getitems__([(0, i) for i in range(len(few.test))])[0]
    made = (originals.float() * 0.8 + 40 * torch.rand(originals.shape, generator=noise)).to(torch.uint8)
    side, labels = (few.image_size, few.image_size), torch.arange(len(made)) % 10
    measured = by_name(measure_reconstructions([(originals, made)], few, [proxy]))
    measured |= by_name(
        measure_samples([made], few, [proxy], number=len(made), size=side, labels=labels, title="sampling")
    )
    with_interval = {name for name, measurement in measured.items() if measurement.interval}
    assert with_interval == {"proxy-rFID", "proxy-gFID"}
    assert [needs_features([proxy], "r", number) for number in (10_000, 10_001)] == [True, False]
    for name in with_interval:
        low, high = measured[name].interval or (0, 0)
        assert low < measured[name].value < high
        assert high - low < measured[name].value
