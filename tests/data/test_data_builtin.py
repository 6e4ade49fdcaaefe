"""Published data sets by name: where their files are found, that they are checked, and what becomes of the images."""

from __future__ import annotations

import gzip
import hashlib
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from builtin_files import TEST, TRAIN, idx, md5, small_cifar10, small_fashion, some_images
from PIL import Image
from scipy.io import savemat
from torch import Tensor

from imagefolder.data import published
from imagefolder.data.builtin import BUILTIN, PUBLISHED, read_builtin
from imagefolder.data.digits import digits
from imagefolder.data.images import ArrayImages, Images
from imagefolder.data.published import data_folders
from imagefolder.errors import DamagedFile, InputError

PACKAGE = Path("/usr/share/datasets/fashion-mnist")
FASHION = "2af19f53f90495f090ae15effd2137da951ecc90a4281eab84ed65d9b14f9420"
WHERE = "FashionMNIST/raw"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place for data, empty; nothing can be downloaded."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("IMAGEFOLDER_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    return tmp_path / "data"


@pytest.fixture
def fashion(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    return small_fashion(monkeypatch)


def put(folder: Path, files: dict[str, bytes], *, zipped: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.gz" if zipped else folder / name).write_bytes(
            gzip.compress(content, mtime=0) if zipped else content
        )


def everything(images: Images) -> tuple[Tensor, Tensor]:
    return images.__getitems__([(0, i) for i in range(len(images))])


@pytest.mark.parametrize("zipped", [False, True])
def test_grey_images_are_padded_and_repeated_for_each_colour(
    place: Path, fashion: dict[str, bytes], zipped: bool
) -> None:
    put(place / WHERE, fashion, zipped=zipped)
    splits = read_builtin("fashion", 32)
    assert (splits.name, splits.image_size, len(splits.train), len(splits.test)) == ("fashion", 32, TRAIN, TEST)
    assert splits.classes == torchvision.datasets.FashionMNIST.classes
    for images, original in zip((splits.train, splits.test), some_images((28, 28)), strict=True):
        pixels, labels = everything(images)
        assert (pixels.dtype, pixels.shape[1:]) == (torch.uint8, (3, 32, 32))
        assert labels.tolist() == images.labels.tolist() == original.labels.tolist()
        for channel in pixels.unbind(1):
            assert np.array_equal(channel[:, 2:30, 2:30], original.pixels)
            assert int(channel.sum(dtype=torch.int64)) == original.pixels.sum(dtype=np.int64)  # black around it


@pytest.mark.parametrize("size", [24, 32, 48])
def test_images_are_resized_by_pillow_and_hashed_as_if_they_were_in_memory(
    place: Path, fashion: dict[str, bytes], size: int
) -> None:
    put(place / WHERE, fashion)
    splits = read_builtin("fashion", size)
    for images, original in zip((splits.train, splits.test), some_images((28, 28)), strict=True):
        padded = np.pad(original.pixels, ((0, 0), (2, 2), (2, 2)))
        resized = [np.asarray(Image.fromarray(each).resize((size, size), Image.Resampling.BICUBIC)) for each in padded]
        expected = torch.from_numpy(np.stack(resized))[:, None].repeat(1, 3, 1, 1)
        assert torch.equal(everything(images)[0], expected)
        in_memory = ArrayImages(expected, torch.from_numpy(original.labels))
        assert images.fingerprint() == in_memory.fingerprint()
        assert images.plain() is images.augmented("generator", 3) is images
    assert splits.sha256 != read_builtin("fashion", size + 1).sha256


def test_hashing_in_parts_covers_every_image(
    place: Path, fashion: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(place / WHERE, fashion)
    whole = read_builtin("fashion", 32).sha256
    monkeypatch.setattr("imagefolder.data.builtin.CHUNK", 7)
    assert read_builtin("fashion", 32).sha256 == whole


@pytest.mark.parametrize("where", ["variable", "home", "package", "several"])
def test_files_are_found_in_each_place(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str
) -> None:
    fashion = small_fashion(monkeypatch, packaged=tmp_path / "package")
    home = Path.home() / ".cache/imagefolder/data"
    assert data_folders() == [place, home]
    first, *others = fashion
    if where == "variable":
        put(place / WHERE, fashion, zipped=True)
    elif where == "home":
        monkeypatch.delenv("IMAGEFOLDER_DATA")
        put(home / WHERE, fashion)
    elif where == "package":
        put(tmp_path / "package", fashion, zipped=True)
    else:
        put(home / WHERE, {first: fashion[first]})
        put(tmp_path / "package", {name: fashion[name] for name in others}, zipped=True)
    train = read_builtin("fashion", 32).train
    assert np.array_equal(everything(train)[0][:, 0, 2:30, 2:30], some_images((28, 28))[0].pixels)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-1], "bytes, not"),
        (lambda content: content + b"x", "more bytes, not"),
        (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "sha256"),
        (lambda content: b"", "0 bytes, not"),
    ],
    ids=["shorter", "longer", "changed", "empty"],
)
def test_damaged_files_are_named(
    place: Path, fashion: dict[str, bytes], zipped: bool, damage: Callable[[bytes], bytes], message: str
) -> None:
    for name, content in fashion.items():
        put(place / WHERE, fashion | {name: damage(content)}, zipped=zipped)
        with pytest.raises(DamagedFile, match=rf"{re.escape(name)}(\.gz)?: .*{message}.*; replace it by the published"):
            read_builtin("fashion", 32)


