"""`imagefolder.evaluate` and `imagefolder.fid`: any model, by the tables' protocols."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchvision.utils import save_image

import imagefolder
from imagefolder.config import SamplingConfig
from imagefolder.data.images import DataSplits
from imagefolder.evaluation.extractor import Extractor
from imagefolder.evaluation.protocols import evaluate_files, evaluate_generation, evaluate_reconstruction
from imagefolder.evaluation.results import Result
from imagefolder.files import file_sha256, write_json
from imagefolder.generator.model import Generator
from leaderboard.record import Metric


class Codec:
    """Somebody's tokenizer: ours, behind the least interface."""

    def __init__(self, tokenizer: imagefolder.Tokenizer) -> None:
        self.tokenizer = tokenizer

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        assert (images.dtype, images.ndim) == (torch.float32, 4)
        return {"any": self.tokenizer.encode(images)}

    def decode(self, tokens: dict[str, Tensor]) -> Tensor:
        return self.tokenizer.decode(tokens["any"])


class Sampler:
    """Somebody's generator: a picture per class, and noise of the seed."""

    def __init__(self, splits: DataSplits, form: str = "float") -> None:
        self.form = form
        self.seeds: list[int] = []
        self.labels: list[int] = []
        places = [splits.train.labels.tolist().index(label) for label in range(10)]
        self.images = splits.train.__getitems__([(0, place) for place in places])[0]

    def sample(self, labels: Tensor, seed: int) -> Tensor | SimpleNamespace:
        self.seeds.append(seed)
        self.labels += labels.tolist()
        noise = torch.rand(len(labels), 3, 32, 32, generator=torch.Generator().manual_seed(seed)) / 10
        images = (self.images[labels] / 255 * 0.9 + noise).clamp(0, 1)
        if self.form == "uint8":
            return (255 * images).to(torch.uint8)
        return SimpleNamespace(images=images) if self.form == "object" else images


def values(result: Result) -> dict[str, float]:
    return {m.protocol.key: m.value for m in result.measurements}


def found(evaluation: imagefolder.Evaluation) -> dict[str, float]:
    return {key: m.value for key, m in evaluation.metrics.items()}


def test_our_tokenizer_and_anothers_are_measured_as_in_the_tables(
    generator: Generator, few: DataSplits, extractor: Path, proxy: Extractor
) -> None:
    tokenizer = generator.tokenizer
    expected = values(evaluate_reconstruction(tokenizer, few, [proxy], "reconstructing"))
    ours = imagefolder.evaluate(tokenizer, few, extractor=extractor)
    assert found(ours) == expected
    assert found(imagefolder.evaluate(Codec(tokenizer), few, extractor=extractor)) == expected
    whole = SimpleNamespace(reconstruct=tokenizer.reconstruct)
    assert found(imagefolder.evaluate(whole, few, extractor=extractor)) == expected
    assert set(expected) >= {f"proxy-rFID@1/digits/test/proxy-cnn:{file_sha256(extractor)[:8]}", "PSNR@1/digits/test"}
    assert ours["proxy-rFID"] == next(value for key, value in expected.items() if "proxy-rFID" in key)
    for key, measurement in ours.metrics.items():
        assert Metric.model_validate(asdict(measurement)).protocol.key == key  # the key of records
        assert measurement.n_generated == 120


def test_our_generator_is_measured_as_in_the_tables(
    generator: Generator, few: DataSplits, extractor: Path, proxy: Extractor
) -> None:
    sampling = SamplingConfig(guidance=1.0, top_k=0, top_p=0.9, batch_size=25)
    expected = values(
        evaluate_generation(
            generator, few, [proxy], sampling=sampling, samples=40, seed=4, title="sampling", unguided=True
        )
    )
    settings = {"guidance": 1.0, "top_k": 0, "top_p": 0.9}
    result = imagefolder.evaluate(generator, few, extractor=extractor, samples=40, seed=4, batch_size=25, **settings)
    assert found(result).items() <= expected.items()
    assert set(expected) - set(result.metrics) == {key for key in expected if "class accuracy" in key}
    assert result.provenance["seed"] == 4
    assert result.provenance["sampling"] == {**settings, "temperature": 1.0}


