"""Tar shards: the same images as in folders, in any order, and one line for every fault."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tar_shards import Members, message, one_shard_each, write_shard

import imagefolder.data.checking
import imagefolder.data.shards
from imagefolder.data.folder import read_data
from imagefolder.data.images import DataSplits
from imagefolder.data.order import ordered_batches, training_batches
from imagefolder.errors import InputError

Draw = Callable[..., Path]


@pytest.fixture
def folders(tmp_path: Path, classes_at: Draw) -> Path:
    classes_at(tmp_path / "folders" / "train", {"cats": 6, "dogs": 8})
    classes_at(tmp_path / "folders" / "val", {"cats": 2, "dogs": 3}, seed=50)
    return tmp_path / "folders"


def pack(folders: Path, root: Path, layout: str) -> Path:
    """The images of class folders, four to a shard, in the order of the folders."""
    for split in ("train", "val"):
        files = sorted((folders / split).rglob("*.png"))
        for start in range(0, len(files), 4):
            members: Members = {}
            for number, file in enumerate(files[start : start + 4], start):
                if layout == "folders":
                    members[f"{file.parent.name}/{file.name}"] = file.read_bytes()
                else:
                    members[f"{number:06}.json"] = b"{}"
                    members[f"{number:06}.png"] = file.read_bytes()
                    members[f"{number:06}.cls"] = b"%d" % ["cats", "dogs"].index(file.parent.name)
            write_shard(root / split / f"{start:04}.tar", members)
    return root


@pytest.fixture(params=["folders", "cls", "cls with names"])
def shards(request: pytest.FixtureRequest, folders: Path, tmp_path: Path) -> Path:
    root = pack(folders, tmp_path / "shards", request.param)
    if request.param == "cls with names":
        (root / "classes.txt").write_text("cats\ndogs\n")
    return root


def test_shards_hold_the_images_of_the_folders(folders: Path, shards: Path) -> None:
    expected, splits = read_data(folders, 8), read_data(shards, 8)
    assert splits.classes in (["cats", "dogs"], ["0", "1"])
    assert splits.name == "shards"
    assert splits.sha256 == expected.sha256  # the same content in the same order
    for ours, theirs in ((splits.train, expected.train), (splits.test, expected.test)):
        (batch, labels), (wanted, wanted_labels) = (next(iter(ordered_batches(i, 100))) for i in (ours, theirs))
        assert torch.equal(batch, wanted)
        assert torch.equal(labels, wanted_labels)


def test_training_from_shards_sees_the_same_batches_as_from_folders(folders: Path, tmp_path: Path) -> None:
    """In the middle of a training, with worker processes, augmented."""
    images = read_data(pack(folders, tmp_path / "shards", "cls"), 8).train.augmented("tokenizer", 0)
    expected = read_data(folders, 8).train.augmented("tokenizer", 0)
    expected.workers = 0
    assert images.workers > 0
    both = zip(training_batches(images, 5, 1, 4, 9), training_batches(expected, 5, 1, 4, 9), strict=True)
    for (batch, labels), (wanted, wanted_labels) in both:
        assert torch.equal(batch, wanted)
        assert torch.equal(labels, wanted_labels)


def test_with_an_index_neither_headers_nor_images_are_read_again(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read() -> DataSplits:
        return read_data(shards, 8, index=tmp_path / "index")

    def again(*_: object) -> None:
        raise AssertionError("read again")

    before = read()
    with monkeypatch.context() as patch:
        patch.setattr(imagefolder.data.shards, "read_headers", again)
        patch.setattr(imagefolder.data.checking, "open_rgb", again)
        after = read()
    assert (after.sha256, after.left_out) == (before.sha256, before.left_out)


def test_a_shard_changed_except_for_size_and_time_is_read_again(shards: Path, tmp_path: Path) -> None:
    before = read_data(shards, 8, index=tmp_path / "index").sha256
    shard = shards / "train" / "0004.tar"
    content, status = shard.read_bytes(), shard.stat()
    shard.write_bytes(b"\1" * len(content))
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(InputError, match=r"train/0004\.tar"):
        read_data(shards, 8, index=tmp_path / "index")
    shard.write_bytes(content)
    assert read_data(shards, 8, index=tmp_path / "index").sha256 == before


def test_a_changed_shard_is_read_again(folders: Path, tmp_path: Path, image_at: Draw) -> None:
    root = pack(folders, tmp_path / "shards", "cls")
    before = read_data(root, 8, index=tmp_path / "index")
    picture = image_at(tmp_path / "new.png", 77).read_bytes()
    write_shard(root / "train" / "0004.tar", {"a.png": picture, "a.cls": b"1"})
    after = read_data(root, 8, index=tmp_path / "index")
    assert len(after.train) == len(before.train) - 3
    assert after.sha256 == read_data(root, 8).sha256 != before.sha256


def test_a_member_that_could_not_be_read_is_tried_again(folders: Path, tmp_path: Path) -> None:
    root = pack(folders, tmp_path / "shards", "cls")
    before = read_data(root, 8).sha256
    shard = root / "train" / "0004.tar"
    content = shard.read_bytes()
    with tarfile.open(shard) as tar:
        start = next(member.offset_data for member in tar if member.name.endswith(".png"))
    shard.write_bytes(content[:start] + b"no image" + content[start + 8 :])
    with pytest.raises(InputError, match=r"0004\.tar: 000004\.png"):
        read_data(root, 8, index=tmp_path / "index")
    status = shard.stat()
    shard.write_bytes(content)
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert read_data(root, 8, index=tmp_path / "index").sha256 == before


def test_skip_corrupt_leaves_a_member_out(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken(folders / "train" / "dogs" / "003.png")
    root = pack(folders, tmp_path / "shards", "folders")
    assert len(read_data(root, 8, skip_corrupt=True).train) == 13
    assert f"{root}/train/0008.tar: dogs/003.png" in capsys.readouterr().out


def broken(path: Path) -> bytes:
    path.write_bytes(b"no image")
    return b"no image"


def test_unreadable_image(folders: Path, tmp_path: Path) -> None:
    broken(folders / "val" / "dogs" / "001.png")
    root = pack(folders, tmp_path / "shards", "cls")
    text = message(root)
    assert f"{root}/val/0000.tar: 000003.png" in text
    assert "1 corrupt" in text


@pytest.mark.parametrize("left", [0, 100, 512, 700, 3000, "all but the end"])
def test_truncated_shard(shards: Path, left: int | str) -> None:
    shard = shards / "train" / "0008.tar"
    content = shard.read_bytes()
    with tarfile.open(shard) as tar:
        end = tar.getmembers()[-1].offset_data + 512 * -(-tar.getmembers()[-1].size // 512)
    shard.write_bytes(content[: end if left == "all but the end" else left])
    text = message(shards)
    assert str(shard) in text
    assert "tar file" in text or "truncated" in text


def test_damaged_header_in_the_middle(shards: Path) -> None:
    shard = shards / "train" / "0000.tar"
    content = bytearray(shard.read_bytes())
    with tarfile.open(shard) as tar:
        start = tar.getmembers()[2].offset
    content[start : start + 200] = b"\7" * 200
    shard.write_bytes(content)
    assert f"{shard}: truncated or damaged at byte {start}" in message(shards)


def test_missing_cls_in_a_shard(tmp_path: Path, pixels: bytes) -> None:
    good = {"a.png": pixels, "a.cls": b"0"}
    text = message(one_shard_each(tmp_path, {**good, "b.png": pixels}, good))
    assert "train/0.tar: b.png has no .cls member" in text


def test_shard_without_any_cls_among_others(tmp_path: Path, pixels: bytes) -> None:
    text = message(one_shard_each(tmp_path, {"a.png": pixels, "a.cls": b"0"}, {"0/b.png": pixels}))
    assert "val/0.tar: 0/b.png has no .cls member" in text


def test_neither_cls_nor_class_folder(tmp_path: Path, pixels: bytes) -> None:
    text = message(one_shard_each(tmp_path, {"cats/a.png": pixels, "b.png": pixels}, {"cats/a.png": pixels}))
    assert "train/0.tar: b.png" in text


@pytest.mark.parametrize("text", [b"cat", b"-1", b"", b"1.5"])
def test_cls_without_a_class_index(tmp_path: Path, pixels: bytes, text: bytes) -> None:
    good = {"a.png": pixels, "a.cls": b"0\n"}
    assert "train/0.tar: b.cls" in message(one_shard_each(tmp_path, {**good, "b.png": pixels, "b.cls": text}, good))


def test_label_without_a_name(tmp_path: Path, pixels: bytes) -> None:
    both = {"a.png": pixels, "a.cls": b"0", "b.png": pixels, "b.cls": b"2"}
    root = one_shard_each(tmp_path, both, both)
    (root / "classes.txt").write_text("cats\ndogs\n")
    text = message(root)
    assert "train/0.tar: b.png is of class 2" in text
    assert "names 2 classes" in text
    (root / "classes.txt").write_text("cats\ndogs\ncats\n")
    assert "cats is listed twice" in message(root)


def test_class_index_that_no_image_has(tmp_path: Path, pixels: bytes) -> None:
    both = {"a.png": pixels, "a.cls": b"0", "b.png": pixels, "b.cls": b"2"}
    assert "class '1' has no readable training image" in message(one_shard_each(tmp_path, both, both))


@pytest.mark.parametrize("layout", ["cls", "folders"])
def test_different_classes_in_train_and_val(tmp_path: Path, pixels: bytes, layout: str) -> None:
    def members(*classes: int) -> Members:
        if layout == "folders":
            return {f"class{c}/x.png": pixels for c in classes}
        return {f"{c}.{suffix}": pixels if suffix == "png" else b"%d" % c for c in classes for suffix in ("png", "cls")}

    text = message(one_shard_each(tmp_path, members(0, 1), members(0, 2)))
    assert "different classes" in text
    assert ("1, 2" if layout == "cls" else "class1, class2") in text


def test_shards_in_one_split_only(tmp_path: Path, pixels: bytes, classes_at: Draw) -> None:
    write_shard(tmp_path / "train" / "0.tar", {"cats/a.png": pixels})
    classes_at(tmp_path / "val", {"cats": 2})
    assert str(tmp_path / "val") in message(tmp_path)


def test_shard_without_images(tmp_path: Path, pixels: bytes) -> None:
    assert "val/0.tar: holds no images" in message(one_shard_each(tmp_path, {"c/a.png": pixels}, {"c/a.txt": b"a"}))


def test_two_images_of_the_same_name(tmp_path: Path, pixels: bytes) -> None:
    text = message(one_shard_each(tmp_path, {"a.png": pixels, "a.jpg": pixels, "a.cls": b"0"}, {"c/a.png": pixels}))
    assert "train/0.tar: two images are named a" in text


def test_members_of_other_kinds_are_ignored(tmp_path: Path, pixels: bytes) -> None:
    """Folders, and the files that macOS adds to archives."""
    good = {"cats/a.png": pixels}
    root = one_shard_each(tmp_path, {**good, "cats/._a.png": b"finder"}, good)
    with tarfile.open(root / "train" / "1.tar", "w") as tar:
        folder = tarfile.TarInfo("cats")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        info = tarfile.TarInfo("cats/" + "long" * 60 + ".png")  # a name too long for a plain header
        info.size = len(pixels)
        tar.addfile(info, io.BytesIO(pixels))
    assert len(read_data(root, 8).train) == 2
