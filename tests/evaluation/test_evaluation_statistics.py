"""Streamed and sharded statistics give torch-fidelity's values on the same features in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from imagefolder import InputError
from imagefolder.config import GeneratorConfig, SamplingConfig, TokenizerConfig
from imagefolder.data.images import ArrayImages, DataSplits
from imagefolder.evaluation import metrics
from imagefolder.evaluation.extractor import Extractor
from imagefolder.evaluation.fidelity import fidelity
from imagefolder.evaluation.metrics import frechet, kernel_distance, precision_recall
from imagefolder.evaluation.perturbation import evaluate_perturbation
from imagefolder.evaluation.protocols import evaluate_generation, evaluate_reconstruction
from imagefolder.evaluation.proxy import proxy_extractor
from imagefolder.evaluation.real import split_statistics
from imagefolder.evaluation.statistics import InceptionScore, Moments, Statistics
from imagefolder.generator.model import Generator
from imagefolder.tokenizer.model import Tokenizer

CPU = torch.device("cpu")
TIMEOUT = 100


def features(number: int, seed: int, offset: float = 0.0, scale: float = 1.0) -> Tensor:
    """Correlated, skewed features, as networks give them: float32 (N, 48)."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(48, 48, generator=torch.Generator().manual_seed(99))
    return offset + scale * (torch.randn(number, 48, generator=generator) @ mixing).relu()


def merge(whole: Moments | InceptionScore | Statistics, part: Moments | InceptionScore | Statistics) -> None:
    """Add what another object has seen, as the sums over processes do."""
    if isinstance(whole, Moments) and part.count:
        whole._join(part.count, part.mean, part.scatter)
    elif isinstance(whole, InceptionScore):
        whole.probabilities += part.probabilities
        whole.negative_entropy += part.negative_entropy
    elif isinstance(whole, Statistics):
        for name in ("pooled", "spatial", "score"):
            merge(getattr(whole, name), getattr(part, name))
        whole._features += part._features


def moments_of(parts: list[Tensor], batch: int) -> Moments:
    """As processes do it: one object per part, filled batch by batch, then merged."""
    whole = Moments(48, CPU)
    for part in parts:
        own = Moments(48, CPU)
        for piece in part.split(batch):
            own.add(piece)
        merge(whole, own)
    return whole


@pytest.mark.parametrize("shards", [1, 3, 7])
def test_fid_from_streamed_shards_equals_torch_fidelitys(shards: int) -> None:
    first, second = features(1000, 0), 1.1 * features(800, 1)
    expected = fid_statistics_to_metric(
        fid_features_to_statistics(first), fid_features_to_statistics(second), verbose=False
    )["frechet_inception_distance"]
    streamed = [moments_of(list(x.tensor_split(shards)), 64).statistics() for x in (first, second)]
    assert expected > 1
    assert frechet(*streamed) == pytest.approx(expected, rel=1e-6)


def test_parts_of_any_size_even_empty_merge_to_the_whole() -> None:
    x = features(100, 0)
    whole = moments_of([x], 100).statistics()
    for sizes in ([0, 1, 99], [50, 0, 50], [1, 98, 1]):
        merged = moments_of(list(x.split(sizes)), 7).statistics()
        for name, value in whole.items():
            np.testing.assert_allclose(merged[name], value, rtol=1e-12, atol=1e-12)


