"""Samples in files of other tools, and the command line that evaluates them."""

from __future__ import annotations

import io
import json
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from imagefolder import InputError
from imagefolder.evaluation import files
from imagefolder.evaluation.__main__ import main
from imagefolder.evaluation.extractor import Extractor, Widths
from imagefolder.evaluation.fidelity import fidelity
from imagefolder.evaluation.files import BATCH, open_images
from imagefolder.evaluation.protocols import evaluate_files
from imagefolder.evaluation.reference import read_references
from imagefolder.evaluation.results import Result

Sets = tuple[Tensor, Tensor]


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
def test_any_part_of_an_npz_is_read_in_batches(tmp_path: Path, two_sets: Sets, save: Callable[..., None]) -> None:
    images = two_sets[0]
    files = open_images(write_npz(tmp_path / "samples.npz", images, save))
    assert (len(files), files.size) == (250, (32, 32))
    for part in (range(250), range(17, 181), range(249, 250), range(0)):
        batches = list(files.batches(part))
        assert [len(batch) for batch in batches[:-1]] == [BATCH] * (len(batches) - 1)
        assert torch.equal(torch.cat([*batches, images[:0]]), images[part.start : part.stop])


def test_pngs_are_read_in_the_order_of_their_paths(tmp_path: Path, two_sets: Sets) -> None:
    images = two_sets[0][:60]
    write_pngs(tmp_path / "b", images[:10])
    write_pngs(tmp_path / "a" / "deep", images[10:])
    files = open_images(tmp_path)
    assert torch.equal(torch.cat(list(files.batches(range(60)))), torch.cat([images[10:], images[:10]]))
    assert torch.equal(torch.cat(list(files.batches(range(45, 55)))), torch.cat([images[55:], images[:5]]))


