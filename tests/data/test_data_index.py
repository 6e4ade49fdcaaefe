"""The index of checked images: nothing is read twice, and no change is missed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from imagefolder.data import checking
from imagefolder.data.folder import read_data
from imagefolder.data.images import DataSplits
from imagefolder.data.stored import StoredImages
from imagefolder.errors import InputError

Draw = Callable[..., Path]


@pytest.fixture
def root(tmp_path: Path, classes_at: Draw) -> Path:
    return classes_at(tmp_path / "animals", {"cats": 10, "dogs": 12})


@pytest.fixture
def read(root: Path, tmp_path: Path) -> Callable[..., DataSplits]:
    return lambda **options: read_data(root, 8, index=tmp_path / "index", **options)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every image that is decoded by the check."""
    calls: list[int] = []
    decode = checking.open_rgb

    def counting(data: bytes, origin: str):
        calls.append(len(data))
        return decode(data, origin)

    monkeypatch.setattr(checking, "open_rgb", counting)
    return calls


def replace_keeping_times(path: Path, content: bytes) -> None:
    """Other content of the same size, with the same modification time."""
    status = path.stat()
    path.write_bytes(content.ljust(status.st_size, b"\0"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_the_second_start_reads_no_image(root: Path, read: Callable[..., DataSplits], decoded: list[int]) -> None:
    first = read()
    assert len(decoded) == 22
    second = read()
    assert len(decoded) == 22
    assert second.sha256 == first.sha256


def test_a_change_that_keeps_size_and_time_is_detected(root: Path, read: Callable[..., DataSplits]) -> None:
    read()
    replace_keeping_times(root / "cats" / "000.png", b"no image")
    with pytest.raises(InputError, match=r"cats/000\.png"):
        read()


def test_identity_is_the_same_without_an_index(root: Path, read: Callable[..., DataSplits]) -> None:
    assert read().sha256 == read().sha256 == read_data(root, 8).sha256


def test_only_changed_and_new_images_are_read(
    root: Path, read: Callable[..., DataSplits], decoded: list[int], image_at: Draw
) -> None:
    first = read()
    status = image_at(root / "dogs" / "003.png", 999).stat()
    os.utime(root / "dogs" / "003.png", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    image_at(root / "dogs" / "z.png", 1000)
    (root / "cats" / "002.png").unlink()
    decoded.clear()
    second = read()
    assert len(decoded) == 2
    assert second.sha256 != first.sha256
    assert second.sha256 == read_data(root, 8).sha256
    decoded.clear()
    read()
    assert decoded == []


def test_a_change_of_size_alone_is_detected(root: Path, read: Callable[..., DataSplits], decoded: list[int]) -> None:
    read()
    path = root / "cats" / "001.png"
    status = path.stat()
    path.write_bytes(path.read_bytes() + b"\0")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    decoded.clear()
    read()
    assert len(decoded) == 1


def test_an_interrupted_check_resumes(
    root: Path, read: Callable[..., DataSplits], decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "BLOCK", 4)
    counting = checking.open_rgb

    def interrupted(data: bytes, origin: str):
        if len(decoded) == 10:
            raise KeyboardInterrupt
        return counting(data, origin)

    monkeypatch.setattr(checking, "open_rgb", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read()
    monkeypatch.setattr(checking, "open_rgb", counting)
    decoded.clear()
    assert read().sha256 == read_data(root, 8).sha256
    assert len(decoded) - 22 <= 14  # 22 without an index; whole blocks of 4 are kept


def test_the_index_is_written_while_checking(
    root: Path, read: Callable[..., DataSplits], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed process leaves the index it wrote last."""
    monkeypatch.setattr(checking, "BLOCK", 4)
    monkeypatch.setattr(checking, "SAVE_SECONDS", 0.0)
    states: list[int] = []
    save = checking._save

    def recording(path: Path, rows) -> None:
        save(path, rows)
        states.append(int((rows["state"] == checking.GOOD).sum()))

    monkeypatch.setattr(checking, "_save", recording)
    read()
    assert states == [4, 8, 12, 16, 20, 22, 22]


def test_a_repaired_image_is_read_again(
    read: Callable[..., DataSplits], paths: Callable[[StoredImages], list[Path]]
) -> None:
    whole = read()
    path = paths(whole.train)[0]
    content = path.read_bytes()
    path.write_bytes(b"no image")
    for _ in range(2):
        with pytest.raises(InputError, match=path.name):
            read()
    assert len(read(skip_corrupt=True).train) == len(whole.train) - 1
    path.write_bytes(content)
    assert read().sha256 == whole.sha256


def test_an_image_that_could_not_be_read_is_tried_again(
    read: Callable[..., DataSplits], paths: Callable[[StoredImages], list[Path]]
) -> None:
    """Even if nothing about its file has changed: the disk may have been at fault."""
    whole = read()
    path = paths(whole.train)[0]
    content = path.read_bytes()
    path.write_bytes(b"no image".ljust(len(content), b"\0"))
    with pytest.raises(InputError, match=path.name):
        read()
    replace_keeping_times(path, content)
    assert read().sha256 == whole.sha256


@pytest.mark.parametrize("damage", ["truncated", "garbage", "another version"])
def test_a_damaged_index_is_rebuilt(
    root: Path, tmp_path: Path, read: Callable[..., DataSplits], decoded: list[int], damage: str
) -> None:
    whole = read()
    (file,) = (tmp_path / "index").iterdir()
    if damage == "another version":
        np.save(file, np.load(file)[["name", "size", "sha256"]])
    else:
        file.write_bytes(file.read_bytes()[:1000] if damage == "truncated" else b"garbage")
    decoded.clear()
    assert read().sha256 == whole.sha256
    assert len(decoded) == 22
    read()
    assert len(decoded) == 22


def test_data_folders_share_a_folder_of_indices(tmp_path: Path, classes_at: Draw, decoded: list[int]) -> None:
    folders = [classes_at(tmp_path / side / "animals", {"a": 5}, seed) for seed, side in enumerate("lr")]
    for _ in range(2):
        identities = {read_data(folder, 8, index=tmp_path / "index").sha256 for folder in folders}
        assert len(identities) == 2
    assert len(decoded) == 10
    assert len(list((tmp_path / "index").iterdir())) == 2
