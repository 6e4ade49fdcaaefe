"""The published extractors, on files of the right layout with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
from torch import Tensor, nn
from torch_fidelity.utils import create_feature_extractor

from imagefolder import InputError, weights
from imagefolder.config import SamplingConfig
from imagefolder.data.images import ArrayImages, DataSplits
from imagefolder.evaluation.clean import clean_extractor
from imagefolder.evaluation.extractor import Extractor
from imagefolder.evaluation.inception import inception_extractor
from imagefolder.evaluation.metrics import metrics_of, precision_recall
from imagefolder.evaluation.protocols import evaluate_generation, evaluate_reconstruction
from imagefolder.evaluation.reference import published_reference, read_references
from imagefolder.evaluation.results import Result
from imagefolder.evaluation.spaces import extractors_for, main_extractor, required_weights
from imagefolder.evaluation.statistics import Statistics
from imagefolder.generator.model import Generator
from imagefolder.weights import WeightsAbsent

Accept = Callable[[Path], None]


@pytest.fixture(scope="module")
def inception(random_inception: Path) -> Extractor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMAGEFOLDER_WEIGHTS", str(random_inception.parent))
        sha256 = weights.checked_sha256(random_inception)
        entry = replace(weights.FILES[weights.INCEPTION], sha256=sha256)
        patch.setitem(weights.FILES, weights.INCEPTION, entry)
        return inception_extractor()


@pytest.fixture(scope="module")
def images(splits: DataSplits) -> Tensor:
    return splits.test.images[:12]


@pytest.fixture(scope="module")
def seen(inception: Extractor, images: Tensor) -> Statistics:
    statistics = Statistics(inception, 12, keep=True)
    statistics.add(images[:8])
    statistics.add(images[8:])
    return statistics


def test_the_message_about_absent_weights_names_the_file_and_where_to_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGEFOLDER_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(WeightsAbsent) as error:
        inception_extractor()
    message = str(error.value)
    for part in (weights.INCEPTION, "95,628,359 bytes", weights.FILES[weights.INCEPTION].sha256, str(tmp_path)):
        assert part in message
    assert "\n" not in message
    for load in (clean_extractor, lambda: published_reference(None)):
        with pytest.raises(WeightsAbsent):
            load()


def test_files_with_another_hash_are_rejected_before_their_code_is_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return Path.touch, (tmp_path / "executed",)

    for name, load in ((weights.INCEPTION, inception_extractor), (weights.CLEAN_INCEPTION, clean_extractor)):
        torch.save(Trap(), tmp_path / name)
        monkeypatch.setenv("IMAGEFOLDER_WEIGHTS", str(tmp_path))
        with pytest.raises(InputError, match="replace it by the published file"):
            load()
    assert not (tmp_path / "executed").exists()
    torch.load(tmp_path / weights.INCEPTION, weights_only=False)
    assert (tmp_path / "executed").exists()  # so that it would have been


def test_all_three_outputs_equal_torch_fidelitys(seen: Statistics, inception: Extractor, images: Tensor) -> None:
    assert (inception.name, inception.prefix, inception.widths) == ("inception-v3-compat", "", (2048, 1008, 2023))
    assert inception.evaluator == f"torch-fidelity {torch_fidelity.__version__}"
    network = create_feature_extractor(
        "inception-v3-compat", ["2048", "logits_unbiased", "logits"], cuda=False, verbose=False,
        feature_extractor_weights_path=str(inception.path),
    )  # fmt: skip
    inside = {}
    network.Mixed_6d.register_forward_hook(lambda _m, _i, output: inside.update(mixed=output))
    with torch.no_grad():
        pooled, logits, with_bias = network(images[:4])
    ours = inception(images[:4])
    torch.testing.assert_close(ours.pooled, pooled)
    torch.testing.assert_close(ours.logits, logits)
    assert not torch.allclose(ours.logits, with_bias)
    # the first 192 channels of the block are the 1x1 branch; ADM flattens (17, 17, 7) with channels last
    expected = inside["mixed"][:, :7].permute(0, 2, 3, 1).reshape(4, -1)
    assert ours.spatial.shape == (4, 2023)
    torch.testing.assert_close(ours.spatial, expected)
    assert float(ours.spatial.std(0).mean()) > 1e-3
    assert seen.spatial.count == 12


@pytest.fixture
def adm(tmp_path: Path, accept: Accept, images: Tensor, seen: Statistics) -> Path:
    """A reference batch in ADM's layout: statistics of a set, and some images of it."""
    arrays = images.permute(0, 2, 3, 1).numpy()
    pooled, spatial = seen.pooled.statistics(), seen.spatial.statistics()
    path = tmp_path / weights.ADM_REFERENCE
    np.savez(
        path, mu=pooled["mu"].astype(np.float32), sigma=pooled["sigma"], mu_s=spatial["mu"], sigma_s=spatial["sigma"],
        arr_0=arrays[:10],
    )  # fmt: skip
    accept(path)
    return path


