"""Image folders: layouts, splits and identity."""

from __future__ import annotations

import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from imagefolder.data.folder import read_data
from imagefolder.data.stored import StoredImages

CLASSES = {"cats": 10, "dogs": 12, "owls": 2}
Draw = Callable[..., Path]
Names = Callable[[StoredImages], set[str]]


@pytest.fixture
def names(paths: Callable[[StoredImages], list[Path]]) -> Names:
    return lambda images: {f"{path.parent.name}/{path.name}" for path in paths(images)}


def test_a_fifth_of_every_class_is_the_test_split(tmp_path: Path, classes_at: Draw, names: Names) -> None:
    splits = read_data(classes_at(tmp_path / "animals", CLASSES), 8)
    assert splits.name == "animals"
    assert splits.classes == ["cats", "dogs", "owls"]
    assert splits.test.labels.bincount().tolist() == [2, 2, 1]
    assert splits.train.labels.bincount().tolist() == [8, 10, 1]
    assert not names(splits.train) & names(splits.test)


def test_neither_split_nor_order_depends_on_the_names_of_files(tmp_path: Path, classes_at: Draw) -> None:
    root = classes_at(tmp_path / "a", CLASSES)
    first = read_data(root, 8)
    for i, path in enumerate(sorted(root.rglob("*.png"), reverse=True)):
        path.rename(path.with_name(f"{i:02}.jpg"))
    second = read_data(root, 8)
    assert second.sha256 == first.sha256
    for ours, theirs in ((first.train, second.train), (first.test, second.test)):
        assert isinstance(ours, StoredImages)
        assert isinstance(theirs, StoredImages)
        assert (ours.rows["sha256"] == theirs.rows["sha256"]).all()
        assert (ours.rows["name"] != theirs.rows["name"]).all()


def test_classes_are_in_the_order_of_their_names_or_numbers(tmp_path: Path, classes_at: Draw) -> None:
    numbers = read_data(classes_at(tmp_path / "numbers", {"10": 2, "9": 2, "007": 2}), 8)
    assert numbers.classes == ["007", "9", "10"]
    assert read_data(classes_at(tmp_path / "names", {"10": 2, "9": 2, "x": 2}), 8).classes == ["10", "9", "x"]


def test_adding_one_image_moves_few_others(tmp_path: Path, classes_at: Draw, image_at: Draw, names: Names) -> None:
    root = classes_at(tmp_path, CLASSES)
    before = names(read_data(root, 8).test)
    image_at(root / "cats" / "new.png", 7)
    after = names(read_data(root, 8).test)
    assert len(before ^ after) <= 2


def test_train_and_val_folders_are_the_splits(
    tmp_path: Path, classes_at: Draw, paths: Callable[[StoredImages], list[Path]]
) -> None:
    classes_at(tmp_path / "train", {"a": 3, "b": 4})
    classes_at(tmp_path / "val", {"a": 2, "b": 1}, seed=50)
    splits = read_data(tmp_path, 8)
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert splits.test.labels.tolist() == [0, 0, 1]
    assert {path.parent.parent.name for path in paths(splits.test)} == {"val"}


def test_nested_and_upper_case_files_are_found_and_others_ignored(
    tmp_path: Path, classes_at: Draw, image_at: Draw
) -> None:
    root = classes_at(tmp_path, {"a": 2})
    image_at(root / "a" / "deep" / "x.PNG", 1)
    (root / "a" / "notes.txt").write_text("not an image")
    (root / ".cache").mkdir()
    splits = read_data(root, 8)
    assert splits.classes == ["a"]
    assert len(splits.train) + len(splits.test) == 3


def test_identity_changes_with_the_content_of_any_file(tmp_path: Path, classes_at: Draw, image_at: Draw) -> None:
    root = classes_at(tmp_path, CLASSES)
    before = read_data(root, 8)
    times = (root / "owls").stat().st_mtime, (root / "owls" / "000.png").stat().st_mtime
    assert read_data(root, 8).sha256 == before.sha256
    image_at(root / "owls" / "000.png", 12345)
    os.utime(root / "owls" / "000.png", times)
    assert read_data(root, 8).sha256 != before.sha256


def test_identity_covers_labels(tmp_path: Path, classes_at: Draw) -> None:
    """The same images in the same order, one of them in the next class."""
    classes_at(tmp_path / "train", {"cats": 3, "dogs": 2})
    classes_at(tmp_path / "val", {"cats": 1, "dogs": 1}, seed=50)
    by_content = sorted((tmp_path / "train").rglob("*.png"), key=lambda path: sha256(path.read_bytes()).digest())
    for number, path in enumerate(by_content):
        path.rename(tmp_path / "train" / ("cats" if number < 3 else "dogs") / f"{number}.png")
    before = read_data(tmp_path, 8)
    (tmp_path / "train" / "cats" / "2.png").rename(tmp_path / "train" / "dogs" / "2.png")
    after = read_data(tmp_path, 8)
    assert (after.train.rows["sha256"] == before.train.rows["sha256"]).all()
    assert after.sha256 != before.sha256


def test_identity_changes_with_the_class_of_a_file(tmp_path: Path, classes_at: Draw) -> None:
    root = classes_at(tmp_path, CLASSES)
    before = read_data(root, 8).sha256
    (root / "cats" / "005.png").rename(root / "dogs" / "05.png")
    assert read_data(root, 8).sha256 != before
    assert read_data(root, 16).sha256 != read_data(root, 8).sha256
