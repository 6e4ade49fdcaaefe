"""Faulty image folders: one line that names what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from imagefolder.data.folder import read_data
from imagefolder.errors import InputError

Draw = Callable[..., Path]
Paths = Callable[..., list[Path]]


def message(root: Path, **options: bool) -> str:
    with pytest.raises(InputError) as caught:
        read_data(root, 8, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.fixture
def folder(tmp_path: Path, classes_at: Draw) -> Path:
    return classes_at(tmp_path / "animals", {"cats": 10, "dogs": 10})


@pytest.fixture
def train_and_test_file(folder: Path, paths: Paths) -> tuple[Path, Path]:
    splits = read_data(folder, 8)
    return paths(splits.train)[0], paths(splits.test)[0]


def test_missing_folder(tmp_path: Path) -> None:
    assert str(tmp_path / "nowhere") in message(tmp_path / "nowhere")


def test_file_instead_of_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in message(tmp_path / "file")


def test_empty_folder(tmp_path: Path) -> None:
    assert str(tmp_path) in message(tmp_path)


def test_images_without_class_folders(tmp_path: Path, image_at: Draw) -> None:
    image_at(tmp_path / "x.png", 0)
    text = message(tmp_path)
    assert str(tmp_path) in text
    assert "CLASS" in text


def test_class_folder_without_images(folder: Path) -> None:
    (folder / "eels").mkdir()
    (folder / "eels" / "readme.txt").touch()
    assert str(folder / "eels") in message(folder)


def test_different_classes_in_train_and_val(tmp_path: Path, classes_at: Draw) -> None:
    classes_at(tmp_path / "train", {"cats": 2, "dogs": 2})
    classes_at(tmp_path / "val", {"cats": 1, "eels": 1})
    text = message(tmp_path)
    assert "dogs" in text
    assert "eels" in text
    assert "cats" not in text


def test_too_few_images_for_a_test_split(tmp_path: Path, classes_at: Draw) -> None:
    text = message(classes_at(tmp_path, {"a": 1, "b": 1}))
    assert str(tmp_path) in text
    assert "test" in text


@pytest.mark.parametrize("content", ["garbage", "truncated", "empty"])
def test_corrupt_training_image_is_named_and_counted(
    folder: Path, train_and_test_file: tuple[Path, Path], content: str
) -> None:
    train, _ = train_and_test_file
    whole = train.read_bytes()
    train.write_bytes({"garbage": b"no image" * 50, "truncated": whole[: len(whole) // 2], "empty": b""}[content])
    text = message(folder)
    assert str(train) in text
    assert "1 corrupt" in text
    assert "--skip-corrupt" in text


def test_many_corrupt_images_are_counted_and_some_named(folder: Path) -> None:
    for path in (folder / "cats").iterdir():
        path.write_bytes(b"no image")
    text = message(folder)
    assert "10 corrupt" in text
    assert text.count(".png") == 5


def test_skip_corrupt_leaves_training_images_out(
    folder: Path, train_and_test_file: tuple[Path, Path], paths: Paths, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = read_data(folder, 8)
    train, _ = train_and_test_file
    train.write_bytes(b"no image")
    splits = read_data(folder, 8, skip_corrupt=True)
    assert len(splits.train) == len(whole.train) - 1
    assert train not in paths(splits.train)
    assert paths(splits.test) == paths(whole.test)  # a fifth of what there was
    assert splits.sha256 != whole.sha256
    assert str(train) in capsys.readouterr().out


def test_corrupt_image_of_a_test_split_is_an_error_even_with_skip_corrupt(tmp_path: Path, classes_at: Draw) -> None:
    classes_at(tmp_path / "train", {"cats": 2})
    test = classes_at(tmp_path / "val", {"cats": 2}) / "cats" / "001.png"
    test.write_bytes(b"no image")
    text = message(tmp_path, skip_corrupt=True)
    assert str(test) in text
    assert "--skip-corrupt" not in text


def test_class_whose_training_images_are_all_corrupt(folder: Path, paths: Paths) -> None:
    for path in paths(read_data(folder, 8).train):
        if path.parent.name == "dogs":
            path.write_bytes(b"no image")
    assert "'dogs'" in message(folder, skip_corrupt=True)


def test_a_broken_link_is_a_corrupt_image(folder: Path) -> None:
    link = folder / "cats" / "0.png"
    link.symlink_to(folder / "gone.png")
    assert str(link) in message(folder)


def test_an_image_that_disappeared_is_named(folder: Path, train_and_test_file: tuple[Path, Path]) -> None:
    train = read_data(folder, 8).train
    train_and_test_file[0].unlink()
    with pytest.raises(InputError, match=train_and_test_file[0].name):
        train.__getitems__([(0, 0)])