def test_adms_reference_has_stored_statistics_and_features_of_its_images(
    adm: Path, inception: Extractor, seen: Statistics
) -> None:
    reference = published_reference(inception)
    assert (reference.name, reference.number, reference.size) == (weights.ADM_REFERENCE, 1_281_167, (32, 32))
    assert reference.published
    torch.testing.assert_close(reference.features, seen.features[:10], rtol=1e-4, atol=1e-4)
    assert reference.pooled["mu"].dtype == reference.pooled["sigma"].dtype == np.float64
    np.testing.assert_allclose(reference.pooled["mu"], seen.pooled.statistics()["mu"], rtol=1e-6)
    np.testing.assert_array_equal(reference.spatial["mu"], seen.spatial.statistics()["mu"])


def test_statistics_without_images_give_only_the_distance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inception: Extractor, seen: Statistics
) -> None:
    monkeypatch.setenv("IMAGEFOLDER_WEIGHTS", str(tmp_path))
    np.savez(tmp_path / weights.ADM_STATISTICS, **seen.pooled.statistics())
    reference = published_reference(inception)
    assert reference.name.startswith(f"{weights.ADM_STATISTICS}:")
    assert reference.number == 1_281_167
    assert reference.features is reference.spatial is reference.size is None
    np.savez(tmp_path / "own.npz", **seen.pooled.statistics())
    assert read_references(tmp_path / "own.npz", [inception])[0].number == 0
    np.savez(tmp_path / "own.npz", mu=np.zeros(64), sigma=np.eye(64))
    with pytest.raises(InputError, match="2048 features"):
        read_references(tmp_path / "own.npz", [inception])


