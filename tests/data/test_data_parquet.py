"""Parquet files: unpacked once, resumed, and unpacked again where something changed; one line for every fault."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from containers import Rows, write_parquet
from tar_shards import message

from imagefolder.data import parquet
from imagefolder.data.folder import read_data
from imagefolder.data.imagenet import synsets_of
from imagefolder.errors import InputError
from imagefolder.locks import file_lock

Draw = Callable[..., Path]
PETS = ["dog", "cat"]


@pytest.fixture
def rows(tmp_path: Path, image_at: Draw) -> Rows:
    """Ten images of two classes."""
    return [(image_at(tmp_path / "images" / f"{i}.png", i).read_bytes(), f"{i}.png", i % 2) for i in range(10)]


@pytest.fixture
def pets(tmp_path: Path, rows: Rows) -> Path:
    for part in range(2):
        write_parquet(tmp_path / "pets" / f"train-0000{part}-of-00002.parquet", rows[5 * part : 5 * part + 5], PETS)
    return tmp_path / "pets"


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return tmp_path / "out" / "data-index"


@pytest.fixture
def unpacked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows with every file that is unpacked."""
    calls: list[str] = []
    unpack = parquet._unpack

    def counting(file: parquet.ParquetImages, *rest: object) -> None:
        unpack(file, *rest)
        calls.append(file.path.name)

    monkeypatch.setattr(parquet, "_unpack", counting)
    return calls


def test_files_are_unpacked_once_and_again_when_they_change(
    pets: Path, rows: Rows, index: Path, unpacked: list[str]
) -> None:
    first = read_data(pets, 8, index=index)
    assert (len(first.train), len(first.test), first.classes, first.name) == (8, 2, ["cat", "dog"], "pets")
    assert len(unpacked) == 2
    assert read_data(pets, 8, index=index).sha256 == first.sha256
    assert len(unpacked) == 2
    write_parquet(pets / "train-00001-of-00002.parquet", rows[5:9], PETS)
    assert len(read_data(pets, 8, index=index).train) == 7
    assert len(unpacked) == 3
    (pets / "train-00001-of-00002.parquet").unlink()
    assert len(read_data(pets, 8, index=index).train) == 3
    assert len(unpacked) == 3
    assert len(list(index.rglob("*.tar"))) == 1


@pytest.mark.parametrize("damage", ["shard", "document", "shard gone"])
def test_damage_to_what_was_unpacked_is_repaired(pets: Path, index: Path, unpacked: list[str], damage: str) -> None:
    first = read_data(pets, 8, index=index)
    shard = sorted(index.rglob("*.tar"))[0]
    if damage == "shard gone":
        shard.unlink()
    else:
        path = shard if damage == "shard" else shard.with_suffix(".json")
        path.write_bytes(path.read_bytes()[:-5] + b"x" * 5)
    assert read_data(pets, 8, index=index).sha256 == first.sha256
    assert len(unpacked) == 3


def test_an_interrupted_unpacking_resumes(pets: Path, index: Path, unpacked: list[str], monkeypatch) -> None:
    whole = parquet.ParquetImages.rows

    def interrupted(file: parquet.ParquetImages):
        for number, row in enumerate(whole(file)):
            if file.path.name.startswith("train-00001") and number == 3:
                raise KeyboardInterrupt
            yield row

    with monkeypatch.context() as patch:
        patch.setattr(parquet.ParquetImages, "rows", interrupted)
        with pytest.raises(KeyboardInterrupt):
            read_data(pets, 8, index=index)
    assert [path.name for path in index.rglob("*.tar")] == ["train-00000-of-00002.parquet.tar"]
    assert read_data(pets, 8, index=index).sha256 == read_data(pets, 8).sha256
    assert unpacked[:2] == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]


def test_a_second_process_waits(pets: Path, index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read_data(pets, 8, index=index)
    (lock,) = index.rglob(".lock")
    with file_lock(lock):
        thread = threading.Thread(target=read_data, args=(pets, 8), kwargs={"index": index})
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
    thread.join(20)
    assert not thread.is_alive()
    assert "another process is unpacking it" in capsys.readouterr().out


def test_too_little_disk_space(pets: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000))
    with pytest.raises(InputError, match=rf"^{pets}: unpacking .* takes [\d,]+ bytes, but .* has 1,000 free"):
        read_data(pets, 8, index=index)