def test_a_truncated_gzip_file_is_named(place: Path, fashion: dict[str, bytes]) -> None:
    put(place / WHERE, fashion, zipped=True)
    path = place / WHERE / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DamagedFile, match=r"t10k-images-idx3-ubyte\.gz: not readable as an IDX file"):
        read_builtin("fashion", 32)


@pytest.mark.parametrize(
    ("pixels", "labels"), [((7, 28, 28), [0] * 6), ((3, 28, 28), [0, 1, 10])], ids=["numbers", "labels"]
)
def test_files_of_different_data_sets_are_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch, pixels: tuple[int, ...], labels: list[int]
) -> None:
    """Without known hashes, as those of MNIST."""
    contents = [idx(np.zeros(pixels)), idx(np.array(labels))] * 2
    names = [Path(file.path).name for file in PUBLISHED["mnist"].files]
    files = [replace(file, size=len(content)) for file, content in zip(PUBLISHED["mnist"].files, contents, strict=True)]
    monkeypatch.setitem(PUBLISHED, "mnist", replace(PUBLISHED["mnist"], files=tuple(files)))
    put(place / "MNIST/raw", dict(zip(names, contents, strict=True)))
    with pytest.raises(DamagedFile, match="MNIST: its images and labels do not belong together"):
        read_builtin("mnist", 32)


