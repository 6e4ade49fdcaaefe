"""A new feature space and new metrics: one function each, and one line that registers it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imagefolder.config import SamplingConfig
from imagefolder.data.images import DataSplits, to_float, to_uint8
from imagefolder.evaluation import metrics, pairs, spaces
from imagefolder.evaluation.extractor import Extractor, Widths
from imagefolder.evaluation.metrics import SetMetric, Sets, frechet
from imagefolder.evaluation.pairs import PairMetric
from imagefolder.evaluation.perturbation import evaluate_perturbation
from imagefolder.evaluation.protocols import evaluate_files, evaluate_generation, evaluate_reconstruction
from imagefolder.evaluation.real import real_floors
from imagefolder.evaluation.results import Measurement, Result
from imagefolder.evaluation.spaces import extractors_for
from imagefolder.generator.model import Generator

SAMPLING = SamplingConfig(guidance=1.0, top_k=0, top_p=0.9, batch_size=25)


def colours(_proxy: Path) -> Extractor:
    """The colours of an image, averaged over 8 x 8 fields: 192 features, no classes, no weights."""

    def network(images: Tensor) -> tuple[Tensor, ...]:
        return (F.adaptive_avg_pool2d(images.float(), 8).flatten(1),)

    return Extractor(
        name="colours-8x8",
        network=network,
        widths=Widths(192),
        device=torch.device("cpu"),
        prefix="colour-",
        evaluator="test",
    )


@pytest.fixture
def extractors(extractor: Path, monkeypatch: pytest.MonkeyPatch) -> list[Extractor]:
    """Those of a scale without published weights, with the colours beside the proxy."""
    monkeypatch.setattr(spaces, "PROXY_SPACES", [*spaces.PROXY_SPACES, colours])
    return extractors_for(extractor)


def by_name(result: Result) -> dict[str, Measurement]:
    return {m.protocol.name: m for m in result.measurements}


def sample(generator: Generator, few: DataSplits, extractors: list[Extractor]) -> Result:
    return evaluate_generation(generator, few, extractors, sampling=SAMPLING, samples=60, seed=4, title="sampling")


def colour_distance(images: Tensor, real: Tensor) -> float:
    sides = [F.adaptive_avg_pool2d(x.float(), 8).flatten(1).double() for x in (images, real)]
    return frechet(*({"mu": x.mean(0).numpy(), "sigma": x.T.cov().numpy()} for x in sides))


def test_another_feature_space_is_measured_beside_the_proxy_in_one_pass(
    generator: Generator, few: DataSplits, extractors: list[Extractor], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    decode = generator.tokenizer.decode
    monkeypatch.setattr(
        generator.tokenizer, "decode", lambda codes, **options: decoded.append(len(codes)) or decode(codes, **options)
    )
    reconstruction = by_name(evaluate_reconstruction(generator.tokenizer, few, extractors, "reconstructing"))
    assert sum(decoded) == 120
    assert list(reconstruction) == ["proxy-rFID", "proxy-rKID", "colour-rFID", "colour-rKID", "PSNR", "SSIM"]
    originals = few.test.images
    images = to_uint8(generator.tokenizer.reconstruct(to_float(originals)))
    assert reconstruction["colour-rFID"].value == pytest.approx(colour_distance(images, originals), rel=1e-4)

    generation = sample(generator, few, extractors)
    samples = by_name(generation)
    assert [name for name in samples if not name.startswith("proxy-")] == [
        "class accuracy", "worst class accuracy", "colour-gFID", "colour-precision", "colour-recall", "colour-gKID",
        "colour-training neighbour ratio", "colour-mode coverage",
    ]  # fmt: skip
    measured = samples["colour-gFID"]
    assert measured.value == pytest.approx(colour_distance(generation.picture, few.train.images), rel=1e-4)
    protocol = measured.protocol
    assert (protocol.extractor, protocol.extractor_sha256, protocol.evaluator) == ("colours-8x8", None, "test")
    assert (protocol.reference, measured.n_real, measured.n_generated) == ("digits/train", 200, 60)

    perturbed = by_name(evaluate_perturbation(generator.tokenizer, few, extractors, seed=0, title="perturbing"))
    assert list(perturbed) == ["proxy-pFID", "colour-pFID"]


def test_another_feature_space_leaves_the_proxys_values_as_they_are(
    generator: Generator, few: DataSplits, extractors: list[Extractor], proxy: Extractor
) -> None:
    for evaluate in (
        lambda chosen: evaluate_reconstruction(generator.tokenizer, few, chosen, "reconstructing"),
        lambda chosen: sample(generator, few, chosen),
        lambda chosen: evaluate_perturbation(generator.tokenizer, few, chosen, seed=0, title="perturbing"),
    ):
        alone, together = by_name(evaluate([proxy])), by_name(evaluate(extractors))
        assert alone == {name: together[name] for name in alone}
        assert len(together) > len(alone)


def test_another_feature_space_has_floors_and_measures_files(
    few: DataSplits, extractor: Path, extractors: list[Extractor], tmp_path: Path
) -> None:
    floors = real_floors(few, extractors)
    assert floors["colour-gFID"] == pytest.approx(colour_distance(few.test.images, few.train.images), rel=1e-6)
    assert [found.floors for found in extractors_for(extractor, floors)] == [floors, floors]
    for name, images in (("samples", few.test.images), ("real", few.train.images)):
        np.savez(tmp_path / f"{name}.npz", arr_0=images.permute(0, 2, 3, 1).numpy())
    result, _ = evaluate_files(tmp_path / "samples.npz", tmp_path / "real.npz", extractors)
    measured = by_name(result)
    assert measured["colour-FID"].value == pytest.approx(floors["colour-gFID"], rel=1e-9)
    assert measured["proxy-FID"].value == pytest.approx(floors["proxy-gFID"], rel=1e-9)


def test_an_extractor_can_be_limited_to_some_metrics(
    generator: Generator, few: DataSplits, extractors: list[Extractor]
) -> None:
    proxy, colour = extractors
    limited = [proxy, replace(colour, metrics=frozenset({"rKID", "recall"}))]
    reconstruction = by_name(evaluate_reconstruction(generator.tokenizer, few, limited, "reconstructing"))
    assert [name for name in reconstruction if name.startswith("colour-")] == ["colour-rKID"]
    assert [name for name in by_name(sample(generator, few, limited)) if name.startswith("colour-")] == [
        "colour-recall"
    ]


def mean_absolute_error(images: Tensor, originals: Tensor) -> float:
    return float((images.double() - originals.double()).abs().mean())


def test_another_metric_of_pairs_is_one_function_and_one_entry(
    generator: Generator, few: DataSplits, proxy: Extractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    metric = PairMetric("MAE", "grey levels, mean over {pairs}", lambda: mean_absolute_error, "test", higher=False)
    monkeypatch.setattr(pairs, "PAIR_METRICS", [*pairs.PAIR_METRICS, metric])
    measured = by_name(evaluate_reconstruction(generator.tokenizer, few, [proxy], "reconstructing"))["MAE"]
    images = to_uint8(generator.tokenizer.reconstruct(to_float(few.test.images)))
    assert measured.value == pytest.approx(mean_absolute_error(images, few.test.images), rel=1e-4)
    assert (measured.protocol.reference, measured.n_real, measured.n_generated) == ("digits/test", 120, 120)
    assert measured.protocol.description.startswith("grey levels, mean over test images against their reconstructions")
    assert not measured.protocol.higher_is_better


def mean_shift(sets: Sets) -> float:
    generated, real = sets.generated.pooled.statistics()["mu"], sets.reference.pooled["mu"]
    return float(abs(generated - real).max())


def test_another_metric_of_sets_is_one_function_and_one_entry(
    generator: Generator, few: DataSplits, extractors: list[Extractor], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "largest difference of mean features of {sets}"
    metric = SetMetric("{prefix}{kind}shift", text, "pooled", mean_shift, higher=False, version=3, reconstructions=True)
    monkeypatch.setattr(metrics, "SET_METRICS", [*metrics.SET_METRICS, metric])
    result = evaluate_reconstruction(generator.tokenizer, few, extractors, "reconstructing")
    measured = by_name(result + sample(generator, few, extractors))
    assert {name for name in measured if name.endswith("shift")} == {
        "proxy-rshift", "proxy-gshift", "colour-rshift", "colour-gshift",
    }  # fmt: skip
    assert measured["colour-gshift"].protocol.version == 3
    images = to_uint8(generator.tokenizer.reconstruct(to_float(few.test.images)))
    means = [F.adaptive_avg_pool2d(x.float(), 8).flatten(1).mean(0) for x in (images, few.test.images)]
    assert measured["colour-rshift"].value == pytest.approx(float((means[0] - means[1]).abs().max()), rel=1e-3)
