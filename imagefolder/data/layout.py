"""Where the classes of a data set are: recognises the layouts that people and archives commonly use."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from imagefolder.data.disk import IMAGE_SUFFIXES, OTHER_KINDS, Contents, Tree, say
from imagefolder.errors import InputError

TRAIN = "train"
TESTS = ("val", "validation", "valid", "test")  # the first one found is the test split
SHARD, CLASS_NAMES = ".tar", "classes.txt"
ARCHIVES = (".zip", ".tar", ".parquet")
KAGGLE = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC")
KAGGLE_LABELS = "LOC_val_solution.csv"  # beside ILSVRC

BESIDE, ELSEWHERE = "beside class folders", "in other folders"

_SPLIT = re.compile(
    r"(.*[_\- ])?(train|training|val|valid|validation|test|testing|dev|eval)([_\- ]?(set|data|images))?"
)


@dataclass(frozen=True)
class Layout:
    """Folders of class folders or shards, by path below the data folder: train and test, or one that holds both.

    `labels`: a file that lists the classes of the test images if these are in one folder, as Kaggle's are.
    """

    splits: tuple[str, ...]
    shards: bool
    labels: str | None = None

    def require_same_classes(self, root: Path, odd: set[str]) -> None:
        """`InputError` if there are classes that only one of the splits has."""
        if odd:
            pair = " and ".join(map(os.path.basename, self.splits))
            raise InputError(f"{root}: {pair} have different classes: {', '.join(sorted(odd)[:5])}")


def output_folder(root: Path, index: Path | None) -> Path | None:
    """The output folder of a run, which holds the folder of indices: inside a data folder it is not part of the data.

    Raises:
        InputError: it is the data folder itself, where models and pictures would become classes.
    """
    if index is None:
        return None
    output = index.parent
    if os.path.realpath(output) == os.path.realpath(root):
        raise InputError(f"{root}: the output folder is the data folder itself; choose another one with --output")
    return output


def find_layout(tree: Tree) -> Layout:
    """The layout of a data folder. Folders that hold nothing but another folder are skipped.

    `train` and one of `TESTS` are splits. `train` alone is the whole data set, unless it holds images itself: then it
    is a class like any other. Prints what is not obvious and counts what is left out.

    Raises:
        InputError: no class folders, or it is ambiguous which folders are the classes.
    """
    folder, contents = _below_wrappers(tree, "")
    likely = [name for name in _names(contents) if _SPLIT.fullmatch(name.casefold())]
    within = {name: tree.contents(os.path.join(folder, name)) for name in likely}
    test = _test_split(within)
    if test is None:
        _require_no_unknown_splits(tree.path(folder), within)
    if TRAIN not in within or (test is None and _train_is_class(tree, folder, contents, within[TRAIN])):
        _leave_out_files(tree, contents)
        return Layout((folder,), False)
    splits = [TRAIN] if test is None else [TRAIN, test]
    for name in _names(contents):
        if name not in splits:
            reason = f"in {name}/" if name in TESTS else ELSEWHERE
            tree.left_out[reason] += tree.count(os.path.join(folder, name))
    if any(shards_in(within[name]) for name in splits):
        if test is None:
            raise InputError(f"{tree.path(folder)}: train/ holds tar shards, but there is no val/ with shards")
        _leave_out_files(tree, contents, but=CLASS_NAMES)
        return Layout(tuple(os.path.join(folder, name) for name in splits), True)
    if test is None:
        say(f"{tree.path(folder)}: reading train/ alone and holding out part of it as test images")
    _leave_out_files(tree, contents)
    found, labels = [], None
    for name in splits:
        path, inside = _below_wrappers(tree, os.path.join(folder, name))
        if name == test and _images(inside) and not inside.folders and within[TRAIN].folders:
            labels = _labels_of(tree, folder, path)
        else:
            _leave_out_files(tree, inside)
        found.append(path)
    return Layout(tuple(found), False, labels)


def _labels_of(tree: Tree, folder: str, test: str) -> str:
    """The file with the classes of the images in `test`: in `folder`, or up to three folders above it."""
    for depth in range(4):
        place = os.path.normpath(os.path.join(folder, *[".."] * depth, KAGGLE_LABELS))
        if tree.text(place, "a list of labels") is not None:
            return place
    raise InputError(
        f"{tree.path(test)} holds images without class folders, so their classes are unknown; sort them into class "
        f"folders, or for ImageNet from Kaggle put {KAGGLE_LABELS} beside the folder ILSVRC"
    )


def class_folders(tree: Tree, folder: str) -> list[str]:
    """Names of the class folders in a folder; `InputError` if there are none."""
    contents, path = tree.contents(folder), tree.path(folder)
    names = _names(contents)
    if not names:
        if archives := contents.named(ARCHIVES):
            raise InputError(f"data folder {path} holds archives; give one of them: {path / archives[0]}")
        raise InputError(
            f"data folder {path} is empty or has no class folders (expected {path}/CLASS/IMAGE, or tar shards "
            "in train/ and val/)"
        )
    return names


def _below_wrappers(tree: Tree, folder: str) -> tuple[str, Contents]:
    """The first folder at or below `folder` that holds more than a single folder with folders inside.

    From the top of Kaggle's ImageNet it is CLS-LOC; the files and folders beside it describe the same images.

    Raises:
        InputError: a broken link, which may have been a class or a split.
    """
    contents = tree.contents(folder)
    while True:
        for inner in (os.path.join(folder, name) for name in KAGGLE):
            if tree.is_folder(os.path.join(inner, TRAIN)):
                return inner, tree.contents(inner)
        if broken := contents.broken_links():
            raise InputError(f"{tree.path(folder) / broken[0]}: broken link; fix or remove it")
        if len(contents.folders) != 1 or _images(contents):
            return folder, contents
        inner = os.path.join(folder, contents.folders[0][0])
        inside = tree.contents(inner)
        if _images(inside) or not inside.folders:
            return folder, contents
        _leave_out_files(tree, contents)
        say(f"{tree.path(folder)}: reading {contents.folders[0][0]}/, the only folder inside")
        folder, contents = inner, inside


def _test_split(within: dict[str, Contents]) -> str | None:
    """The test split beside train/, among the folders that may be splits.

    A test/ folder of unlabelled images, as in competitions, is not one if train/ has class folders.
    """
    if TRAIN not in within:
        return None
    for name in TESTS:
        if name in within and (name != "test" or _has_classes(within[name]) or not _has_classes(within[TRAIN])):
            return name
    return None


def _has_classes(contents: Contents) -> bool:
    return bool(contents.folders or shards_in(contents))


def _train_is_class(tree: Tree, folder: str, contents: Contents, train: Contents) -> bool:
    """Whether a folder named train, without a test split beside it, is a class."""
    others = [os.path.join(folder, name) for name in _names(contents) if name != TRAIN and name not in TESTS]
    beside = next((other for other in others if _images(tree.contents(other))), None)
    path = tree.path(os.path.join(folder, TRAIN))
    if _images(train):
        if train.folders and beside is None:
            raise InputError(f"{path} holds images beside class folders; move them into a class or elsewhere")
        return True
    if beside is not None:
        raise InputError(
            f"{path} holds folders and {tree.path(beside)} images: train may be a class or the whole training split; "
            "move one of them away"
        )
    return False


def _require_no_unknown_splits(path: Path, within: dict[str, Contents]) -> None:
    """Folders that look like splits under other names must neither become classes nor be skipped."""
    odd = [name for name, inside in within.items() if inside.folders and not _images(inside)]
    if len(odd) > 1:
        named = " and ".join(f"{name}/" for name in odd[:2])
        raise InputError(f"{path}: {named} look like splits, not classes; name them train/ and val/ (or test/)")


def _leave_out_files(tree: Tree, contents: Contents, but: str = "") -> None:
    """Count the files beside class folders or splits."""
    tree.leave_out(contents)
    images = len(_images(contents))
    tree.left_out[BESIDE] += images
    tree.left_out[OTHER_KINDS] += len([entry for entry in contents.files if entry.name != but]) - images


def _names(contents: Contents) -> list[str]:
    return [name for name, _ in contents.folders]


def _images(contents: Contents) -> list[str]:
    return contents.named(IMAGE_SUFFIXES)


def shards_in(contents: Contents) -> list[str]:
    """Names of the tar shards in a folder."""
    return contents.named((SHARD,))
