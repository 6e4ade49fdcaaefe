"""Common layouts of data folders are read as intended or rejected; what is left out is counted."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from imagefolder.data.folder import read_data
from imagefolder.data.images import DataSplits
from imagefolder.errors import InputError

Draw = Callable[..., Path]
PETS = {"cat": 5, "dog": 5}


def rejection(root: Path, **options: object) -> str:
    """The error message for a data folder."""
    with pytest.raises(InputError) as caught:
        read_data(root, 8, **options)
    return str(caught.value)


def counts(splits: DataSplits) -> tuple[int, int, list[str]]:
    return len(splits.train), len(splits.test), splits.classes


@pytest.fixture
def pets(tmp_path: Path, classes_at: Draw) -> Path:
    return classes_at(tmp_path / "pets", PETS)


@pytest.mark.parametrize("test", ["val", "validation", "valid", "test"])
def test_train_and_a_test_split_of_any_common_name(tmp_path: Path, classes_at: Draw, test: str) -> None:
    classes_at(tmp_path / "train", {**PETS, "owl": 5})
    classes_at(tmp_path / test, {"cat": 2, "dog": 2, "owl": 2}, seed=9)
    splits = read_data(tmp_path, 8)
    assert counts(splits) == (15, 6, ["cat", "dog", "owl"])
    assert splits.left_out == {}


@pytest.mark.parametrize("test", ["val", "valid"])
def test_a_second_test_split_is_left_out_and_counted(
    tmp_path: Path, classes_at: Draw, test: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, split in enumerate(("train", test, "test"), 3):
        classes_at(tmp_path / split, {"cat": number, "dog": number})
    splits = read_data(tmp_path, 8)
    assert counts(splits) == (6, 8, ["cat", "dog"])
    assert splits.left_out == {"in test/": 10}
    assert "left out: 10 in test/" in capsys.readouterr().out


def test_the_unlabelled_test_folder_of_a_competition_is_left_out(
    tmp_path: Path, classes_at: Draw, image_at: Draw
) -> None:
    classes_at(tmp_path / "train", PETS)
    for i in range(3):
        image_at(tmp_path / "test" / f"{i}.png", i)
    splits = read_data(tmp_path, 8)
    assert counts(splits) == (8, 2, ["cat", "dog"])
    assert splits.left_out == {"in test/": 3}


@pytest.mark.parametrize("test", ["val", "test"])
def test_splits_without_classes_are_not_classes(tmp_path: Path, image_at: Draw, test: str) -> None:
    for split in ("train", test):
        image_at(tmp_path / split / "1.png", 0)
    assert "train is empty or has no class folders" in rejection(tmp_path)


def test_train_alone_is_split_like_a_folder_of_classes(tmp_path: Path, pets: Path, classes_at: Draw) -> None:
    classes_at(tmp_path / "alone" / "train", PETS)
    (tmp_path / "alone" / "notes").mkdir()
    (tmp_path / "alone" / "notes" / "a.txt").touch()
    splits = read_data(tmp_path / "alone", 8)
    assert splits.sha256 == read_data(pets, 8).sha256
    assert splits.name == "alone"
    assert splits.left_out == {"in other folders": 1}


def test_a_folder_named_train_that_holds_images_is_a_class(tmp_path: Path, classes_at: Draw) -> None:
    assert counts(read_data(classes_at(tmp_path, {"bus": 5, "train": 5}), 8)) == (8, 2, ["bus", "train"])


def test_the_role_of_train_must_be_clear(tmp_path: Path, classes_at: Draw, image_at: Draw) -> None:
    classes_at(tmp_path / "train", {"steam": 2, "diesel": 2})
    classes_at(tmp_path, {"bus": 2})
    assert "train may be a class" in rejection(tmp_path)
    shutil.rmtree(tmp_path / "bus")
    (tmp_path / "notes").mkdir()
    image_at(tmp_path / "train" / "preview.png", 0)
    assert "holds images beside class folders" in rejection(tmp_path)


@pytest.mark.parametrize(
    "names", [("Train", "Test"), ("training", "testing"), ("seg_train", "seg_test"), ("train", "dev")]
)
def test_splits_with_unknown_names_do_not_become_classes(
    tmp_path: Path, classes_at: Draw, names: tuple[str, str]
) -> None:
    for name in names:
        classes_at(tmp_path / name, PETS)
    assert "look like splits" in rejection(tmp_path)


@pytest.mark.parametrize("depth", [1, 3])
def test_folders_around_the_classes_are_skipped(
    tmp_path: Path, classes_at: Draw, depth: int, capsys: pytest.CaptureFixture[str]
) -> None:
    inner = tmp_path.joinpath("flowers", *["flowers"] * depth)
    classes_at(inner, {"daisy": 5, "rose": 5})
    (inner.parent / "LICENSE.txt").touch()
    splits = read_data(tmp_path / "flowers", 8)
    assert counts(splits) == (8, 2, ["daisy", "rose"])
    assert splits.left_out == {"of other kinds": 1}
    assert capsys.readouterr().out.count("reading flowers/, the only folder inside") == depth


def test_splits_may_be_wrapped_too(tmp_path: Path, classes_at: Draw) -> None:
    for split in ("train", "val"):
        classes_at(tmp_path / "archive" / split / split, PETS)
    assert counts(read_data(tmp_path, 8)) == (10, 10, ["cat", "dog"])


def test_a_single_class_with_subfolders_stays_one_class(tmp_path: Path, classes_at: Draw, image_at: Draw) -> None:
    classes_at(tmp_path, {"cat": 5})
    image_at(tmp_path / "cat" / "2020" / "x.png", 0)
    assert counts(read_data(tmp_path, 8)) == (5, 1, ["cat"])


def test_hidden_copies_and_other_files_never_count(
    pets: Path, image_at: Draw, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = read_data(pets, 8)
    for name in (
        "cat/.ipynb_checkpoints/000-checkpoint.png",
        "cat/._001.png",
        "__MACOSX/cat/001.png",
        ".git/dog/x.png",
        "cat/@eaDir/dog0.png",
        "cat/deep/.x/y/z.png",
    ):
        image_at(pets / name, 0)
    for name in ("cat/notes.txt", "labels.csv", "dog/x.gif"):
        (pets / name).touch()
    image_at(pets / "beside.png", 0)
    capsys.readouterr()
    splits = read_data(pets, 8)
    assert splits.sha256 == plain.sha256
    assert splits.left_out == {"hidden": 6, "beside class folders": 1, "of other kinds": 3}
    assert "pets: left out: " in capsys.readouterr().out


def test_linked_folders_are_read_once_and_loops_end(tmp_path: Path, pets: Path, classes_at: Draw) -> None:
    classes_at(tmp_path / "disk2", {"cat": 3}, seed=70)
    (pets / "cat" / "more").symlink_to(tmp_path / "disk2" / "cat")
    (pets / "cat" / "same").symlink_to(tmp_path / "disk2" / "cat")
    (pets / "cat" / "loop").symlink_to(pets / "cat")
    (pets / "dog" / "up").symlink_to(tmp_path)
    (tmp_path / "disk2" / "cat" / "back").symlink_to(pets)
    (pets / "self").symlink_to(".")
    splits = read_data(pets, 8)
    assert counts(splits) == (11, 2, ["cat", "dog"])  # a fifth of 8 and of 5
    assert splits.left_out == {"links to folders already read": 5}


def test_a_folder_cannot_be_two_classes_or_both_splits(tmp_path: Path, pets: Path, classes_at: Draw) -> None:
    (pets / "kitten").symlink_to("cat")
    assert f"{pets}/kitten and {pets}/cat are the same folder" in rejection(pets)
    classes_at(tmp_path / "both" / "train", PETS)
    (tmp_path / "both" / "val").symlink_to("train")
    assert "val/cat and " in rejection(tmp_path / "both")


@pytest.mark.parametrize("place", ["owl", "cat/more"])
def test_a_broken_link_to_a_class_or_folder_is_rejected(pets: Path, place: str) -> None:
    (pets / place).symlink_to("/nowhere/at/all")
    assert f"{pets / place}: broken link" in rejection(pets)


@pytest.mark.parametrize("output", ["runs", "cat/runs"])
def test_the_output_folder_of_a_run_is_not_part_of_the_data(
    pets: Path, image_at: Draw, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = read_data(pets, 8)
    monkeypatch.chdir(pets)
    for _ in range(2):
        image_at(pets / output / "pictures" / "row.png", 0)  # as a run writes there
        image_at(pets / output / "small-pets" / "seed0" / "x.png", 0)
        again = read_data(Path(), 8, index=Path(output) / "data-index")
        assert (again.sha256, again.left_out) == (first.sha256, {})
    other = read_data(pets, 8, index=pets.parent / "elsewhere" / "data-index")
    assert other.sha256 == first.sha256
    assert other.left_out == {"in output folders of runs": 3}  # including the index


def test_the_output_folder_cannot_be_the_data_folder(pets: Path) -> None:
    assert "choose another one with --output" in rejection(pets, index=pets / "data-index")
    assert counts(read_data(pets / "..", 8, index=pets.parent / "runs" / "data-index")) == (8, 2, ["cat", "dog"])