@pytest.mark.parametrize("form", ["float", "uint8", "object"])
def test_anothers_sampler_is_measured_against_the_training_images(few: DataSplits, extractor: Path, form: str) -> None:
    model = Sampler(few, form)
    result = imagefolder.evaluate(model, few, extractor=extractor, samples=60, batch_size=25)
    assert model.labels == [i % 10 for i in range(60)]
    assert len(set(model.seeds)) == 3
    again = Sampler(few)
    assert found(imagefolder.evaluate(again, few, extractor=extractor, samples=60, batch_size=25)) == found(result)
    assert again.seeds == model.seeds
    measured = result.metrics[f"proxy-gFID@1/digits/train/proxy-cnn:{file_sha256(extractor)[:8]}"]
    assert (measured.n_generated, measured.n_real) == (60, 200)


def test_an_extractor_of_these_data_knows_their_classes_and_floors(
    few: DataSplits, extractor: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "extractor.safetensors"
    copy.write_bytes(extractor.read_bytes())
    about = {"floors": {"proxy-gFID": 1.5}, "sha256": file_sha256(copy)}
    for sha256, floor in ((few.sha256, 1.5), ("0" * 64, None)):
        write_json(copy.with_suffix(".json"), {**about, "dataset_sha256": sha256})
        result = imagefolder.evaluate(Sampler(few), few, extractor=copy, samples=20)
        by_name = {m.protocol.name: m for m in result.metrics.values()}
        assert by_name["proxy-gFID"].floor == floor
        assert ("class accuracy" in by_name) == (floor is not None)


def test_where_the_numbers_come_from_is_stored_with_them(generator: Generator, few: DataSplits) -> None:
    result = imagefolder.evaluate(generator.tokenizer, few, extractor=None)
    assert {m.protocol.name for m in result.metrics.values()} == {"PSNR", "SSIM"}
    provenance = json.loads(json.dumps(result.provenance))
    assert (provenance["data"], provenance["data_sha256"]) == ("digits", few.sha256)
    assert len(provenance["weights_sha256"]) == 64
    assert provenance["packages"]["torch"] == metadata.version("torch")
    assert f"PSNR@1/digits/test: {result['PSNR']:.6g} (n = 120)" in str(result)
    assert "LPIPS not measured" in str(result)
    with pytest.raises(KeyError, match=r"rFID: not measured \(measured: PSNR, SSIM\)"):
        result["rFID"]


def test_data_are_read_by_name_at_the_size_of_the_model(generator: Generator) -> None:
    assert generator.tokenizer.config.image_size == 32
    result = imagefolder.evaluate(generator.tokenizer, "digits", extractor=None)
    assert {m.n_real for m in result.metrics.values()} == {450}


def test_a_torch_data_set_is_both_splits(few: DataSplits, extractor: Path) -> None:
    images, labels = few.train.__getitems__([(0, i) for i in range(200)])
    data = TensorDataset(images, labels)
    result = imagefolder.evaluate(Sampler(few), data, extractor=extractor, image_size=32, samples=60)
    expected = imagefolder.evaluate(Sampler(few), few, extractor=extractor, samples=60)
    without = [value for key, value in found(expected).items() if "training neighbour ratio" not in key]
    assert list(found(result).values()) == without  # the ratio needs test images that are not training images
    assert all("/TensorDataset/train" in key for key in result.metrics)
    exact = imagefolder.evaluate(Wrong(lambda x: x), data, extractor=extractor, image_size=32)
    assert exact["proxy-rFID"] == pytest.approx(0, abs=1e-4)


class Wrong:
    """A model whose images are wrong in one way."""

    def __init__(self, images: object) -> None:
        self.images = images

    def reconstruct(self, images: Tensor) -> object:
        return self.images(images) if callable(self.images) else self.images


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (lambda x: x.numpy(), r"must be uint8, or float in \[-1, 1\], of shape \(50, 3, 32, 32\), not ndarray"),
        (lambda x: x[:1], r"not float32 \(1, 3, 32, 32\)"),
        (lambda x: x.long(), r"not int64"),
        (lambda x: (x + 1) * 127.5, r"float in \[-1, 1\], not 0 to 255"),
        (lambda x: x * torch.nan, r"not nan"),
    ],
)
def test_wrong_reconstructions_are_refused(few: DataSplits, images: object, message: str) -> None:
    with pytest.raises(
        imagefolder.InputError, match=f"reconstructions must be .*{message}|reconstructions .*{message}"
    ):
        imagefolder.evaluate(Wrong(images), few, extractor=None)


