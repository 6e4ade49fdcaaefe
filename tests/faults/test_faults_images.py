"""Images in the wild: not images at all, damaged, hostile, or changing while in use.

Whatever cannot be read as a person would expect is rejected in one line that names it. Folder layouts are tested in
tests/data/test_data_layout.py, and pixels, shards and evaluated files elsewhere too.
"""

from __future__ import annotations

import hashlib
import io
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imagefolder.data import checking, disk
from imagefolder.data.batches import usable_cpus
from imagefolder.data.folder import read_data
from imagefolder.data.images import ArrayImages, SomeImages, safe_name
from imagefolder.data.order import BatchOrder, ordered_batches, training_batches
from imagefolder.data.rows import location
from imagefolder.data.stored import StoredImages
from imagefolder.errors import InputError

Change = Callable[[Path], object]


def draw(path: Path, seed: int = 0) -> Path:
    """Noise, stored without compression so that all files have the same size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng([seed, *path.name.encode()]).integers(0, 256, (10, 12, 3), np.uint8)
    Image.fromarray(pixels).save(path, compress_level=0)
    return path


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Two classes of five images."""
    for name in ("cat", "dog"):
        for i in range(5):
            draw(tmp_path / "pets" / name / f"{name}{i}.png")
    return tmp_path / "pets"


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return tmp_path / "out" / "data-index"


def one_line(caught: pytest.ExceptionInfo[InputError]) -> str:
    text = str(caught.value)
    assert text.isprintable()
    return text


def rejection(root: Path, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        read_data(root, 8, **options)
    return one_line(caught)


def path_of(images: StoredImages, index: int) -> Path:
    return Path(location(images.root, images.rows[index]))


def replace_keeping_times(path: Path) -> None:
    """Another image in a file of the same size, with the same modification time."""
    status = path.stat()
    draw(path, seed=99)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size


# --- names ---


@pytest.mark.parametrize("name", [b"caf\xe9", b"x" * 255, b"a[1]*?", b"\x1b[31mred\n", "ö".encode() * 40])
def test_folders_may_have_names_of_any_bytes(
    tmp_path: Path, name: bytes, index: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, label = tmp_path / os.fsdecode(name), os.fsdecode(name[:200])
    for i in range(2):
        draw(root / "cat" / f"{i}.png")
        draw(root / label / f"{i}.png")
    (root / "cat" / os.fsdecode(b"\xff\n.txt")).touch()
    splits = read_data(root, 8, index=index)
    assert splits.classes == sorted(["cat", label])
    (file,) = index.iterdir()
    for text, most in ((splits.name, 60), (file.name, 80)):
        assert text.isprintable()
        assert len(text.encode()) <= most
    out = capsys.readouterr().out
    assert "left out: 1 of other kinds" in out
    assert out.replace("\n", "").isprintable()
    (root / label / "0.png").write_bytes(b"no image")
    assert "0.png: not a readable image" in rejection(root)


def test_ordinary_names_stay_as_they_are() -> None:
    for name in ("pets", "my pets [2]", "größe"):
        assert safe_name(name) == name
    assert safe_name("") == "data"
    assert safe_name("a/b") == "a_b"


# --- files that are not images ---


def make_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the full path may be too long for a socket
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir(here)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (os.mkfifo, "it is a pipe"),
        (make_socket, "it is a socket"),
        (lambda path: path.symlink_to("/dev/zero"), "it is a device"),
        (lambda path: path.symlink_to("gone.png"), "broken link"),
        (lambda path: path.symlink_to(path.name), "cannot be read"),
        (lambda path: path.write_bytes(b""), "its content is not PNG"),
        (lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "its content is not PNG"),
        (lambda path: path.open("wb").truncate(disk.LARGEST_FILE + 1), "536,870,913 bytes are more than"),
    ],
)
def test_files_that_are_not_images_are_named_with_the_reason(pets: Path, make: Change, why: str) -> None:
    path = pets / "cat" / "x.jpg"
    make(path)
    text = rejection(pets)
    assert "1 corrupt" in text
    assert f"{path}: " in text
    assert why in text


