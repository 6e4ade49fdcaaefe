"""Protocols: what is compared with what, and that every value carries its protocol."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
import torch
import torch_fidelity

import leaderboard.record as record
from imagefolder.config import SamplingConfig
from imagefolder.data.images import DataSplits, to_float, to_uint8
from imagefolder.evaluation.extractor import Extractor
from imagefolder.evaluation.fidelity import fidelity
from imagefolder.evaluation.pairs import psnr
from imagefolder.evaluation.protocols import evaluate_generation, evaluate_reconstruction
from imagefolder.evaluation.real import real_floors
from imagefolder.evaluation.results import Measurement, Protocol, Result
from imagefolder.evaluation.spaces import extractors_for
from imagefolder.files import file_sha256
from imagefolder.generator.model import Generator
from leaderboard.record import Metric

SAMPLING = SamplingConfig(guidance=1.0, top_k=0, top_p=0.9, batch_size=25)


@pytest.fixture(scope="module")
def with_floors(extractor: Path, few: DataSplits) -> list[Extractor]:
    return extractors_for(extractor, real_floors(few, extractors_for(extractor)))


@pytest.fixture(scope="module")
def reconstruction(generator: Generator, few: DataSplits, with_floors: list[Extractor]) -> Result:
    return evaluate_reconstruction(generator.tokenizer, few, with_floors, "reconstructing")


@pytest.fixture(scope="module")
def generation(generator: Generator, few: DataSplits, with_floors: list[Extractor]) -> Result:
    return evaluate_generation(generator, few, with_floors, sampling=SAMPLING, samples=60, seed=4, title="sampling")


def by_name(result: Result) -> dict[str, Measurement]:
    return {m.protocol.name: m for m in result.measurements}


def test_protocol_and_measurement_have_the_fields_of_the_record(reconstruction: Result, generation: Result) -> None:
    assert {f.name for f in fields(Protocol)} == set(record.Protocol.model_fields)
    for measurement in reconstruction.measurements + generation.measurements:
        assert Metric.model_validate(asdict(measurement)).value == measurement.value


def test_proxy_values_carry_the_extractors_hash_and_the_evaluators_version(
    reconstruction: Result, generation: Result, extractor: Path
) -> None:
    measured = by_name(reconstruction) | by_name(generation)
    assert set(by_name(reconstruction)) == {"proxy-rFID", "proxy-rKID", "PSNR", "SSIM"}
    assert set(by_name(generation)) == {
        "proxy-gFID", "proxy-gKID", "proxy-IS", "proxy-precision", "proxy-recall", "class accuracy",
        "worst class accuracy", "proxy-training neighbour ratio", "proxy-mode coverage",
    }  # fmt: skip
    for name, measurement in measured.items():
        protocol = measurement.protocol
        assert protocol.version == 1
        assert protocol.higher_is_better == (name[-3:] not in ("FID", "KID"))
        if name in ("PSNR", "SSIM"):
            assert (protocol.extractor, protocol.extractor_sha256) == (None, None)
        else:
            assert (protocol.extractor, protocol.extractor_sha256) == ("proxy-cnn", file_sha256(extractor))
    assert measured["proxy-gFID"].protocol.evaluator == f"torch-fidelity {torch_fidelity.__version__}"


def test_every_value_carries_its_numbers_of_images(reconstruction: Result, generation: Result) -> None:
    assert {(m.protocol.reference, m.n_real, m.n_generated) for m in reconstruction.measurements} == {
        ("digits/test", 120, 120)
    }
    assert {(m.protocol.reference, m.n_generated) for m in generation.measurements} == {("digits/train", 60)}
    without = {"proxy-IS", "class accuracy", "worst class accuracy"}  # which no real images enter
    assert {m.protocol.name: m.n_real for m in generation.measurements} == {
        name: 0 if name in without else 200 for name in by_name(generation)
    }


def test_generation_metrics_have_floors(generation: Result, few: DataSplits, proxy: Extractor) -> None:
    expected = fidelity(few.test.images, few.train.images, proxy, ("fid", "prc"))
    measured = by_name(generation)
    assert all(m.floor is not None for m in measured.values())
    assert measured["proxy-gFID"].floor == pytest.approx(expected["frechet_inception_distance"], rel=1e-6)
    assert measured["proxy-precision"].floor == expected["precision"]
    assert measured["proxy-IS"].spread is not None


def test_reconstruction_compares_8_bit_test_images_with_their_originals(
    reconstruction: Result, generator: Generator, few: DataSplits, proxy: Extractor
) -> None:
    originals = few.test.images
    images = to_uint8(generator.tokenizer.reconstruct(to_float(originals)))
    measured = by_name(reconstruction)
    fid = fidelity(images, originals, proxy, ("fid",))["frechet_inception_distance"]
    assert measured["proxy-rFID"].value == pytest.approx(fid, rel=1e-6)
    assert measured["PSNR"].value == pytest.approx(psnr(images, originals), rel=1e-6)
    assert torch.equal(reconstruction.picture[0::2], originals[:40])
    assert (reconstruction.picture[1::2].int() - images[:40].int()).abs().max() <= 1
    assert reconstruction.picture.shape == (80, 3, 32, 32)
    assert sum(row.tokens for row in reconstruction.usage) == 120 * 2 * 5


def test_generation_compares_class_balanced_samples_with_the_training_images(
    generation: Result, generator: Generator, few: DataSplits, proxy: Extractor
) -> None:
    out = generator.sample(torch.arange(60) % 10, guidance=1.0, top_k=0, top_p=0.9, seed=4)
    images = (255 * out.images).to(torch.uint8)
    assert (generation.picture.int() - images.int()).abs().max() <= 1
    fid = fidelity(images, few.train.images, proxy, ("fid",))["frechet_inception_distance"]
    assert by_name(generation)["proxy-gFID"].value == pytest.approx(fid, rel=1e-4)
    assert generation.samples_per_second > 0


@pytest.mark.parametrize("batch_size", [60, 7])
def test_generation_does_not_depend_on_the_batch_size(
    generation: Result, generator: Generator, few: DataSplits, with_floors: list[Extractor], batch_size: int
) -> None:
    sampling = replace(SAMPLING, batch_size=batch_size)
    other = evaluate_generation(generator, few, with_floors, sampling=sampling, samples=60, seed=4, title="again")
    assert (other.picture.int() - generation.picture.int()).abs().max() <= 1
    for name, measurement in by_name(other).items():
        assert measurement.value == pytest.approx(by_name(generation)[name].value, rel=1e-3), name
