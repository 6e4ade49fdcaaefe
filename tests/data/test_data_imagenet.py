"""ImageNet's class map: labels mean what they mean to the released models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from imagefolder.data.folder import read_data
from imagefolder.data.imagenet import imagenet_labels
from imagefolder.errors import InputError

Draw = Callable[..., Path]


@pytest.fixture(scope="module")
def synsets() -> list[str]:
    from timm.data import ImageNetInfo

    return ImageNetInfo("imagenet-1k").label_names()


def test_known_positions_in_the_list(synsets: list[str]) -> None:
    """Class 0 is the tench, 207 the golden retriever, 999 toilet tissue; sorted by synset."""
    assert (synsets[0], synsets[207], synsets[999]) == ("n01440764", "n02099601", "n15075141")
    assert synsets == sorted(synsets)


def test_imagenet_is_labelled_0_to_999(synsets: list[str]) -> None:
    assert imagenet_labels(synsets, "x") == list(range(1000))


def test_the_first_wrong_class_is_named(synsets: list[str]) -> None:
    swapped = [*synsets[:5], synsets[7], synsets[6], synsets[5], *synsets[8:]]
    with pytest.raises(InputError, match=rf"/data: class 5 is {synsets[7]}, but ImageNet's is {synsets[5]}"):
        imagenet_labels(swapped, "/data")
    with pytest.raises(InputError, match="class 999 is n99999999"):
        imagenet_labels([*synsets[:999], "n99999999"], "/data")


def test_a_subset_is_mapped_to_its_indices(synsets: list[str]) -> None:
    assert imagenet_labels([synsets[i] for i in (207, 3, 999)], "x") == [207, 3, 999]


@pytest.mark.parametrize(
    "classes", [["cats", "dogs"], ["n01440764", "dogs"], ["n01440764", "n00000001"], ["n1440764"], ["0", "1"]]
)
def test_other_classes_are_not_mapped(classes: list[str]) -> None:
    assert imagenet_labels(classes, "x") is None


def test_splits_carry_the_map(tmp_path: Path, classes_at: Draw, capsys: pytest.CaptureFixture[str]) -> None:
    root = classes_at(tmp_path / "few", {"n02099601": 2, "n01440764": 2})
    splits = read_data(root, 8)
    assert splits.classes == ["n01440764", "n02099601"]
    assert splits.imagenet_labels == [0, 207]
    assert "2 of ImageNet's 1000 classes" in capsys.readouterr().out
    assert read_data(classes_at(tmp_path / "animals", {"cats": 2}), 8).imagenet_labels is None
