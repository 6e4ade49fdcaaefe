"""Zip files: read member by member without unpacking; one line for every fault."""

from __future__ import annotations

import os
import stat
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from containers import zip_of
from tar_shards import message

from imagefolder.data import checking, zips
from imagefolder.data.folder import read_data
from imagefolder.errors import InputError

Draw = Callable[..., Path]


@pytest.fixture
def pets(tmp_path: Path, classes_at: Draw) -> Path:
    return classes_at(tmp_path / "folders" / "pets", {"cat": 5, "dog": 5})


@pytest.fixture
def archive(tmp_path: Path, pets: Path) -> Path:
    return zip_of(tmp_path / "pets.zip", pets)


def add(path: Path, name: str | zipfile.ZipInfo, content: bytes = b"x", method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, content, method)


def member(path: Path, name: str) -> zipfile.ZipInfo:
    with zipfile.ZipFile(path) as archive:
        return archive.getinfo(name)


def patch(path: Path, position: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        file.write(content)


def test_nothing_is_unpacked_to_disk_and_unchanged_images_are_not_read_again(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    first = read_data(archive, 8, index=tmp_path / "out" / "data-index")
    assert len({path for path in tmp_path.rglob("*") if path.is_file()} - before) == 1  # the index

    def again(*_: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(checking, "open_rgb", again)
    assert read_data(archive, 8, index=tmp_path / "out" / "data-index").sha256 == first.sha256


def test_a_zip_of_zip64_size(pets: Path, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zip64 fields, as archives of more than 4 GiB or 65,535 members have them."""
    expected = read_data(archive, 8).sha256
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
    zip_of(archive, pets)
    monkeypatch.undo()
    assert b"PK\6\6" in archive.read_bytes()
    assert read_data(archive, 8).sha256 == expected


def test_other_members_are_counted_by_reason(archive: Path) -> None:
    plain = read_data(archive, 8)
    for name in ("cat/notes.txt", "__MACOSX/cat/._001.png", "cat/.x/y.png", "dog/._1.png", "beside.png", "README"):
        add(archive, name)
    with zipfile.ZipFile(archive, "a") as file:
        file.mkdir("cat/empty")
    splits = read_data(archive, 8)
    assert splits.sha256 == plain.sha256
    assert splits.left_out == {"hidden": 3, "beside class folders": 1, "of other kinds": 2}


@pytest.mark.parametrize("name", ["cat/../../x.png", "/cat/x.png"])
def test_names_that_point_outside_are_rejected(archive: Path, name: str) -> None:
    add(archive, name)
    assert f"pets.zip: {name}: the name points outside the archive" in message(archive)


def test_two_members_of_the_same_name_are_rejected(archive: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        add(archive, "cat/001.png")
    assert "pets.zip: two members are named cat/001.png" in message(archive)


def test_a_file_and_a_folder_of_the_same_name_are_rejected(archive: Path) -> None:
    add(archive, "cat/001.png/x.png")
    assert "a file and a folder are named cat/001.png" in message(archive)


def test_endless_folders_are_rejected(archive: Path) -> None:
    add(archive, "a/" * 5000 + "x.png")
    assert "nested more than 100 deep" in message(archive)


def test_links_are_rejected(archive: Path) -> None:
    info = zipfile.ZipInfo("cat/link.png")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    add(archive, info, b"001.png")
    assert "cat/link.png: a link, not a regular file" in message(archive)


def test_other_compression_is_rejected(archive: Path, pixels: bytes) -> None:
    add(archive, "cat/x.png", pixels, zipfile.ZIP_BZIP2)
    assert "cat/x.png: compressed by method 12; create it with deflate or store" in message(archive)


def test_encrypted_members_are_rejected(archive: Path, pixels: bytes) -> None:
    add(archive, "cat/x.png", pixels)
    at = archive.read_bytes().rindex(b"PK\1\2")
    patch(archive, at + 8, b"\1")  # the flags of the last member in the directory
    assert "cat/x.png: encrypted" in message(archive)


@pytest.mark.parametrize("kind", ["stored", "deflated", "header", "size"])
def test_damaged_members_are_named(archive: Path, kind: str) -> None:
    name = "cat/001.png" if kind == "deflated" else "cat/002.png"
    info = member(archive, name)
    data = info.header_offset + zips.HEADER.size + len(name)
    assert info.compress_type == (zipfile.ZIP_DEFLATED if kind == "deflated" else zipfile.ZIP_STORED)
    if kind == "size":
        content = archive.read_bytes()
        entry = content.index(name.encode(), content.index(b"PK\1\2")) - 46
        patch(archive, entry + 24, struct.pack("<L", info.file_size - 1))
    else:
        patch(archive, info.header_offset if kind == "header" else data + 60, b"\7\7\7\7")
    assert f"pets.zip: {name}: damaged in the zip file; download or create it again" in message(archive)


@pytest.mark.parametrize("left", [0, 30, 1000, -10])
def test_truncated_zips_are_named(archive: Path, left: int) -> None:
    archive.write_bytes(archive.read_bytes()[:left])
    assert f"{archive}: not readable as a zip file" in message(archive)


def test_no_more_is_unpacked_than_announced(archive: Path) -> None:
    """A member whose directory entry says 1 kB but that unpacks to 100 MB, and one that says 600 MB."""
    add(archive, "cat/bomb.png", bytes(10**8), zipfile.ZIP_DEFLATED)
    at = archive.read_bytes().rindex(b"PK\1\2")
    patch(archive, at + 24, struct.pack("<L", 1000))
    tracemalloc.start()
    assert "cat/bomb.png: damaged in the zip file" in message(archive)
    patch(archive, at + 24, struct.pack("<L", 600 * 2**20))
    assert "cat/bomb.png: 536,870,913 bytes are more than the 536,870,912" in message(archive)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_a_zip_replaced_while_in_use_is_detected(archive: Path, pets: Path, image_at: Draw) -> None:
    images = read_data(archive, 8).train
    images.verify()
    image_at(pets / "cat" / "000.png", 77)
    zip_of(archive, pets)
    with pytest.raises(InputError, match=r"pets\.zip: .*: changed since the images were checked"):
        images.verify()


def test_a_changed_zip_is_read_again(archive: Path, pets: Path, tmp_path: Path, image_at: Draw) -> None:
    before = read_data(archive, 8, index=tmp_path / "out" / "data-index")
    image_at(pets / "cat" / "000.png", 77)
    zip_of(archive, pets)
    after = read_data(archive, 8, index=tmp_path / "out" / "data-index")
    assert after.sha256 == read_data(archive, 8).sha256 != before.sha256


def test_unreadable_members_are_skipped_on_request(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(archive, "cat/x.png", b"no image")
    assert "pets.zip: cat/x.png: not a readable image" in message(archive)
    splits = read_data(archive, 8, skip_corrupt=True)
    assert splits.left_out == {"unreadable": 1}


def test_names_written_by_windows(tmp_path: Path, pets: Path) -> None:
    path = tmp_path / "pets.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in pets.rglob("*.png"):
            info = zipfile.ZipInfo("x")
            info.filename, info.create_system = str(file.relative_to(pets)).replace("/", "\\"), 0
            archive.writestr(info, file.read_bytes())
    assert read_data(path, 8).sha256 == read_data(pets, 8).sha256


def test_shards_in_a_zip_and_archives_in_a_folder_are_refused(tmp_path: Path, pixels: bytes, archive: Path) -> None:
    for split in ("train", "val"):
        add(tmp_path / "shards.zip", f"{split}/0.tar")
    assert "shards.zip: holds tar shards" in message(tmp_path / "shards.zip")
    (tmp_path / "downloads").mkdir()
    archive.rename(tmp_path / "downloads" / "pets.zip")
    assert f"holds archives; give one of them: {tmp_path}/downloads/pets.zip" in message(tmp_path / "downloads")


@pytest.mark.parametrize("name", ["pets.tar.gz", "pets.rar", "pets"])
def test_other_files_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert "is neither a folder nor a .zip, .tar or .parquet file" in message(tmp_path / name)


def test_a_zip_that_is_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pets.zip")
    assert "pets.zip: not a regular file" in message(tmp_path / "pets.zip")
