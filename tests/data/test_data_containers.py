"""One data set in a folder, zip, tar and parquet files: the same hash, order and split."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from containers import Rows, tar_of, write_parquet, zip_of
from tar_shards import Members, message, write_shard

from imagefolder.data.folder import read_data
from imagefolder.data.images import DataSplits
from imagefolder.data.order import ordered_batches

Draw = Callable[..., Path]
SYNSETS = {"n02099601": "golden retriever", "n01440764": "tench, Tinca tinca", "n15075141": "toilet tissue"}
"""not in the order of their numbers, nor the names in alphabetical order"""


def files_of(folder: Path) -> list[Path]:
    """The images below a folder, in an order of their own."""
    files = sorted(folder.rglob("*.png"))
    random.Random(len(files)).shuffle(files)
    return files


def kaggle_of(folder: Path, root: Path) -> Path:
    """ImageNet as Kaggle distributes it, with the images of train/ and val/."""
    lines = ["ImageId,PredictionString"]
    for number, file in enumerate(files_of(folder / "val")):
        target = root / "ILSVRC/Data/CLS-LOC/val" / f"ILSVRC2012_val_{number:08}.JPEG"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
        lines.append(f"{target.stem},{file.parent.name} 85 1 499 272 {file.parent.name} 1 2 3 4 ")
    for number, file in enumerate(files_of(folder / "train")):
        synset = file.parent.name
        target = root / "ILSVRC/Data/CLS-LOC/train" / synset / f"{synset}_{number}.JPEG"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    (root / "LOC_val_solution.csv").write_text("\n".join(sorted(lines, reverse=True)) + "\n")
    (root / "LOC_synset_mapping.txt").write_text("n01440764 tench\n")
    for name in ("ILSVRC/ImageSets/CLS-LOC/val.txt", "ILSVRC/Annotations/CLS-LOC/val/ILSVRC2012_val_00000000.xml"):
        (root / name).parent.mkdir(parents=True)
        (root / name).touch()
    return root


def shards_of(folder: Path, root: Path) -> Path:
    for split in ("train", "val"):
        members: Members = {}
        for number, file in enumerate(files_of(folder / split)):
            members[f"{number}.jpg"] = file.read_bytes()
            members[f"{number}.cls"] = b"%d" % list(SYNSETS).index(file.parent.name)
        write_shard(root / split / "0.tar", members)
    (root / "classes.txt").write_text("\n".join(SYNSETS))
    return root


def parquet_of(folder: Path, root: Path) -> Path:
    for split, name in (("train", "train"), ("val", "validation")):
        rows: Rows = []
        for number, file in enumerate(files_of(folder / split)):
            synset = file.parent.name
            rows.append((file.read_bytes(), f"{synset}_{number}_{synset}.JPEG", list(SYNSETS).index(synset)))
        half = len(rows) // 2
        for part, some in enumerate((rows[:half], rows[half:])):
            write_parquet(root / "data" / f"{name}-{part:05}-of-00002.parquet", some, list(SYNSETS.values()))
    (root / "README.md").touch()
    return root


def compared(splits: DataSplits) -> tuple[object, ...]:
    rows = [images.rows["sha256"].tobytes() for images in (splits.train, splits.test)]
    return splits.sha256, rows, splits.name, splits.classes, splits.imagenet_labels, splits.left_out


@pytest.fixture
def folder(tmp_path: Path, classes_at: Draw) -> Path:
    classes_at(tmp_path / "folder" / "few" / "train", dict.fromkeys(SYNSETS, 5))
    classes_at(tmp_path / "folder" / "few" / "val", dict.fromkeys(SYNSETS, 3), seed=500)
    return tmp_path / "folder" / "few"


@pytest.mark.parametrize("kind", ["parquet", "kaggle", "kaggle zip", "zip", "wrapped zip", "tar", "shards"])
def test_every_container_gives_the_same_data_set(folder: Path, tmp_path: Path, kind: str) -> None:
    other = tmp_path / "other" / "few"
    if kind == "parquet":
        parquet_of(folder, other)
    elif kind == "kaggle":
        kaggle_of(folder, other)
    elif kind == "kaggle zip":
        other = zip_of(other.with_suffix(".zip"), kaggle_of(folder, tmp_path / "unpacked"))
    elif kind == "shards":
        shards_of(folder, other)
    elif kind == "tar":
        other = tar_of(other.with_suffix(".tar"), folder)
    else:
        other = zip_of(other.with_suffix(".zip"), folder, "few/" if kind == "wrapped zip" else "")
    expected = read_data(folder, 8)
    index = tmp_path / "out" / "data-index"
    for _ in range(2):  # the second time from the index
        splits = read_data(other, 8, index=index)
        assert compared(splits) == compared(expected)
    assert (len(splits.train), len(splits.test), splits.imagenet_labels) == (15, 9, [0, 207, 999])
    for ours, theirs in ((splits.train, expected.train), (splits.test, expected.test)):
        (batch, labels), (wanted, wanted_labels) = (next(iter(ordered_batches(i, 100))) for i in (ours, theirs))
        assert torch.equal(batch, wanted)
        assert torch.equal(labels, wanted_labels)
        ours.verify()


@pytest.mark.parametrize("kind", ["parquet", "parquet with text", "zip", "tar", "tar with cls"])
def test_every_container_holds_out_the_same_images(tmp_path: Path, classes_at: Draw, kind: str) -> None:
    names = [str(number) for number in range(11)]
    folder, other = classes_at(tmp_path / "few", dict.fromkeys(names, 5)), tmp_path / "other" / "few"
    files = files_of(folder)
    if kind == "zip":
        other = zip_of(other.with_suffix(".zip"), folder)
    elif kind == "tar":
        other = tar_of(other.with_suffix(".tar"), folder)
    elif kind == "tar with cls":
        images = {f"{number}.png": file.read_bytes() for number, file in enumerate(files)}
        classes = {f"{number}.cls": file.parent.name.encode() for number, file in enumerate(files)}
        other = write_shard(other.with_suffix(".tar"), images | classes)
    else:
        number = str if kind == "parquet with text" else int
        rows: Rows = [(file.read_bytes(), None, number(file.parent.name)) for file in files]
        other = write_parquet(other.with_suffix(".parquet"), rows)
    splits = read_data(other, 8, index=tmp_path / "out" / "data-index")
    assert compared(splits) == compared(read_data(folder, 8))
    assert (len(splits.train), len(splits.test), splits.classes) == (44, 11, names)


def test_a_tar_with_class_indices_may_name_its_classes(tmp_path: Path, pixels: bytes) -> None:
    both = {"a.jpg": pixels, "a.cls": b"0", "b.jpg": pixels, "b.cls": b"0", "c.jpg": pixels, "c.cls": b"1"}
    both |= {"d.png": pixels, "d.cls": b"1", "classes.txt": b"dogs\ncats\n", "a.json": b"{}", "._x.jpg": b"x"}
    splits = read_data(write_shard(tmp_path / "pets.tar", both), 8)
    assert splits.classes == ["cats", "dogs"]
    assert splits.train.rows["name"].tolist() in ([b"c.jpg", b"a.jpg"], [b"d.png", b"b.jpg"])
    assert splits.left_out == {"hidden": 1, "of other kinds": 1}


def test_a_tar_with_splits_and_class_indices_is_refused(tmp_path: Path, pixels: bytes) -> None:
    both = {f"{split}/{name}": content for split in ("train", "val") for name, content in (("a.jpg", pixels),)}
    both |= {f"{split}/a.cls": b"0" for split in ("train", "val")}
    assert "pack the splits into train/*.tar and val/*.tar" in message(write_shard(tmp_path / "pets.tar", both))


def test_a_tar_of_class_folders_counts_what_it_leaves_out(tmp_path: Path, pixels: bytes) -> None:
    members = {"cats/a.png": pixels, "cats/b.png": pixels, "README.txt": b"x", "cats/a.json": b"{}", ".x": b""}
    splits = read_data(write_shard(tmp_path / "pets.tar", members), 8)
    assert splits.left_out == {"hidden": 1, "of other kinds": 2}
