"""Samples without guidance beside those with it, several sets of samples of one model, and temperature."""

from __future__ import annotations

from dataclasses import replace
from statistics import stdev
from typing import Any

import pytest
import torch
from torch import Tensor

from imagefolder.config import SamplingConfig
from imagefolder.data.images import ArrayImages, DataSplits, samples_to_uint8
from imagefolder.evaluation.extractor import Extractor
from imagefolder.evaluation.fidelity import fidelity
from imagefolder.evaluation.protocols import evaluate_generation, seeds_of_sampling
from imagefolder.evaluation.results import Measurement, Result
from imagefolder.generator.model import Generator

SAMPLING = SamplingConfig(guidance=2.0, top_k=0, top_p=0.9, batch_size=30)
PLAIN = {"guidance": 0.0, "top_k": 0, "top_p": 0.0, "temperature": 1.0}


def measured(generator: Generator, few: DataSplits, extractors: list[Extractor], **changes: Any) -> Result:
    settings = {"sampling": SAMPLING, "samples": 60, "seed": 4, "title": "sampling"} | changes
    return evaluate_generation(generator, few, extractors, **settings)


def by_name(result: Result) -> dict[str, Measurement]:
    return {m.protocol.name: m for m in result.measurements}


def drawn(generator: Generator, seed: int, **settings: Any) -> Tensor:
    """60 samples in the batches of `SAMPLING`, classes in turn: uint8."""
    images = generator.sample(torch.arange(60) % 10, seed=seed, batch_size=30, **settings).images
    return samples_to_uint8(images).cpu()


def training(few: DataSplits) -> Tensor:
    assert isinstance(few.train, ArrayImages)
    return few.train.images


@pytest.fixture(scope="module")
def both(generator: Generator, few: DataSplits, proxy: Extractor) -> Result:
    return measured(generator, few, [proxy], unguided=True, sampling_seeds=3)


def test_unguided_values_are_those_of_samples_drawn_by_hand(
    both: Result, generator: Generator, few: DataSplits, proxy: Extractor
) -> None:
    expected = fidelity(drawn(generator, 4, **PLAIN), training(few), proxy, ("fid", "isc"))
    values = by_name(both)
    assert values["proxy-gFID (unguided)"].value == pytest.approx(expected["frechet_inception_distance"], rel=1e-6)
    assert values["proxy-IS (unguided)"].value == pytest.approx(expected["inception_score_mean"], rel=1e-6)
    assert values["proxy-gFID (unguided)"].value != values["proxy-gFID"].value


def test_a_protocol_says_how_unguided_samples_are_drawn_and_stands_beside_the_guided_one(both: Result) -> None:
    names = [m.protocol.name for m in both.measurements]
    for name in ("proxy-gFID", "proxy-IS"):
        assert names[names.index(name) + 1] == f"{name} (unguided)"
        guided, plain = by_name(both)[name].protocol, by_name(both)[f"{name} (unguided)"].protocol
        assert plain.description == (
            f"{guided.description}, sampled with guidance 0, top-k 0, top-p 0 and temperature 1"
        )
        assert replace(plain, name=guided.name, description=guided.description) == guided
    assert len([name for name in names if "unguided" in name]) == 2
    assert {m.n_generated for m in both.measurements} == {60}


def test_values_are_those_of_the_first_set_and_the_spread_is_over_all(
    both: Result, generator: Generator, few: DataSplits, proxy: Extractor
) -> None:
    once = by_name(measured(generator, few, [proxy]))
    for name, measurement in once.items():
        assert by_name(both)[name].value == measurement.value  # to the last bit
    assert once["proxy-gFID"].spread is None
    guided = {"guidance": 2.0, "top_k": 0, "top_p": 0.9}
    for name, settings in (("proxy-gFID", guided), ("proxy-gFID (unguided)", PLAIN)):
        distances = [
            fidelity(drawn(generator, seed, **settings), training(few), proxy, ("fid",))
            for seed in seeds_of_sampling(4, 3)
        ]
        expected = stdev(found["frechet_inception_distance"] for found in distances)
        assert expected > 0
        assert by_name(both)[name].spread == pytest.approx(expected, rel=1e-4)


def test_no_set_of_samples_is_drawn_with_the_seed_of_another_model() -> None:
    found = [seed for model in (0, 1, 2, -1, 2**63 - 1, -(2**63)) for seed in seeds_of_sampling(model, 4)]
    assert len(set(found)) == len(found)
    assert seeds_of_sampling(7, 1) == [7]


def test_an_extractor_that_measures_no_gfid_has_no_unguided_values(
    generator: Generator, few: DataSplits, proxy: Extractor
) -> None:
    only = replace(proxy, metrics=frozenset({"precision"}))
    result = measured(generator, few, [only], unguided=True, sampling_seeds=2)
    assert [m.protocol.name for m in result.measurements] == ["proxy-precision"]


def test_temperature_of_the_configuration_is_that_of_the_samples(
    generator: Generator, few: DataSplits, proxy: Extractor
) -> None:
    sharp = replace(SAMPLING, temperature=0.5)
    result = measured(generator, few, [proxy], sampling=sharp)
    by_hand = drawn(generator, 4, guidance=2.0, top_k=0, top_p=0.9, temperature=0.5)
    assert result.picture is not None
    assert torch.equal(result.picture, by_hand)
    assert not torch.equal(result.picture, drawn(generator, 4, guidance=2.0, top_k=0, top_p=0.9))
