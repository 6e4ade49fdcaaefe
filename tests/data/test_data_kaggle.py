"""ImageNet as Kaggle distributes it: what is read, what is left out, and what is wrong with it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from containers import zip_of
from tar_shards import message

from imagefolder.data.folder import read_data

Draw = Callable[..., Path]
CLASSES = {"n01440764": 3, "n02099601": 3}
VAL = {"ILSVRC2012_val_00000001": "n02099601", "ILSVRC2012_val_00000002": "n01440764"}


@pytest.fixture
def kaggle(tmp_path: Path, classes_at: Draw, image_at: Draw) -> Path:
    root = tmp_path / "imagenet"
    data = root / "ILSVRC" / "Data" / "CLS-LOC"
    classes_at(data / "train", CLASSES)
    for number, stem in enumerate(VAL):
        shutil.move(image_at(data / "val" / f"{stem}.png", 50 + number), data / "val" / f"{stem}.JPEG")
    for number in range(4):
        image_at(data / "test" / f"ILSVRC2012_test_{number}.png", number)
    for name in ("ILSVRC/ImageSets/CLS-LOC/val.txt", "ILSVRC/Annotations/CLS-LOC/train/n01440764/a.xml"):
        (root / name).parent.mkdir(parents=True)
        (root / name).touch()
    for name in ("LOC_synset_mapping.txt", "LOC_train_solution.csv", "LOC_sample_submission.csv"):
        (root / name).write_text("what it holds does not matter\n")
    lines = [f"{stem},{synset} 85 1 499 272 {synset} 3 4 5 6 " for stem, synset in VAL.items()]
    (root / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *lines]))
    return root


@pytest.mark.parametrize("below", ["..", "", "ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC"])
def test_any_of_its_folders_may_be_given(kaggle: Path, below: str) -> None:
    splits = read_data(kaggle / below, 8)
    assert splits.classes == list(CLASSES)
    assert splits.imagenet_labels == [0, 207]
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert splits.test.labels.tolist() == [0, 1]
    assert splits.test.rows["name"][0].endswith(b"ILSVRC2012_val_00000002.JPEG")
    assert splits.left_out == {"in test/": 4}


def test_its_zip_is_read_like_the_folder(kaggle: Path, tmp_path: Path) -> None:
    splits = read_data(zip_of(tmp_path / "imagenet.zip", kaggle), 8)
    assert splits.sha256 == read_data(kaggle, 8).sha256
    assert splits.left_out == {"in test/": 4}


def test_val_without_its_list_is_refused(kaggle: Path) -> None:
    (kaggle / "LOC_val_solution.csv").unlink()
    text = message(kaggle)
    assert f"{kaggle}/ILSVRC/Data/CLS-LOC/val holds images without class folders" in text
    assert "LOC_val_solution.csv beside the folder ILSVRC" in text


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("ImageId,", "id,", "the first line must be ImageId,PredictionString"),
        ("n01440764 85 1 499 272 n01440764 3 4 5 6", "", "line 3: expected an image and its class"),
        ("_00000002,", "_00000001,", "line 3: expected an image and its class, each image once"),
        ("_00000002,", "_00000003,", "ILSVRC2012_val_00000002.JPEG: its class is not listed in"),
        ("ImageId,PredictionString", "ImageId,PredictionString\nx,n01440764 1", "val: x, listed in"),
        ("n01440764", "n15075141", "train and val have different classes: n01440764, n15075141"),
        ("85", "\udcff", "not readable as a list of labels in UTF-8"),
    ],
)
def test_faulty_lists_are_named(kaggle: Path, tmp_path: Path, old: str, new: str, reason: str) -> None:
    path = kaggle / "LOC_val_solution.csv"
    path.write_text(path.read_text().replace(old, new), errors="surrogateescape")
    for data in (kaggle, zip_of(tmp_path / "imagenet.zip", kaggle)):
        assert reason in message(data)
