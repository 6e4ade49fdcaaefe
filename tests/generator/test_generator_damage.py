"""Damage to samples and models between two calls is noticed, and either repaired or reported by name."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_generator_export import EXPORT, LABELS, content, interrupt_batch
from test_generator_model import build

import imagefolder
from imagefolder.files import read_json, write_json
from imagefolder.generator.export import export_samples
from imagefolder.generator.model import Generator
from imagefolder.generator.sampling import image_seed

SEEDS = [-5, 20241126120000, 2**70, -(2**70), 2**4095]


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    return build("folded")


@pytest.fixture(scope="module")
def npz(generator: Generator, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files of an uninterrupted export."""
    folder = tmp_path_factory.mktemp("npz")
    export_samples(generator, LABELS, folder, "npz", **EXPORT)
    return content(folder)


def interrupted(generator: Generator, folder: Path) -> None:
    """An export interrupted after two of three batches."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(interrupt_batch(patch)):
        export_samples(generator, LABELS, folder, "npz", **EXPORT)


def flip(path: Path, share: float = 0.5) -> None:
    changed = bytearray(path.read_bytes())
    changed[int(len(changed) * share)] ^= 16
    path.write_bytes(changed)


def test_seeds_of_any_size_and_sign_are_distinct(generator):
    assert image_seed(0, 0) == 6213027144842677344
    assert image_seed(5, 123) == 3803935806324833012
    seeds = [image_seed(seed, index) for seed in (*SEEDS, 0, 1) for index in range(3)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    tokens = [generator.sample([1], seed=seed).tokens for seed in (*SEEDS, np.int64(7))]
    assert not any(torch.equal(tokens[0], other) for other in tokens[1:])


@pytest.mark.parametrize(
    "settings",
    [
        {"seed": 1.5}, {"seed": "1"}, {"seed": True}, {"seed": 2**5000}, {"top_k": 1.5}, {"top_k": 10**30},
        {"top_k": -1}, {"top_p": "1"}, {"top_p": float("nan")}, {"guidance": "2"}, {"guidance": 10**400},
        {"temperature": "1"}, {"temperature": [1, None, 1]}, {"temperature": 1e-40}, {"temperature": float("nan")},
    ],
)  # fmt: skip
def test_invalid_settings_are_refused(generator, settings):
    with pytest.raises(imagefolder.InputError, match=next(iter(settings))) as caught:
        generator.sample([1], **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("order", ["folded", "raster"])
@pytest.mark.parametrize("part", ["transformer", "tokenizer"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_with_numbers_that_are_not_finite_is_named_and_makes_no_images(tmp_path, order, part, value):
    generator = build(order)
    broken = generator.transformer.layers[0].mlp[0] if part == "transformer" else generator.tokenizer.decoder.to_pixels
    broken.bias.data[3] = value
    name = generator.config.name if part == "transformer" else generator.tokenizer.config.name
    with pytest.raises(imagefolder.InputError, match=f"{name}: its .* not finite"):
        export_samples(generator, [1, 2], tmp_path, batch_size=1)
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    "how", [flip, lambda path: os.truncate(path, 10), Path.unlink, lambda path: path.write_text("")]
)
def test_damaged_labels_are_rewritten(generator, npz, tmp_path, how):
    export_samples(generator, LABELS, tmp_path, "npz", **EXPORT)
    how(tmp_path / "labels.npy")
    export_samples(generator, LABELS, tmp_path, "npz", **EXPORT)
    assert content(tmp_path) == npz


@pytest.mark.parametrize("name", ["samples.json", "progress.json", "samples.npy.part"])
@pytest.mark.parametrize("how", [flip, lambda path: os.truncate(path, 10), lambda path: path.write_text("")])
def test_the_files_of_an_interrupted_export_are_verified_before_it_resumes(generator, tmp_path, name, how):
    interrupted(generator, tmp_path)
    how(tmp_path / name)
    before = content(tmp_path)
    with pytest.raises(imagefolder.InputError, match=name.replace(".", r"\.")) as caught:
        export_samples(generator, LABELS, tmp_path, "npz", **EXPORT)
    assert "\n" not in str(caught.value)
    assert content(tmp_path) == before


@pytest.mark.parametrize("done", [-1, 1.5, 10**12, None, "4"])
def test_invalid_progress_is_refused(generator, tmp_path, done):
    interrupted(generator, tmp_path)
    write_json(tmp_path / "progress.json", {"done": done})
    with pytest.raises(imagefolder.InputError, match=r"progress\.json.*start again"):
        export_samples(generator, LABELS, tmp_path, "npz", **EXPORT)


@pytest.mark.parametrize("lost", [["progress.json"], ["samples.npy.part"], ["progress.json", "samples.npy.part"]])
def test_an_export_without_its_partial_files_starts_over(generator, npz, tmp_path, lost):
    interrupted(generator, tmp_path)
    for name in lost:
        (tmp_path / name).unlink()
    export_samples(generator, LABELS, tmp_path, "npz", **EXPORT)
    assert content(tmp_path) == npz


def test_an_array_that_grew_is_truncated(generator, npz, tmp_path):
    interrupted(generator, tmp_path)
    with (tmp_path / "samples.npy.part").open("ab") as file:
        file.write(bytes(100_000))
    export_samples(generator, LABELS, tmp_path, "npz", **EXPORT)
    assert content(tmp_path) == npz


def forget_the_hash(folder: Path) -> None:
    """As if the export had been interrupted before the hash was stored, or an earlier version had written it."""
    settings = {name: value for name, value in read_json(folder / "samples.json").items() if name != "samples_sha256"}
    (folder / "samples.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("how", [flip, lambda path: os.truncate(path, 5000), lambda path: path.write_text("")])
def test_a_finished_npz_that_was_damaged_is_noticed(generator, npz, tmp_path, known, how: Callable[[Path], object]):
    export_samples(generator, LABELS, tmp_path, "npz", **EXPORT)
    if not known:
        forget_the_hash(tmp_path)
    how(tmp_path / "samples.npz")
    with pytest.raises(imagefolder.InputError, match=r"samples\.npz: damaged.*makes it again"):
        export_samples(generator, LABELS, tmp_path, "npz", **EXPORT)
    (tmp_path / "samples.npz").unlink()
    export_samples(generator, LABELS, tmp_path, "npz", **EXPORT)
    assert content(tmp_path) == npz


def test_a_missing_hash_of_a_sound_npz_is_added(generator, npz, tmp_path):
    export_samples(generator, LABELS, tmp_path, "npz", **EXPORT)
    forget_the_hash(tmp_path)
    export_samples(generator, LABELS, tmp_path, "npz", **EXPORT)
    assert content(tmp_path) == npz


@pytest.mark.parametrize("format", ["png", "npz"])
def test_the_second_of_two_exports_into_one_folder_waits_and_makes_nothing(generator, tmp_path, monkeypatch, format):
    sample, made = Generator.sample, []

    def counted(self, *arguments, indices, **settings):
        made.extend(indices)
        return sample(self, *arguments, indices=indices, **settings)

    monkeypatch.setattr(Generator, "sample", counted)
    problems: list[BaseException] = []

    def run() -> None:
        try:
            export_samples(generator, LABELS, tmp_path, format, **EXPORT)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert sorted(made) == list(range(len(LABELS)))


def test_a_disk_that_is_too_small_is_reported_before_anything_is_made(generator, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(imagefolder.InputError, match="needs 67,584 bytes, and 1,000 are free"):
        export_samples(generator, LABELS, tmp_path, "npz", **EXPORT)
    assert not (tmp_path / "samples.npy.part").exists()