def test_reconstructions_from_0_to_1_are_noticed(few: DataSplits) -> None:
    with pytest.warns(UserWarning, match=r"no value of the reconstructions is below 0.*images \* 2 - 1"):
        imagefolder.evaluate(Wrong(lambda x: (x + 1) / 2), few, extractor=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exact = imagefolder.evaluate(Wrong(lambda x: x * 1.1), few, extractor=None)  # not clamped: no mistake
    assert exact["PSNR"] > 30


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            lambda x: x * 2 - 1,
            r"samples must be uint8, or float in \[0, 1\], not -1.* to .*; return \(images \+ 1\) / 2",
        ),
        (lambda x: x * 255, r"float in \[0, 1\], not .* to 2.*"),
        (lambda x: x[..., :16], r"of shape \(10, 3, 32, 32\), not float32 \(10, 3, 32, 16\)"),
    ],
)
def test_wrong_samples_are_refused(few: DataSplits, extractor: Path, images: object, message: str) -> None:
    sampler = Sampler(few)

    def sample(labels: Tensor, seed: int) -> object:
        return images(sampler.sample(labels, seed))  # pyright: ignore[reportCallIssue]

    with pytest.raises(imagefolder.InputError, match=message):
        imagefolder.evaluate(SimpleNamespace(sample=sample), few, extractor=extractor, samples=10)


class Module(nn.Module):
    """A torch module that reconstructs."""

    def reconstruct(self, images: Tensor) -> Tensor:
        return images


def test_wrong_use_is_named(generator: Generator, few: DataSplits, extractor: Path) -> None:
    for model, data, options, message in [
        (object(), few, {}, r"object has neither sample\(labels, seed\) nor reconstruct\(images\)"),
        (Module().train(), few, {}, r"in training mode, .*model.eval\(\)"),
        (Module().eval(), "digits", {}, r"pass image_size="),
        (Module().eval(), few, {"image_size": 64}, r"images have 64 pixels, those of digits 32"),
        (Sampler(few), few, {"extractor": None}, r"samples are measured through an extractor"),
        (Sampler(few), few, {"extractor": extractor, "samples": 3}, r"3 images are too few"),
        (generator.tokenizer, "no/such/folder", {}, r"no/such/folder"),
        (generator.tokenizer, few.test.labels, {}, r"data must be the name of .*, not of type Tensor"),
        (generator.tokenizer, few, {"extractor": "none.safetensors"}, r"none.safetensors does not exist"),
    ]:
        with pytest.raises(imagefolder.InputError, match=message):
            imagefolder.evaluate(model, data, **{"extractor": None, **options})


def test_fid_of_two_sets_of_files(
    two_sets: tuple[Tensor, Tensor], proxy: Extractor, extractor: Path, tmp_path: Path
) -> None:
    for name, images in zip("ab", two_sets, strict=True):
        (tmp_path / name).mkdir()
        for i, image in enumerate(images[:40]):
            save_image(image / 255, tmp_path / name / f"{i:03}.png")
        np.savez(tmp_path / f"{name}.npz", images[:40].permute(0, 2, 3, 1).numpy())
    a, b = tmp_path / "a", tmp_path / "b"
    value = imagefolder.fid(a, str(b), extractor=extractor)
    result, _ = evaluate_files(a, b, [proxy])
    assert value == next(m.value for m in result.measurements if m.protocol.name == "proxy-FID")
    assert imagefolder.fid(tmp_path / "a.npz", tmp_path / "b.npz", extractor=extractor) == value
    assert imagefolder.fid(a, a, extractor=extractor) == pytest.approx(0, abs=1e-4)
    with pytest.raises(imagefolder.InputError, match="none does not exist"):
        imagefolder.fid(a, tmp_path / "none", extractor=extractor)