def test_a_file_with_the_name_of_adms_reference_and_another_hash_is_rejected(
    adm: Path, inception: Extractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(weights.FILES, adm.name, replace(weights.FILES[adm.name], sha256="0" * 64))
    for read in (lambda: published_reference(inception), lambda: read_references(adm, [inception])):
        with pytest.raises(InputError, match="replace it by the published file"):
            read()


def frechet_of_few(first: Tensor, second: Tensor) -> float:
    """Frechet distance of features (N, D) and (M, D), N, M << D: the nuclear norm needs no (D, D) matrix."""
    (mean1, a), (mean2, b) = (
        (x.mean(0), (x - x.mean(0)) / (len(x) - 1) ** 0.5) for x in (first.double(), second.double())
    )
    covariance = torch.linalg.svdvals(a @ b.T).sum()
    return float((mean1 - mean2).square().sum() + a.square().sum() + b.square().sum() - 2 * covariance)


def values(result: Result) -> dict[str, tuple[float, int, int]]:
    return {m.protocol.name: (m.value, m.n_real, m.n_generated) for m in result.measurements}


@pytest.mark.slow
def test_published_metrics_of_samples(
    adm: Path, inception: Extractor, images: Tensor, imagenet_generator: Generator, splits: DataSplits
) -> None:
    """The real network and distances of its 2048 and 2023 features: seconds."""
    sampling = SamplingConfig(guidance=1.0, top_k=0, top_p=0.9, batch_size=10)
    settings = {"sampling": sampling, "samples": 10, "seed": 3, "title": "sampling"}
    held_out = ArrayImages(splits.test.images[12:32], splits.test.labels[12:32])  # not those of the reference
    imagenet = replace(splits, classes=[str(i) for i in range(1000)], test=held_out)
    result = evaluate_generation(imagenet_generator, imagenet, [inception], **settings)
    measured = values(result)
    assert {name: numbers[1:] for name, numbers in measured.items()} == {
        "gFID": (1_281_167, 10), "sFID": (1_281_167, 10), "IS": (0, 10), "precision": (10, 10), "recall": (10, 10),
        "gKID": (10, 10), "mode coverage": (10, 10), "training neighbour ratio": (10, 10),
    }  # fmt: skip
    samples, real = inception(result.picture), inception(images)  # the stored statistics are of these images
    assert measured["gFID"][0] == pytest.approx(frechet_of_few(samples.pooled, real.pooled), rel=1e-4)
    assert measured["sFID"][0] == pytest.approx(frechet_of_few(samples.spatial, real.spatial), rel=1e-4)
    precision, recall = precision_recall(samples.pooled, real.pooled[:10])
    assert (measured["precision"][0], measured["recall"][0]) == (precision, recall)
    for m in result.measurements:
        assert m.protocol.reference == weights.ADM_REFERENCE
        assert m.protocol.extractor_sha256 == inception.sha256
    with pytest.raises(InputError, match="10 classes"):
        evaluate_generation(imagenet_generator, splits, [inception], **settings)


def write_clean_inception(path: Path) -> None:
    """A TorchScript file with the interface of NVIDIA's: `layers` on 299 px in [-1, 1] gives 2048 features."""

    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2048, 16, stride=80)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).relu().mean((2, 3))

    class Base(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = Layers()

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x)

    torch.manual_seed(0)
    torch.jit.save(torch.jit.script(Base()), path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_reconstruction_with_inception_and_clean_fid(
    tmp_path: Path,
    accept: Accept,
    monkeypatch: pytest.MonkeyPatch,
    inception: Extractor,
    imagenet_generator: Generator,
    splits: DataSplits,
) -> None:
    """The real network and two distances of 2048 features: seconds."""
    few = replace(splits, test=ArrayImages(splits.test.images[:10], splits.test.labels[:10]))
    monkeypatch.setenv("IMAGEFOLDER_WEIGHTS", str(tmp_path))
    write_clean_inception(tmp_path / weights.CLEAN_INCEPTION)
    accept(tmp_path / weights.CLEAN_INCEPTION)
    result = evaluate_reconstruction(
        imagenet_generator.tokenizer, few, [inception, clean_extractor()], "reconstructing"
    )
    measured = values(result)
    assert set(measured) == {"rFID", "rKID", "clean-rFID", "PSNR", "SSIM"}
    assert {numbers[1:] for numbers in measured.values()} == {(10, 10)}
    originals, images = result.picture[0::2], result.picture[1::2]
    expected = frechet_of_few(inception(images).pooled, inception(originals).pooled)
    assert measured["rFID"][0] == pytest.approx(expected, rel=1e-4)
    expected = frechet_of_few(*(clean_features(tmp_path, x) for x in (images, originals)))
    assert measured["clean-rFID"][0] == pytest.approx(expected, rel=1e-4)
    protocol = {m.protocol.name: m.protocol for m in result.measurements}["clean-rFID"]
    assert protocol.evaluator.startswith("clean-fid ")
    assert protocol.extractor_sha256 == weights.FILES[weights.CLEAN_INCEPTION].sha256
    assert [note.split(":")[0] for note in result.notes] == ["LPIPS not measured"]


def test_clean_fid_is_skipped_with_a_note_if_its_weights_are_absent(
    random_inception: Path, accept: Accept, extractor: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    accept(random_inception)
    assert [found.path for found in extractors_for(None)] == [random_inception]
    assert capsys.readouterr().out.startswith("clean-fid not measured: inception-2015-12-05.pt (95,607,719 bytes")
    assert main_extractor(None).path == random_inception
    assert [found.path for found in extractors_for(extractor)] == [extractor] == [main_extractor(extractor).path]
    assert capsys.readouterr().out == ""


def test_clean_fid_is_for_reconstructions_only(tmp_path: Path, accept: Accept) -> None:
    write_clean_inception(tmp_path / weights.CLEAN_INCEPTION)
    accept(tmp_path / weights.CLEAN_INCEPTION)
    clean = clean_extractor()
    assert [metric.name for metric in metrics_of(clean, "r", 100)] == ["{prefix}{kind}FID"]
    assert metrics_of(clean, "g", 100) == metrics_of(clean, "", 100) == []
    assert not clean.measures("pFID")


def test_required_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEFOLDER_WEIGHTS", str(tmp_path))
    assert required_weights(samples=False) == [weights.INCEPTION]
    assert required_weights(samples=True) == [weights.INCEPTION, weights.ADM_REFERENCE]
    (tmp_path / weights.ADM_STATISTICS).touch()
    assert required_weights(samples=True) == [weights.INCEPTION, weights.ADM_STATISTICS]
    (tmp_path / weights.ADM_REFERENCE).touch()
    assert required_weights(samples=True) == [weights.INCEPTION, weights.ADM_REFERENCE]


def clean_features(folder: Path, images: Tensor) -> Tensor:
    """clean-fid's own network and resizing, image by image."""
    from cleanfid.inception_torchscript import InceptionV3W
    from cleanfid.resize import build_resizer

    network, resize = InceptionV3W(str(folder), download=False), build_resizer("clean")
    arrays = [resize(image) for image in images.permute(0, 2, 3, 1).numpy()]
    with torch.no_grad():
        return network(torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)).float()
