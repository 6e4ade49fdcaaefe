"""Samples in files of other tools, and the command line that evaluates them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from imagefolder import InputError
from imagefolder.evaluation.__main__ import main
from imagefolder.evaluation.extractor import Extractor
from imagefolder.evaluation.files import BATCH, open_images
from imagefolder.evaluation.metrics import fidelity
from imagefolder.evaluation.protocols import evaluate_files
from imagefolder.evaluation.results import Result


def write_pngs(folder: Path, images: Tensor) -> Path:
    folder.mkdir(parents=True)
    for index, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(image).save(folder / f"{index:04d}.png")
    return folder


def write_npz(path: Path, images: Tensor, save: Callable[..., None] = np.savez) -> Path:
    save(path, arr_0=images.permute(0, 2, 3, 1).numpy(), arr_1=np.zeros(len(images), np.int64))
    return path


def values(result: Result) -> dict[str, float]:
    return {m.protocol.name: m.value for m in result.measurements}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_any_part_of_an_npz_is_read_in_batches(
    tmp_path: Path, two_sets: tuple[Tensor, Tensor], save: Callable[..., None]
) -> None:
    images = two_sets[0]
    files = open_images(write_npz(tmp_path / "samples.npz", images, save))
    assert (len(files), files.size) == (250, (32, 32))
    for part in (range(250), range(17, 181), range(249, 250), range(0)):
        batches = list(files.batches(part))
        assert [len(batch) for batch in batches[:-1]] == [BATCH] * (len(batches) - 1)
        assert torch.equal(torch.cat([*batches, images[:0]]), images[part.start : part.stop])


def test_pngs_come_in_the_order_of_their_paths(tmp_path: Path, two_sets: tuple[Tensor, Tensor]) -> None:
    images = two_sets[0][:60]
    write_pngs(tmp_path / "b", images[:10])
    write_pngs(tmp_path / "a" / "deep", images[10:])
    files = open_images(tmp_path)
    assert torch.equal(torch.cat(list(files.batches(range(60)))), torch.cat([images[10:], images[:10]]))
    assert torch.equal(torch.cat(list(files.batches(range(45, 55)))), torch.cat([images[55:], images[:5]]))


def test_grey_and_palette_images_are_taken_without_loss(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (9, 7), np.uint8)
    Image.fromarray(grey).save(tmp_path / "0.png")
    Image.fromarray(grey // 2).convert("P").save(tmp_path / "1.png")
    files = open_images(tmp_path)
    assert files.size == (9, 7)
    (batch,) = files.batches(range(2))
    assert np.array_equal(batch[0].numpy(), np.stack([grey] * 3))
    assert np.array_equal(batch[1].numpy(), np.stack([grey // 2] * 3))


def test_files_of_both_kinds_give_torch_fidelitys_numbers(
    tmp_path: Path, two_sets: tuple[Tensor, Tensor], proxy: Extractor
) -> None:
    generated, real = two_sets
    folder, npz = write_pngs(tmp_path / "samples", generated), write_npz(tmp_path / "samples.npz", generated)
    reference = write_npz(tmp_path / "real.npz", real)
    (first, first_hash), (second, second_hash) = (evaluate_files(path, reference, proxy) for path in (folder, npz))
    assert values(first) == values(second)
    assert first_hash == second_hash
    expected = fidelity(generated, real, proxy, ("fid", "isc", "prc"))
    measured = values(first)
    assert measured["proxy-FID"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-6)
    assert measured["proxy-IS"] == pytest.approx(expected["inception_score_mean"], rel=1e-6)
    assert (measured["proxy-precision"], measured["proxy-recall"]) == (expected["precision"], expected["recall"])
    assert {m.n_generated for m in first.measurements} == {250}
    assert {m.protocol.name: m.n_real for m in first.measurements}["proxy-FID"] == 200
    changed = generated.clone()
    changed[249, 2, 31, 31] ^= 1
    _, other = evaluate_files(write_npz(tmp_path / "changed.npz", changed), reference, proxy)
    assert other != first_hash


def test_jpeg_files_are_refused_with_the_reason_whatever_their_name(
    tmp_path: Path, two_sets: tuple[Tensor, Tensor]
) -> None:
    folder = write_pngs(tmp_path / "samples", two_sets[0][:3])
    image = Image.open(folder / "0000.png")
    image.save(folder / "0001.jpg")
    with pytest.raises(InputError, match=r"0001\.jpg: not a PNG file; lossy formats such as JPEG"):
        open_images(folder)
    (folder / "0001.jpg").rename(folder / "0001.png")
    with pytest.raises(InputError, match=r"0001\.png: JPEG data in a file"):
        list(open_images(folder).batches(range(3)))


def test_images_that_cannot_be_measured_as_they_are_are_refused(
    tmp_path: Path, two_sets: tuple[Tensor, Tensor], proxy: Extractor
) -> None:
    folder = write_pngs(tmp_path / "samples", two_sets[0][:12])

    def refused(image: Image.Image | bytes, reason: str) -> None:
        path = folder / "0005.png"
        path.write_bytes(image) if isinstance(image, bytes) else image.save(path)
        with pytest.raises(InputError, match=f"0005.png: {reason}"):
            list(open_images(folder).batches(range(12)))

    refused(Image.new("RGB", (16, 32)), "16 x 32 pixels, but .*0000.png has 32 x 32")
    refused(Image.new("RGBA", (32, 32)), "RGBA image; only 8-bit images without transparency")
    refused(Image.new("I;16", (32, 32)), "I;16 image")
    refused((folder / "0000.png").read_bytes()[:200], "not a readable image")
    for path, reason in ((tmp_path / "none", "does not exist"), (tmp_path, "no PNG files")):
        for file in folder.glob("*"):
            file.unlink()
        with pytest.raises(InputError, match=reason):
            open_images(path)


def test_npz_files_without_8_bit_images_are_refused(tmp_path: Path, two_sets: tuple[Tensor, Tensor]) -> None:
    path = tmp_path / "x.npz"
    images = two_sets[0][:20]

    def refused(reason: str) -> None:
        with pytest.raises(InputError, match=rf"x.npz: .*{reason}"):
            list(open_images(path).batches(range(20)))

    np.savez(path, arr_0=images.permute(0, 2, 3, 1).float().numpy())
    refused("float32")
    np.savez(path, arr_0=images.numpy())
    refused("not uint8")
    np.savez(path, images=images.numpy())
    refused("arr_0")
    path.write_bytes(b"no archive")
    refused("not a zip file")
    np.save(path.open("wb"), images.numpy())
    refused("not a zip file")
    data = write_npz(path, images).read_bytes()
    path.write_bytes(data[:2000] + bytes(100) + data[2100:])
    refused("damaged")


def test_images_of_another_size_than_the_reference_are_refused(
    tmp_path: Path, two_sets: tuple[Tensor, Tensor], proxy: Extractor
) -> None:
    samples = write_npz(tmp_path / "samples.npz", two_sets[0])
    larger = write_npz(tmp_path / "real.npz", two_sets[1].repeat_interleave(2, 2).repeat_interleave(2, 3))
    with pytest.raises(InputError, match=r"have 32 x 32 pixels, the reference real.npz:\w+ 64 x 64"):
        evaluate_files(samples, larger, proxy)


def test_command_prints_a_table_and_json(
    tmp_path: Path, two_sets: tuple[Tensor, Tensor], proxy: Extractor, capsys: pytest.CaptureFixture[str]
) -> None:
    samples, real = write_npz(tmp_path / "samples.npz", two_sets[0]), write_pngs(tmp_path / "real", two_sets[1])
    assert main(samples, real, str(proxy.path)) == 0
    out = capsys.readouterr().out
    document = json.loads(out[out.index("\n{") :])
    result, sha256 = evaluate_files(samples, real, proxy)
    assert document["samples_sha256"] == sha256
    assert {m["protocol"]["name"]: m["value"] for m in document["metrics"]} == values(result)
    assert {m["protocol"]["extractor_sha256"] for m in document["metrics"]} == {proxy.sha256}
    for text in ("proxy-FID", "250", "200", sha256, proxy.sha256):
        assert text in out[: out.index("\n{")]


def test_command_says_in_one_line_what_is_wrong(
    tmp_path: Path, two_sets: tuple[Tensor, Tensor], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGEFOLDER_WEIGHTS", str(tmp_path))
    samples = write_npz(tmp_path / "samples.npz", two_sets[0])
    for extractor, reason in (
        ("inception", "weights-inception-2015-12-05-6726825d.pth"),
        (str(tmp_path / "none.safetensors"), "none.safetensors does not exist"),
        (str(samples), "no weights of the proxy extractor"),
    ):
        assert main(samples, samples, extractor) == 2
        error = capsys.readouterr().err
        assert reason in error
        assert error.startswith("error: ")
        assert error.count("\n") == 1


def test_statistics_of_inception_features_are_no_reference_for_a_proxy(
    tmp_path: Path, two_sets: tuple[Tensor, Tensor], proxy: Extractor
) -> None:
    np.savez(tmp_path / "stats.npz", mu=np.zeros(64), sigma=np.eye(64))
    with pytest.raises(InputError, match="a proxy extractor needs images"):
        evaluate_files(write_npz(tmp_path / "samples.npz", two_sets[0]), tmp_path / "stats.npz", proxy)