def test_without_pyarrow_one_line(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert message(pets).endswith("parquet files are read by pyarrow: pip install pyarrow")


@pytest.mark.parametrize("names", ["val-0.parquet", "validation-00000-of-00001.parquet", "test-0.parquet"])
@pytest.mark.parametrize("place", ["", "data", "folders"])
def test_splits_by_name(tmp_path: Path, rows: Rows, names: str, place: str) -> None:
    root = tmp_path / "pets"
    for name, part in (("train-0.parquet", rows[:6]), (names, rows[6:])):
        inside = f"{name.split('-')[0]}/0000.parquet" if place == "folders" else f"{place}/{name}".lstrip("/")
        write_parquet(root / inside, part, PETS)
    splits = read_data(root, 8)
    assert (len(splits.train), len(splits.test), splits.left_out) == (6, 4, {})


def test_further_and_unlabelled_test_splits_are_left_out(tmp_path: Path, rows: Rows) -> None:
    root = tmp_path / "pets"
    write_parquet(root / "train-0.parquet", rows, PETS)
    write_parquet(root / "test-0.parquet", [(content, name, -1) for content, name, _ in rows[:3]], PETS)
    splits = read_data(root, 8)
    assert (len(splits.train), len(splits.test), splits.left_out) == (8, 2, {"in test/": 3})
    pq.write_table(pa.table({"image": [content for content, *_ in rows[:3]]}), root / "test-0.parquet")
    assert read_data(root, 8).left_out == {"in test/": 3}
    write_parquet(root / "validation-0.parquet", rows[:4], PETS)
    splits = read_data(root, 8)
    assert (len(splits.train), len(splits.test), splits.left_out) == (10, 4, {"in test/": 3})


def test_plain_bytes_and_columns_of_other_names(tmp_path: Path, rows: Rows) -> None:
    expected = read_data(write_parquet(tmp_path / "a" / "pets.parquet", rows, PETS), 8)
    other = write_parquet(tmp_path / "b" / "pets.parquet", rows, PETS, ("img", "fine"), row_group_size=3)
    assert read_data(other, 8).sha256 == expected.sha256
    table = pa.table({"image": [content for content, *_ in rows], "label": [PETS[label] for *_, label in rows]})
    pq.write_table(table, tmp_path / "c.parquet")
    splits = read_data(tmp_path / "c.parquet", 8)
    assert (splits.sha256, splits.classes) == (expected.sha256, expected.classes)


def test_imagenets_readable_names_are_mapped_to_synsets(tmp_path: Path, rows: Rows) -> None:
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    names = [info.index_to_description(label) for label in range(1000)]
    names[517] = "crane2"  # the two cranes need different names
    assert synsets_of(names) == info.label_names()
    assert synsets_of(names[::-1]) is None
    assert synsets_of(PETS) is None
    some: Rows = [(content, None, (207, 1)[int(name[0]) % 2]) for content, name, _ in rows if name]
    splits = read_data(write_parquet(tmp_path / "train-0.parquet", some, names), 8)
    assert (splits.classes, splits.imagenet_labels) == (["n01443537", "n02099601"], [1, 207])


@pytest.mark.parametrize("paths", [("n01440764_1.JPEG", "n02099601_1.JPEG"), ("a_n01440764.JPEG", "b_n01440764.JPEG")])
def test_names_of_files_that_do_not_tell_every_class_are_ignored(
    tmp_path: Path, rows: Rows, paths: tuple[str, str]
) -> None:
    named: Rows = [(content, paths[i % 2], i % 2) for i, (content, *_) in enumerate(rows)]
    assert read_data(write_parquet(tmp_path / "x.parquet", named, PETS), 8).classes == ["cat", "dog"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ((None, "x.png", 0), "row 4 holds no image, only the path x.png"),
        ((b"x", None, -1), "row 4 has no class (label -1)"),
        ((b"x", None, None), "row 4 has no class (label None)"),
        ((b"x", None, 2), "row 4 is of class 2, but the file names 2 classes"),
        ((b"x", None, 0), "train-0.parquet.tar: row4.jpg: not a readable image"),
    ],
)
def test_faulty_rows_are_named(tmp_path: Path, rows: Rows, row, reason: str) -> None:
    root = tmp_path / "pets"
    write_parquet(root / "train-0.parquet", [*rows[:4], row, *rows[4:]], PETS)
    text = message(root)
    assert "train-0.parquet" in text
    assert reason in text


@pytest.mark.parametrize("damage", ["truncated", "garbage", "page"])
def test_damaged_files_are_named(pets: Path, damage: str) -> None:
    path = pets / "train-00001-of-00002.parquet"
    content = path.read_bytes()
    page = content[:4] + b"\xff" * 100 + content[104:]
    path.write_bytes({"truncated": content[:-50], "garbage": b"x" * 2000, "page": page}[damage])
    assert f"{path}: not readable as a parquet file" in message(pets)


def test_columns_that_are_missing_or_of_another_kind(tmp_path: Path, rows: Rows) -> None:
    path = tmp_path / "x.parquet"
    for table, reason in (
        ({"picture": [b"x"], "label": [0]}, "no column image among picture, label; rename the one meant"),
        ({"image": [b"x"], "class": [0]}, "no column label among image, class"),
        ({"image": [[1, 2]], "label": [0]}, "column image is list"),
        ({"image": [b"x"], "label": [0.5]}, "column label is double; expected integers or text"),
        ({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}, "no rows"),
    ):
        pq.write_table(pa.table(table), path)
        assert reason in message(path)


def test_splits_that_do_not_fit_together(tmp_path: Path, rows: Rows) -> None:
    root = tmp_path / "pets"
    write_parquet(root / "train-0.parquet", rows, PETS)
    write_parquet(root / "validation-0.parquet", rows[::2], PETS)
    assert "train and validation have different classes: cat" in message(root)
    write_parquet(root / "more.parquet", rows, PETS)
    assert "more.parquet: of no split; name it train-... or validation-..." in message(root)
    (root / "more.parquet").unlink()
    (root / "train-0.parquet").unlink()
    assert "parquet files of validation, but none of train" in message(root)


def test_a_stray_parquet_file_beside_class_folders_changes_nothing(tmp_path: Path, classes_at: Draw) -> None:
    root = classes_at(tmp_path / "pets", {"cat": 5, "dog": 5})
    before = read_data(root, 8).sha256
    (root / "metadata.parquet").write_bytes(b"x")
    assert read_data(root, 8).sha256 == before


def test_an_output_folder_that_cannot_be_written(pets: Path, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(InputError, match="choose another folder with --output"):
        read_data(pets, 8, index=tmp_path / "out" / "data-index")
    os.unlink(tmp_path / "out")