def test_absent_files_are_named_with_size_hash_and_place(place: Path, fashion: dict[str, bytes]) -> None:
    first, *others = fashion
    put(place / WHERE, {first: fashion[first]})
    with pytest.raises(InputError) as caught:
        read_builtin("fashion", 32)
    message = str(caught.value)
    assert first not in message
    for name in others:
        known = f"{len(fashion[name]):,} bytes unzipped, sha256 {hashlib.sha256(fashion[name]).hexdigest()}"
        assert f"{WHERE}/{name}.gz ({known})" in message
    for part in (f"into {place}", "dataset-fashion-mnist", "IMAGEFOLDER_DATA", "Connection refused"):
        assert part in message


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A web server for the files of a folder; its address."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Not on the terminal."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_absent_files_are_downloaded_once(
    place: Path,
    fashion: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    put(tmp_path / "web", fashion, zipped=True)
    with served(tmp_path / "web") as address:
        monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", ["http://127.0.0.1:9/", address])
        splits = read_builtin("fashion", 32)
    assert sorted(path.name for path in (place / WHERE).iterdir()) == sorted(f"{name}.gz" for name in fashion)
    shown = capsys.readouterr().out
    assert "MIT" in shown
    assert f"downloading {address}train-images-idx3-ubyte.gz" in shown
    assert read_builtin("fashion", 32).sha256 == splits.sha256


def test_a_download_with_another_hash_leaves_nothing(
    place: Path, fashion: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "web", {name: content + b"x" for name, content in fashion.items()}, zipped=True)
    with served(tmp_path / "web") as address:
        monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", [address])
        with pytest.raises(InputError, match=r"could not be downloaded .*corrupted"):
            read_builtin("fashion", 32)
    assert not [path for path in place.rglob("*") if path.is_file()]


@pytest.mark.usefixtures("fashion")
def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", [address])
        with pytest.raises(InputError, match="timed out"):
            read_builtin("fashion", 32)
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("packed", [False, True])
def test_colour_images_from_an_archive(place: Path, monkeypatch: pytest.MonkeyPatch, packed: bool) -> None:
    archive, originals = small_cifar10(monkeypatch)
    place.mkdir()
    (place / "cifar-10-python.tar.gz").write_bytes(archive)
    if not packed:
        torchvision.datasets.utils.extract_archive(place / "cifar-10-python.tar.gz", place)
        (place / "cifar-10-python.tar.gz").unlink()
    splits = read_builtin("cifar10", 32)
    assert splits.classes == [f"class {i}" for i in range(10)]
    for images, original in zip((splits.train, splits.test), originals, strict=True):
        pixels, labels = everything(images)
        assert np.array_equal(pixels.permute(0, 2, 3, 1), original.pixels)
        assert labels.tolist() == original.labels.tolist()
        in_memory = ArrayImages(pixels, labels)
        assert images.fingerprint() == in_memory.fingerprint()
    assert not [path for path in place.iterdir() if path.name.startswith(".")]
    (larger, _) = read_builtin("cifar10", 48).train.__getitems__([(0, 3)])
    expected = Image.fromarray(originals[0].pixels[3]).resize((48, 48), Image.Resampling.BICUBIC)
    assert np.array_equal(larger[0].permute(1, 2, 0), np.asarray(expected))


def test_damaged_archives_are_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, _ = small_cifar10(monkeypatch)
    place.mkdir()
    path = place / "cifar-10-python.tar.gz"
    path.write_bytes(archive[:-1])
    with pytest.raises(DamagedFile, match=r"cifar-10-python\.tar\.gz: its md5 is not"):
        read_builtin("cifar10", 32)
    path.write_bytes(archive)
    read_builtin("cifar10", 32)
    (place / "cifar-10-batches-py/test_batch").write_bytes(b"")
    with pytest.raises(DamagedFile, match="cifar-10-batches-py: incomplete or damaged; replace it"):
        read_builtin("cifar10", 32)


def test_an_absent_archive_is_named_with_size_hash_and_place(place: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_builtin("cifar10", 32)
    known = f"170,498,071 bytes, md5 {torchvision.datasets.CIFAR10.tgz_md5}"
    assert f"put cifar-10-python.tar.gz ({known}) into {place}" in str(caught.value)


def test_house_numbers_have_ten_classes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file gives the digit 0 the label 10."""
    place.mkdir()
    known = {}
    for name, split in zip(("train", "test"), some_images((32, 32, 3)), strict=True):
        path = place / f"{name}_32x32.mat"
        savemat(path, {"X": split.pixels.transpose(1, 2, 3, 0), "y": np.where(split.labels, split.labels, 10)[:, None]})
        known[name] = ["http://127.0.0.1:9/", path.name, md5(path.read_bytes())]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", known)
    splits = read_builtin("svhn", 32)
    assert splits.classes == list("0123456789")
    for images, original in zip((splits.train, splits.test), some_images((32, 32, 3)), strict=True):
        assert np.array_equal(everything(images)[0].permute(0, 2, 3, 1), original.pixels)
        assert images.labels.tolist() == original.labels.tolist()


def test_torchvision_knows_every_file() -> None:
    for data in PUBLISHED.values():
        for file in data.files:
            archive = published._archive(data, file)
            assert archive.path in (file.path, f"{file.path}.gz")
            assert re.fullmatch("[0-9a-f]{32}", archive.md5)
            assert all(url.endswith(Path(archive.path).name) for url in archive.urls)


def test_the_digits_are_built_in() -> None:
    assert BUILTIN[0] == "digits"
    assert read_builtin("digits", 16).sha256 == digits(16).sha256


@pytest.mark.skipif(not PACKAGE.exists(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_fashion_mnist_of_the_package_is_the_published_one() -> None:
    splits = read_builtin("fashion", 32)
    assert splits.sha256 == FASHION
    for images, number in ((splits.train, 6000), (splits.test, 1000)):
        assert torch.bincount(images.labels).tolist() == [number] * 10
    trousers = splits.train.labels == splits.classes.index("Trouser")
    pixels, _ = splits.train.__getitems__([(0, int(i)) for i in trousers.nonzero()[:200, 0]])
    assert pixels.float().mean((0, 1, 2))[16] > 2 * pixels.float().mean((0, 1, 2))[6]  # upright, and narrow