def test_grey_and_palette_images_are_read_without_loss(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (9, 7), np.uint8)
    Image.fromarray(grey).save(tmp_path / "0.png")
    Image.fromarray(grey // 2).convert("P").save(tmp_path / "1.png")
    files = open_images(tmp_path)
    assert files.size == (9, 7)
    (batch,) = files.batches(range(2))
    assert np.array_equal(batch[0].numpy(), np.stack([grey] * 3))
    assert np.array_equal(batch[1].numpy(), np.stack([grey // 2] * 3))


def test_files_of_both_kinds_give_torch_fidelitys_numbers(tmp_path: Path, two_sets: Sets, proxy: Extractor) -> None:
    generated, real = two_sets
    folder, npz = write_pngs(tmp_path / "samples", generated), write_npz(tmp_path / "samples.npz", generated)
    reference = write_npz(tmp_path / "real.npz", real)
    (first, first_hash), (second, second_hash) = (evaluate_files(path, reference, [proxy]) for path in (folder, npz))
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
    _, other = evaluate_files(write_npz(tmp_path / "changed.npz", changed), reference, [proxy])
    assert other != first_hash


def test_jpeg_files_are_rejected_with_the_reason_whatever_their_name(tmp_path: Path, two_sets: Sets) -> None:
    folder = write_pngs(tmp_path / "samples", two_sets[0][:3])
    image = Image.open(folder / "0000.png")
    image.save(folder / "0001.jpg")
    with pytest.raises(InputError, match=r"0001\.jpg: not a PNG file; lossy formats such as JPEG"):
        open_images(folder)
    (folder / "0001.jpg").rename(folder / "0001.png")
    with pytest.raises(InputError, match=r"0001\.png: JPEG data in a file"):
        list(open_images(folder).batches(range(3)))


def test_images_that_cannot_be_measured_as_they_are_are_rejected(
    tmp_path: Path, two_sets: Sets, proxy: Extractor
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


def test_npz_files_without_8_bit_images_are_rejected(tmp_path: Path, two_sets: Sets) -> None:
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


def test_images_that_differ_in_size_from_the_reference_are_rejected(
    tmp_path: Path, two_sets: Sets, proxy: Extractor
) -> None:
    samples = write_npz(tmp_path / "samples.npz", two_sets[0])
    larger = write_npz(tmp_path / "real.npz", two_sets[1].repeat_interleave(2, 2).repeat_interleave(2, 3))
    with pytest.raises(InputError, match=r"have 32 x 32 pixels, the reference real.npz:\w+ 64 x 64"):
        evaluate_files(samples, larger, [proxy])


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Exit code of `python -m imagefolder.evaluation ARGUMENTS`, in this process."""
    monkeypatch.setattr("sys.argv", ["evaluation", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


def test_command_prints_a_table_and_json(
    tmp_path: Path,
    two_sets: Sets,
    proxy: Extractor,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    samples, real = write_npz(tmp_path / "samples.npz", two_sets[0]), write_pngs(tmp_path / "real", two_sets[1])
    assert run(monkeypatch, samples, "--reference", real, "--extractor", proxy.path) == 0
    out = capsys.readouterr().out
    document = json.loads(out[out.index("\n{") :])
    result, sha256 = evaluate_files(samples, real, [proxy])
    assert document["samples_sha256"] == sha256
    assert {m["protocol"]["name"]: m["value"] for m in document["metrics"]} == values(result)
    assert {m["protocol"]["extractor_sha256"] for m in document["metrics"]} == {proxy.sha256}
    for text in ("proxy-FID", "250", "200", sha256, proxy.sha256):
        assert text in out[: out.index("\n{")]


def test_command_reports_an_error_in_one_line(
    tmp_path: Path, two_sets: Sets, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGEFOLDER_WEIGHTS", str(tmp_path))
    samples = write_npz(tmp_path / "samples.npz", two_sets[0])
    for extractor, reason in (
        ("inception", "weights-inception-2015-12-05-6726825d.pth"),
        (str(tmp_path / "none.safetensors"), "none.safetensors does not exist"),
        (str(samples), "samples.npz: not readable as safetensors"),
    ):
        assert run(monkeypatch, samples, "--reference", samples, "--extractor", extractor) == 2
        error = capsys.readouterr().err
        assert reason in error
        assert (error[:7], error.count("\n")) == ("error: ", 1)


def test_a_proxy_cannot_use_statistics_of_inception_features(tmp_path: Path, two_sets: Sets, proxy: Extractor) -> None:
    np.savez(tmp_path / "stats.npz", mu=np.zeros(64), sigma=np.eye(64))
    with pytest.raises(InputError, match="proxy-cnn needs images"):
        evaluate_files(write_npz(tmp_path / "samples.npz", two_sets[0]), tmp_path / "stats.npz", [proxy])


def headed(path: Path, width: int = 32, height: int = 32, depth: int = 8, color: int = 0) -> None:
    """A PNG whose header announces a size, bits per sample and a kind of colour, and which has no pixels."""
    Image.new("L", (1, 1)).save(path)
    data = bytearray(path.read_bytes())
    data[16:26] = struct.pack(">IIBB", width, height, depth, color)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)


@pytest.fixture
def folder(tmp_path: Path, two_sets: Sets) -> Path:
    return write_pngs(tmp_path / "samples", two_sets[0][:3])


def read_all(path: Path) -> Tensor:
    images = open_images(path)
    return torch.cat(list(images.batches(range(len(images)))))


def test_hidden_files_are_skipped_and_links_to_folders_followed(
    tmp_path: Path, folder: Path, two_sets: Sets, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pngs(folder / ".ipynb_checkpoints", two_sets[0][:2])
    write_pngs(folder / "__MACOSX", two_sets[0][:1])
    (folder / "._0000.png").write_bytes(b"finder")
    (folder / "notes.txt").touch()
    write_pngs(tmp_path / "part2", two_sets[0][3:5])
    (folder / "more").symlink_to(tmp_path / "part2")
    (folder / "more" / "loop").symlink_to(folder)
    assert torch.equal(read_all(folder), two_sets[0][:5])
    out = capsys.readouterr().out
    for text in ("5 PNG files", "4 hidden", "1 of other kinds", "1 links to folders already read"):
        assert text in out


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: headed(path, depth=16), "image of 16 bits; only 8-bit images"),
        (lambda path: headed(path, depth=16, color=2), "RGB image of 16 bits; only 8-bit images"),
        (lambda path: headed(path, depth=16, color=6), "RGBA image of 16 bits; only 8-bit images"),
        (lambda path: Image.new("P", (32, 32)).save(path, transparency=0), "P image; only 8-bit images without transp"),
        (lambda path: headed(path, 2**14, 2**13 + 1), "16,384 x 8,193 pixels are more than"),
        (lambda path: headed(path, 2**16, 2**15), "it has more than 134,217,728 pixels"),
        (lambda path: headed(path, 1, 101), "one side is more than 100 times the other"),
        (lambda path: Image.new("RGB", (32, 32)).save(path, "GIF"), "its content is not PNG"),
        (lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "its content is not PNG"),
        (lambda path: path.write_bytes(b""), "its content is not PNG"),
        (os.mkfifo, "it is a pipe"),
        (lambda path: path.symlink_to("/dev/zero"), "it is a device"),
        (lambda path: path.symlink_to("gone"), "broken link"),
        (lambda path: path.with_name("dangling").symlink_to("gone"), "broken link"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_files_that_are_not_png_are_named_with_the_reason(
    folder: Path, make: Callable[[Path], object], reason: str
) -> None:
    path = folder / "0001.png"
    path.unlink()
    make(path)
    with pytest.raises(InputError, match=rf"/samples/(0001\.png|dangling): .*{re.escape(reason)}"):
        read_all(folder)


def test_damage_anywhere_in_a_png_gives_one_line_or_is_harmless(folder: Path) -> None:
    path = folder / "0001.png"
    content, said = path.read_bytes(), []
    for offset in range(0, len(content), 13):
        path.write_bytes(content[:offset] + bytes([content[offset] ^ 0x55]) + content[offset + 1 :])
        try:
            read_all(folder)
        except InputError as error:
            said.append(str(error))
    assert len(said) > 20
    assert all(text.startswith(f"{path}: ") and text.isprintable() for text in said)


def npz(header: str, data: int = 600, name: str = "arr_0") -> bytes:
    """An npz whose array has any header."""
    file, text = io.BytesIO(), header.encode()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(data))
    return file.getvalue()


def of_shape(shape: str, data: int = 600) -> bytes:
    return npz(f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}", data)


def broken(at: int, new: bytes, central: int | None = None) -> bytes:
    """A good compressed npz with bytes replaced, in its central directory as well."""
    file = io.BytesIO()
    np.savez_compressed(file, np.random.default_rng(0).integers(0, 255, (5, 8, 8, 3), np.uint8))
    content = bytearray(file.getvalue())
    content[at : at + len(new)] = new
    if central is not None:
        start = content.rindex(b"PK\x01\x02") + central
        content[start : start + len(new)] = new
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(broken(150, b"\xff" * 10), id="deflate stream"),
        pytest.param(broken(8, b"\x63\0", 10), id="unknown method"),
        pytest.param(broken(6, b"\1", 8), id="encrypted"),
        pytest.param(broken(0, b"")[:-30], id="cut"),
        pytest.param(npz("(" * 900), id="brackets"),
        pytest.param(npz("-" * 9000), id="signs"),
        pytest.param(npz("\0\0\0"), id="zeros"),
        pytest.param(npz("{'descr': 1}"), id="other keys"),
        pytest.param(of_shape("(-3, 8, 8, 3)"), id="negative number"),
        pytest.param(of_shape("(3, -8, -8, 3)"), id="negative size"),
        pytest.param(of_shape("(3, 0, 8, 3)"), id="no height"),
        pytest.param(of_shape("(1, 16384, 8193, 3)"), id="huge image"),
        pytest.param(of_shape("(16777217, 1, 1, 3)", 3 * 2**24 + 3), id="huge number"),
        pytest.param(of_shape("(4, 8, 8, 3)"), id="too few bytes"),
        pytest.param(of_shape("(3, 8, 8, '3')"), id="text"),
    ],
)
def test_damaged_npz_files_are_named_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"^\S+/x\.npz: ") as caught:
        read_all(path)
    assert str(caught.value).isprintable()


def test_files_replaced_after_opening_are_detected(tmp_path: Path, folder: Path, two_sets: Sets) -> None:
    images = open_images(folder)
    Image.new("RGB", (32, 32)).save(folder / "0002.png")
    with pytest.raises(InputError, match=r"0002\.png: changed since"):
        list(images.batches(range(3)))
    archive = open_images(write_npz(tmp_path / "x.npz", two_sets[0][:5]))
    batches = archive.batches(range(5))
    write_npz(tmp_path / "x.npz", two_sets[0][5:10])
    with pytest.raises(InputError, match=r"x\.npz: changed since it was opened"):
        next(batches)
    (tmp_path / "x.npz").unlink()
    with pytest.raises(InputError, match=r"x\.npz: changed since it was opened"):
        list(archive.batches(range(5)))


def test_a_pipe_is_not_a_set_of_images(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.npz")
    with pytest.raises(InputError, match=r"x\.npz is neither a folder nor a file"):
        open_images(tmp_path / "x.npz")


def test_very_large_images_are_read_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_PIXELS", 2 * 8 * 8)
    path = write_npz(tmp_path / "x.npz", torch.zeros(5, 3, 8, 8, dtype=torch.uint8))
    assert [len(batch) for batch in open_images(path).batches(range(5))] == [2, 2, 1]


PUBLISHED = Extractor(
    name="published", network=lambda images: (images,), widths=Widths(3, 0, 2), device=torch.device("cpu"), prefix="",
    reference="published",
)  # fmt: skip


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"mu": np.zeros(3), "sigma": np.full((3, 3), np.nan)}, "sigma holds NaN"),
        ({"mu": np.full(3, np.inf), "sigma": np.eye(3)}, "mu holds NaN or infinity"),
        ({"mu": np.zeros(3, complex), "sigma": np.eye(3)}, "mu is complex128"),
        ({"mu": np.array([{}]), "sigma": np.eye(3)}, "mu is object"),
        ({"mu": np.zeros(4), "sigma": np.eye(4)}, "holds statistics of shapes"),
        ({"mu": np.zeros(3)}, "holds statistics of shapes"),
    ],
)
def test_stored_statistics_must_be_finite_numbers(tmp_path: Path, arrays: dict[str, np.ndarray], reason: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(InputError, match=rf"x\.npz: .*{reason}"):
        read_references(tmp_path / "x.npz", [PUBLISHED])


@pytest.mark.parametrize("header", ["(" * 900, "(100000, 100000)", "(-1, 2)", "(3,)"])
def test_damaged_statistics_are_named_in_one_line(tmp_path: Path, header: str) -> None:
    text = header if header.startswith("((") else f"{{'descr': '<f8', 'fortran_order': False, 'shape': {header}}}"
    (tmp_path / "x.npz").write_bytes(npz(text, 8, "mu"))
    with pytest.raises(InputError, match=r"^\S+/x\.npz: not readable as reference statistics"):
        read_references(tmp_path / "x.npz", [PUBLISHED])