def test_covariance_survives_a_mean_far_larger_than_the_spread() -> None:
    """Sums of squares would lose all digits here: squared mean over variance is 1e12, and features are float32."""
    x = (1e3 + 1e-3 * torch.randint(0, 8, (5000, 4)).double()).float().double()
    streamed = Moments(4, CPU)
    for piece in x.split(50):
        streamed.add(piece)
    expected = np.cov(x.numpy(), rowvar=False)
    np.testing.assert_allclose(streamed.statistics()["sigma"], expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("number", [10, 103, 1000])
def test_inception_score_equals_torch_fidelitys_in_any_number_of_parts(number: int) -> None:
    logits = 3 * torch.randn(number, 17, generator=torch.Generator().manual_seed(1))
    expected = isc_features_to_metric(logits)
    whole = InceptionScore(number, 17, CPU)
    for start in range(0, number, number // 3):
        part = InceptionScore(number, 17, CPU)
        for at in range(start, min(start + number // 3, number), 8):
            part.add(logits[at : min(at + 8, start + number // 3)], at)
        merge(whole, part)
    mean, spread = whole.value()
    assert mean == pytest.approx(expected["inception_score_mean"], rel=1e-10)
    assert spread == pytest.approx(expected["inception_score_std"], rel=1e-8)


def test_precision_and_recall_equal_torch_fidelitys_with_any_memory_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generated, real = features(300, 0), 1.05 * features(250, 1)
    expected = prc_features_to_metric(generated, real, verbose=False)
    assert 0.2 < expected["precision"] < 1
    for held in (10**9, 20_000, 3_000):
        monkeypatch.setattr(metrics, "DISTANCES", held)
        assert precision_recall(generated, real) == (expected["precision"], expected["recall"])


def test_precision_and_recall_never_hold_all_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    real_cdist = torch.cdist
    monkeypatch.setattr(metrics, "DISTANCES", 30_000)
    monkeypatch.setattr(torch, "cdist", lambda a, b: shapes.append((len(a), len(b))) or real_cdist(a, b))
    precision_recall(features(300, 0), features(250, 1))
    assert {rows for rows, _ in shapes} == {100, 50}
    assert max(columns for _, columns in shapes) <= 100


def test_kid_equals_torch_fidelitys_with_subsets_that_fit_few_images() -> None:
    generated, real = features(300, 0), 1.1 * features(200, 1)
    expected = kid_features_to_metric(generated, real, kid_subset_size=200, verbose=False)
    mean, spread = kernel_distance(generated, real)
    assert 0 < spread < mean == expected["kernel_inception_distance_mean"]
    assert spread == expected["kernel_inception_distance_std"]


def test_sharded_images_give_torch_fidelitys_values(two_sets: tuple[Tensor, Tensor], proxy: Extractor) -> None:
    generated, real = two_sets
    expected = fidelity(generated, real, proxy, ("fid", "isc", "prc"))
    sides = []
    for images in (generated, real):
        n = len(images)
        parts = []
        for rank in range(3):
            part = range(n * rank // 3, n * (rank + 1) // 3)
            parts.append(Statistics(proxy, n, part.start, keep=True))
            for batch in images[part.start : part.stop].split(32):
                parts[-1].add(batch)
        merge(parts[0], parts[1])
        merge(parts[0], parts[2])
        sides.append(parts[0].over_processes())
    first, second = sides
    distance = frechet(first.pooled.statistics(), second.pooled.statistics())
    assert distance == pytest.approx(expected["frechet_inception_distance"], rel=1e-6)
    assert first.score.value()[0] == pytest.approx(expected["inception_score_mean"], rel=1e-6)
    assert precision_recall(first.features, second.features) == (expected["precision"], expected["recall"])


def test_missing_surplus_and_too_few_images_are_errors(proxy: Extractor) -> None:
    images = torch.zeros(12, 3, 32, 32, dtype=torch.uint8)
    statistics = Statistics(proxy, 20)
    statistics.add(images)
    with pytest.raises(InputError, match="12 images were measured, not the 20 expected"):
        statistics.over_processes()
    with pytest.raises(InputError, match="more images than the 20"):
        statistics.add(images)
    with pytest.raises(InputError, match="9 images are too few"):
        Statistics(proxy, 9)
    with pytest.raises(InputError, match="float32"):
        proxy(images.float())


def test_broken_weights_give_an_error_instead_of_a_number() -> None:
    broken = Moments(2, CPU)
    broken.add(torch.tensor([[1.0, float("nan")], [0.0, 1.0]]))
    with pytest.raises(InputError, match="not finite"):
        broken.statistics()


def test_no_images_are_kept(splits: DataSplits, proxy: Extractor) -> None:
    """Only a few numbers per image remain, far fewer than its pixels."""
    (statistics,) = split_statistics(splits.test, [proxy], "measuring")
    held = [statistics.features, statistics.classes, statistics.pooled.scatter, statistics.score.splits]
    per_image = sum(x.numel() * x.element_size() for x in held) / len(splits.test)
    assert per_image < splits.test.images[0].numel() / 3


def _join(rank: int, folder: Path) -> None:
    init, timeout = f"file://{folder}/init", timedelta(seconds=TIMEOUT)
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=2, timeout=timeout)


def _everything(path: Path, train: ArrayImages, test: ArrayImages) -> dict[str, float | Tensor]:
    """What the protocols give for untrained models, the same in every process."""
    torch.manual_seed(0)
    tokens = {"branches": 2, "scales": (1, 2), "codebook_size": 16, "code_dim": 4}
    shape = {"image_size": 32, "patch_size": 8, "backbone": "vit_tiny_patch16_224", "width": 32, "depth": 1, "heads": 2}
    tokenizer = Tokenizer(TokenizerConfig(dropout_start=1, **shape, **tokens)).eval()
    config = GeneratorConfig(depth=1, width=32, heads=2, num_classes=10, **tokens)
    generator, extractors = Generator(config, tokenizer).eval(), [proxy_extractor(path)]
    splits = DataSplits("digits", train, test, [str(digit) for digit in range(10)], 32)
    sampling = SamplingConfig(guidance=1.0, top_k=0, top_p=0.9, batch_size=20)
    reconstruction = evaluate_reconstruction(tokenizer, splits, extractors, "reconstructing")
    generation = evaluate_generation(
        generator, splits, extractors, sampling=sampling, samples=130, seed=4, title="sampling"
    )
    perturbation = evaluate_perturbation(tokenizer, splits, extractors, seed=0, title="perturbing")
    measured = (reconstruction + generation + perturbation).measurements
    return {
        **{f"{m.protocol.name} {m.protocol.reference}": m.value for m in measured},
        **{f"used {row.branch} {row.position}": row.used for row in reconstruction.usage},
        "reconstructions": reconstruction.picture,
        "samples": generation.picture,
    }


def _other_process(folder: Path, path: Path, train: ArrayImages, test: ArrayImages) -> None:
    torch.set_num_threads(1)
    _join(1, folder)
    torch.save(_everything(path, train, test), folder / "1.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_measure_the_same_as_one(
    tmp_path: Path, few: DataSplits, extractor: Path, proxy: Extractor
) -> None:
    """All protocols, in this process and another one; starting it takes seconds."""
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this torch has no Gloo")
    if proxy.device.type != "cpu":
        pytest.skip("Gloo is for the CPU")
    sets = few.train, ArrayImages(few.test.images[:101], few.test.labels[:101])
    alone = _everything(extractor, *sets)
    process = mp.get_context("spawn").Process(target=_other_process, args=(tmp_path, extractor, *sets))
    process.start()
    try:
        _join(0, tmp_path)
        here = _everything(extractor, *sets)
        dist.barrier()
        process.join(TIMEOUT)
        assert process.exitcode == 0
    finally:
        dist.destroy_process_group()
        process.kill()
    assert len(alone["samples"]) == 100
    for together in (here, torch.load(tmp_path / "1.pt", weights_only=True)):
        assert set(together) == set(alone)
        for name, value in alone.items():
            if isinstance(value, Tensor):
                assert (together[name].int() - value.int()).abs().max() <= 1, name  # decoded in other batches
            else:
                assert together[name] == pytest.approx(value, rel=1e-3, abs=1e-6), name


def test_statistics_depend_on_the_set_and_the_extractor(
    few: DataSplits, proxy: Extractor, extractor_at: Callable[[Path, int], Path], tmp_path: Path
) -> None:
    half = replace(few, train=ArrayImages(few.train.images[:100], few.train.labels[:100]))
    whole, part = (split_statistics(s.train, [proxy], "measuring")[0].pooled.statistics() for s in (few, half))
    assert frechet(whole, part) > 1e-4
    others = [proxy_extractor(extractor_at(tmp_path / "x.safetensors", 5))]
    (other,) = split_statistics(few.train, others, "measuring")
    assert frechet(whole, other.pooled.statistics()) > 1e-3
