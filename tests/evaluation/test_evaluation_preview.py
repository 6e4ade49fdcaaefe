"""Metrics of a few images for the curve of a training: the same numbers as the protocols give for as many images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from imagefolder.data.images import DataSplits, samples_to_uint8, spread_evenly
from imagefolder.evaluation.extractor import Extractor
from imagefolder.evaluation.preview import preview_reconstructions, preview_samples
from imagefolder.evaluation.protocols import evaluate_reconstruction, measure_samples
from imagefolder.evaluation.results import Result
from imagefolder.generator.model import Generator, Samples


def values(result: Result, names: tuple[str, ...], number: str) -> dict[str, float]:
    """Values by name, named as in a curve."""
    found = {m.protocol.name: m.value for m in result.measurements}
    return {f"{name} ({number})": found[name] for name in names}


def test_samples_are_measured_as_in_an_evaluation(generator: Generator, few: DataSplits, proxy: Extractor) -> None:
    measure = preview_samples(few, lambda: proxy, number=40, seed=4, batch_size=15)
    found = measure(generator)
    assert found == measure(generator)
    labels = torch.arange(40) // 4
    images = samples_to_uint8(generator.sample(labels, seed=4).images)
    size = (few.image_size, few.image_size)
    result = measure_samples([images], few, [proxy], number=40, size=size, labels=labels, title="")
    assert found == pytest.approx(values(result, ("proxy-gFID", "proxy-gKID"), "40 samples"), rel=1e-5)


def test_few_samples_of_many_classes_are_spread_over_them(
    imagenet_generator: Generator, few: DataSplits, proxy: Extractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, sample = [], imagenet_generator.sample

    def noting(labels: Tensor, **how: Any) -> Samples:
        seen.extend(labels.tolist())
        return sample(labels, **how)

    monkeypatch.setattr(imagenet_generator, "sample", noting)
    many = replace(few, classes=[str(i) for i in range(1000)])
    preview_samples(many, lambda: proxy, number=50, seed=0, batch_size=20)(imagenet_generator)
    assert seen == list(range(0, 1000, 20))


def test_reconstructions_are_measured_as_in_an_evaluation(
    generator: Generator, few: DataSplits, proxy: Extractor
) -> None:
    found = preview_reconstructions(few, lambda: proxy, number=60)(generator.tokenizer)
    some = replace(few, test=spread_evenly(few.test, 60))
    result = evaluate_reconstruction(generator.tokenizer, some, [proxy], "")
    assert found == pytest.approx(values(result, ("proxy-rFID", "proxy-rKID"), "60 images"), rel=1e-5)
    all_of_them = preview_reconstructions(few, lambda: proxy, number=1000)(generator.tokenizer)
    assert set(all_of_them) == {"proxy-rFID (120 images)", "proxy-rKID (120 images)"}


def test_the_extractor_is_opened_when_it_is_needed(generator: Generator, few: DataSplits, tmp_path: Path) -> None:
    """A training that ends before its first preview needs none."""

    def absent() -> Extractor:
        raise FileNotFoundError(tmp_path)

    measure = preview_samples(few, absent, number=20, seed=0, batch_size=20)
    with pytest.raises(FileNotFoundError):
        measure(generator)
