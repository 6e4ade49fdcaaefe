"""Tar shards from elsewhere: concatenated, with links, with hidden members, with numbers that would fill the memory."""

from __future__ import annotations

import io
import os
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from tar_shards import member, message, one_shard_each, write_shard

from imagefolder.data.folder import read_data
from imagefolder.data.order import ordered_batches
from imagefolder.errors import InputError

Draw = Callable[..., Path]


def sparse(path: Path, info: tarfile.TarInfo) -> None:
    """A shard of one member whose data is a hole in the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(file.tell() + info.size + 1024)


def test_concatenated_shards_are_rejected_with_a_remedy(tmp_path: Path, pixels: bytes) -> None:
    root = one_shard_each(tmp_path / "shards", {"cats/a.png": pixels}, {"cats/a.png": pixels})
    first = root / "train" / "0.tar"
    second = write_shard(tmp_path / "other.tar", {"cats/b.png": pixels})
    first.write_bytes(first.read_bytes() + bytes(10240))
    assert len(read_data(root, 8).train) == 1  # zeros may follow
    first.write_bytes(first.read_bytes() + second.read_bytes())
    assert "0.tar: more data follows the end of the archive" in message(root)
    assert "keep them as separate shards" in message(root)


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (tarfile.LNKTYPE, "a link to a.png"),
        (tarfile.SYMTYPE, "a link to a.png"),
        (tarfile.CHRTYPE, "a device or pipe"),
        (tarfile.FIFOTYPE, "a device or pipe"),
    ],
)
def test_images_that_are_not_regular_files_are_rejected(tmp_path: Path, pixels: bytes, kind: bytes, what: str) -> None:
    root = one_shard_each(tmp_path / "shards", {"cats/a.png": pixels}, {"cats/a.png": pixels})
    with tarfile.open(root / "train" / "0.tar", "a") as tar:
        tar.addfile(member("cats/b.png", kind))
    assert f"0.tar: cats/b.png: {what}, not a regular file" in message(root)


@pytest.mark.parametrize("name", ["/cats/b.png", "../cats/b.png", "cats/../../b.png", "./../b.cls"])
def test_names_that_point_outside_the_shard_are_rejected(tmp_path: Path, pixels: bytes, name: str) -> None:
    root = one_shard_each(tmp_path / "shards", {"cats/a.png": pixels, name: pixels}, {"cats/a.png": pixels})
    assert f"0.tar: {name}: the name points outside the shard" in message(root)


def test_names_that_begin_with_a_dot_and_a_slash_are_normalized(tmp_path: Path, pixels: bytes) -> None:
    root = one_shard_each(
        tmp_path / "shards", {"./cats/a.png": pixels, "./dogs//b.png": pixels}, {"cats/a.png": pixels}
    )
    with tarfile.open(root / "val" / "1.tar", "w") as tar:
        info = member("./dogs/a.png", size=len(pixels))
        tar.addfile(info, io.BytesIO(pixels))
    assert read_data(root, 8).classes == ["cats", "dogs"]
    write_shard(root / "val" / "2.tar", {"./a.png": pixels})
    assert "neither a .cls member nor a class folder" in message(root)


def test_hidden_and_other_members_are_counted_with_and_without_the_index(
    tmp_path: Path, pixels: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"a.png": pixels, "a.cls": b"0"}
    extra = {"a.json": b"{}", "._a.png": b"finder", "__MACOSX/a.png": pixels, ".git/x.png": pixels}
    root = one_shard_each(tmp_path / "shards", {**good, **extra}, good)
    write_shard(root / "train" / "._0.tar", {"x.png": pixels})
    for path in (root / "train" / "list.txt", root / "labels.csv", root / "more" / "x.png"):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    for _ in range(2):
        splits = read_data(root, 8, index=tmp_path / "out" / "data-index")
        assert (len(splits.train), len(splits.test)) == (1, 1)
        assert splits.left_out == {"in other folders": 1, "of other kinds": 3, "hidden": 4}
        assert "left out: " in capsys.readouterr().out


def test_shards_and_folders_of_images_do_not_mix(tmp_path: Path, pixels: bytes, image_at: Draw) -> None:
    root = one_shard_each(tmp_path / "shards", {"cats/a.png": pixels}, {"cats/a.png": pixels})
    image_at(root / "train" / "dogs" / "1.png", 0)
    assert "train holds tar shards and a folder of images, dogs" in message(root)


@pytest.mark.parametrize("test", ["test", "validation"])
def test_shards_need_a_test_split_of_any_common_name(tmp_path: Path, pixels: bytes, test: str) -> None:
    root = one_shard_each(tmp_path / "outer" / "shards", {"cats/a.png": pixels}, {"cats/a.png": pixels})
    (root / "val").rename(root / test)
    assert len(read_data(tmp_path / "outer", 8).test) == 1  # and one folder too deep
    (root / test).rename(tmp_path / "away")
    assert "there is no val/" in message(root)


@pytest.mark.parametrize("names", ["\ufeffcats\r\ndogs\r\n", "cats\n\n dogs "])
def test_lists_of_class_names_may_have_windows_line_ends_and_blank_lines(
    tmp_path: Path, pixels: bytes, names: str
) -> None:
    both = {"a.png": pixels, "a.cls": b"0\r\n", "b.png": pixels, "b.cls": b" 1"}
    root = one_shard_each(tmp_path / "shards", both, both)
    (root / "classes.txt").write_bytes(names.encode())
    splits = read_data(root, 8)
    assert splits.classes == ["cats", "dogs"]
    assert splits.left_out == {}


def test_unreadable_lists_of_class_names_are_rejected(tmp_path: Path, pixels: bytes) -> None:
    both = {"a.png": pixels, "a.cls": b"0"}
    root = one_shard_each(tmp_path / "shards", both, both)
    names = root / "classes.txt"
    latin = b"caf\xe9\n", "not readable as a list of class names in UTF-8"
    for content, reason in (latin, (None, "is not a regular file")):
        if content is None:
            names.unlink()
            os.mkfifo(names)
        else:
            names.write_bytes(content)
        assert f"{names}" in message(root)
        assert reason in message(root)
    names.unlink()
    with names.open("wb") as file:
        file.truncate(2**40)
    assert "1,099,511,627,776 bytes are too many" in message(root)


@pytest.mark.parametrize("indices", [(0, 2**31 - 1), (1, 2), (2**31 - 1, 2**31 - 1)])
def test_class_indices_have_no_gaps_and_take_no_memory(tmp_path: Path, pixels: bytes, indices: tuple[int, int]) -> None:
    both = {"a.png": pixels, "a.cls": b"%d" % indices[0], "b.png": pixels, "b.cls": b"%d" % indices[1]}
    root = one_shard_each(tmp_path / "shards", both, both)
    tracemalloc.start()
    text = message(root)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert f"is of class {max(indices)}; number the classes from 0 without" in text
    assert peak < 2**24


def test_huge_members_are_rejected_without_reading_them(tmp_path: Path, pixels: bytes) -> None:
    root = one_shard_each(tmp_path / "shards", {"a.png": pixels, "a.cls": b"0"}, {"a.png": pixels, "a.cls": b"0"})
    shard = root / "train" / "1.tar"
    tracemalloc.start()
    for info, reason in (
        (member("x.cls", size=5 * 2**30), "1.tar: x.cls: expected a class index, not 5,368,709,120 bytes"),
        (member("name", tarfile.GNUTYPE_LONGNAME, 5 * 2**30), "a name or header of 5,368,709,120 bytes"),
    ):
        sparse(shard, info)
        assert reason in message(root)
    sparse(shard, member("0/x.png", size=2**30))
    shard.rename(root / "train" / "0.tar")
    write_shard(root / "val" / "0.tar", {"0/a.png": pixels})
    assert "0.tar: 0/x.png: 1,073,741,824 bytes are more than" in message(root)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_a_shard_that_is_a_pipe_is_not_opened(tmp_path: Path, pixels: bytes) -> None:
    root = one_shard_each(tmp_path / "shards", {"cats/a.png": pixels}, {"cats/a.png": pixels})
    os.mkfifo(root / "train" / "1.tar")
    assert "train/1.tar: not a regular file" in message(root)


def test_a_shard_replaced_while_in_use_is_detected(tmp_path: Path, pixels: bytes) -> None:
    root = one_shard_each(tmp_path / "shards", {"cats/a.png": pixels, "cats/b.png": pixels}, {"cats/a.png": pixels})
    images = read_data(root, 8).train
    images.verify()
    shard = root / "train" / "0.tar"
    status = shard.stat()
    shard.chmod(0o600)  # a change of permissions is not a change of content
    assert len(list(ordered_batches(images, 2))) == 1
    images.verify()
    shard.write_bytes(shard.read_bytes().replace(pixels, pixels[:-20] + bytes(20), 1))
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
    for use in (lambda: list(ordered_batches(images, 2)), images.verify):
        with pytest.raises(InputError, match=r"^\S+/0\.tar: cats/a\.png: changed since the images were checked"):
            use()