def test_irregular_files_are_never_opened(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(pets / "dog" / "x.png")
    opened: list[str] = []
    original = os.open
    monkeypatch.setattr(
        os, "open", lambda path, *rest, **more: opened.append(str(path)) or original(path, *rest, **more)
    )
    rejection(pets)
    assert str(pets / "dog" / "dog0.png") in opened
    assert str(pets / "dog" / "x.png") not in opened


def test_corrupt_images_are_reported_with_reasons_and_skipped_ones_are_counted(
    pets: Path, index: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = read_data(pets, 8, index=index).train
    first, second = path_of(train, 0), path_of(train, 1)
    first.write_bytes(first.read_bytes()[:200])
    second.write_bytes(b"GIF89a")
    text = rejection(pets, index=index)
    assert f"{first}: not a readable image (image file is truncated" in text
    assert f"{second}: not a readable image (its content is not PNG" in text
    splits = read_data(pets, 8, skip_corrupt=True, index=index)
    assert splits.left_out == {"unreadable": 2}
    assert f"{second}: not a readable image" in capsys.readouterr().out


def test_no_image_starts_a_program(pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    for suffix in ("jpg", "png", "tif"):
        text = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n%%EOF\n"
        (pets / "cat" / f"x.{suffix}").write_text(text)
    assert "3 corrupt" in rejection(pets)
    assert not (tmp_path / "ran").exists()


# --- changes between two starts ---


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The images that are decoded by the check."""
    calls: list[str] = []
    decode = checking.open_rgb
    monkeypatch.setattr(checking, "open_rgb", lambda data, origin: calls.append(origin) or decode(data, origin))
    return calls


def test_other_content_of_the_same_size_and_time_is_detected(pets: Path, index: Path, decoded: list[str]) -> None:
    before = read_data(pets, 8, index=index)
    path = path_of(before.train, 0)
    replace_keeping_times(path)
    decoded.clear()
    assert read_data(pets, 8, index=index).sha256 != before.sha256
    assert decoded == [str(path)]


@pytest.mark.parametrize("damage", ["flipped", "cut", "lengthened", "without checksum", "other"])
def test_a_damaged_index_is_not_trusted(pets: Path, index: Path, decoded: list[str], damage: str) -> None:
    before = read_data(pets, 8, index=index)
    (file,) = index.iterdir()
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[content.index(before.train.rows["sha256"][0].tobytes())] ^= 1
    file.write_bytes(
        {
            "cut": content[:-5],
            "lengthened": content + b"x",
            "without checksum": content[:-32],
            "other": b"{}",
        }.get(damage, content)
    )
    decoded.clear()
    assert read_data(pets, 8, index=index).sha256 == before.sha256
    assert len(decoded) == 10
    read_data(pets, 8, index=index)
    assert len(decoded) == 10


def test_no_index_is_ever_unpickled(pets: Path, index: Path, tmp_path: Path) -> None:
    class Bad:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    index.mkdir(parents=True)
    body = io.BytesIO()
    np.save(body, np.array([Bad()], object), allow_pickle=True)
    digest = hashlib.sha256(body.getvalue()).digest()
    checking.index_file(index, pets).write_bytes(body.getvalue() + digest)
    read_data(pets, 8, index=index)
    assert not (tmp_path / "ran").exists()


# --- changes while images are in use ---


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


CHANGES = pytest.mark.parametrize(
    ("change", "why"),
    [
        (replace_keeping_times, "changed since the images were checked; start the run again"),
        (lambda path: os.utime(path), "changed since"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "changed since"),
        (Path.unlink, "the file is missing"),
        (make_pipe, "it is a pipe"),
    ],
)


@CHANGES
@pytest.mark.parametrize("workers", [0, 1])
def test_every_read_detects_a_change(pets: Path, change: Change, why: str, workers: int) -> None:
    images = read_data(pets, 8).train.augmented("tokenizer")
    images.workers = workers
    path = path_of(images, 5)
    change(path)
    for batches in (ordered_batches(images, 2), training_batches(images, 4, 0, 0, 2)):
        assert isinstance(batches, torch.utils.data.DataLoader)
        with pytest.raises(InputError) as caught:
            list(batches)
        assert type(caught.value) is InputError
        assert one_line(caught).startswith(f"{path}: ")  # without the traceback of a worker
        assert why in str(caught.value)


def test_batches_before_a_missing_image_still_arrive(pets: Path) -> None:
    images = read_data(pets, 8).train
    path_of(images, 5).unlink()
    images.workers = 1
    batches = iter(ordered_batches(images, 2))
    assert [len(next(batches)[1]) for _ in range(2)] == [2, 2]
    with pytest.raises(InputError):
        next(batches)


def test_other_errors_are_not_hidden() -> None:
    with pytest.raises(IndexError):
        list(ordered_batches(ArrayImages(torch.zeros(1, 3, 2, 2), torch.zeros(3)), 3))


def test_verify_finds_changes_that_leave_size_and_time_as_they_were(pets: Path) -> None:
    images = read_data(pets, 8).train
    some = SomeImages(images, [3])
    some.verify()
    path = path_of(images, 2)
    replace_keeping_times(path)
    images.rows["ctime"][2] = path.stat().st_ctime_ns
    images.__getitems__([(0, 2)])
    for each in (images, images.augmented("generator"), some):
        with pytest.raises(InputError, match="its content changed") as caught:
            each.verify()
        assert str(path) in one_line(caught)
    path.unlink()
    with pytest.raises(InputError, match="the file is missing"):
        images.verify()
    ArrayImages(torch.zeros(1, 3, 2, 2), torch.zeros(1)).verify()


# --- the machine ---


def test_a_temporary_folder_without_room_for_sockets_is_rejected_immediately(
    pets: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = ArrayImages(torch.zeros(4, 3, 2, 2), torch.zeros(4))
    for length, workers in ((75, 1), (76, 1), (76, 0)):
        monkeypatch.setattr(tempfile, "tempdir", "/tmp/".ljust(length, "x"))
        images.workers = workers
        if (length, workers) == (76, 1):
            for make in (lambda: training_batches(images, 2, 0, 0, 1), lambda: ordered_batches(images, 2)):
                with pytest.raises(InputError, match=r"TMPDIR: .* has 76 bytes.* allow 75; set TMPDIR to a short path"):
                    make()
            assert "TMPDIR" in rejection(pets)
            assert decoded == []
        else:
            ordered_batches(images, 2)


def test_cpus_are_counted_where_affinity_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable_cpus() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    for number, expected in ((12, 12), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda number=number: number)
        assert usable_cpus() == expected


def orders(seed: int) -> list[list[tuple[int, int]]]:
    return list(BatchOrder(40, 40, seed=seed, start=0, stop=2))


def test_seeds_may_have_any_size() -> None:
    seeds = [0, 1, 20241126120000, 2**64 + 5, 3**50, -1, -(7**30)]
    assert len({str(orders(seed)) for seed in seeds}) == len(seeds)
    for seed in (0, 3, 12345):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + 1)
        assert [i for _, i in orders(seed)[1]] == torch.randperm(40, generator=generator).tolist()
