"""Where the classes of a data folder are: recognises the layouts that people and archives commonly use."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from imagefolder.data.disk import IMAGE_SUFFIXES, OTHER_KINDS, Contents, Walk, say
from imagefolder.errors import InputError

TRAIN = "train"
TESTS = ("val", "validation", "valid", "test")  # the first one found is the test split
SHARD, CLASS_NAMES = ".tar", "classes.txt"

BESIDE, ELSEWHERE = "beside class folders", "in other folders"

_SPLIT = re.compile(
    r"(.*[_\- ])?(train|training|val|valid|validation|test|testing|dev|eval)([_\- ]?(set|data|images))?"
)


@dataclass(frozen=True)
class Layout:
    """Folders of class folders or shards, by path below the data folder: train and test, or one that holds both."""

    splits: tuple[str, ...]
    shards: bool

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


def find_layout(walk: Walk) -> Layout:
    """The layout of a data folder. Folders that hold nothing but another folder are skipped.

    `train` and one of `TESTS` are splits. `train` alone is the whole data set, unless it holds images itself: then it
    is a class like any other. Prints what is not obvious and counts what is left out.

    Raises:
        InputError: no class folders, or it is ambiguous which folders are the classes.
    """
    if not os.path.isdir(walk.root):
        raise InputError(f"data folder {walk.root} does not exist or is not a folder")
    folder, contents = _below_wrappers(walk, "")
    likely = [name for name in _names(contents) if _SPLIT.fullmatch(name.casefold())]
    within = {name: walk.contents(os.path.join(folder, name)) for name in likely}
    test = _test_split(within)
    if test is None:
        _require_no_unknown_splits(walk.path(folder), within)
    if TRAIN not in within or (test is None and _train_is_class(walk, folder, contents, within[TRAIN])):
        _leave_out_files(walk, contents)
        return Layout((folder,), shards=False)
    splits = [TRAIN] if test is None else [TRAIN, test]
    for name in _names(contents):
        if name not in splits:
            reason = f"in {name}/" if name in TESTS else ELSEWHERE
            walk.left_out[reason] += walk.count(walk.path(folder) / name)
    if any(shards_in(within[name]) for name in splits):
        if test is None:
            raise InputError(f"{walk.path(folder)}: train/ holds tar shards, but there is no val/ with shards")
        _leave_out_files(walk, contents, but=CLASS_NAMES)
        return Layout(tuple(os.path.join(folder, name) for name in splits), shards=True)
    if test is None:
        say(f"{walk.path(folder)}: reading train/ alone and holding out part of it as test images")
    _leave_out_files(walk, contents)
    found = []
    for name in splits:
        path, inside = _below_wrappers(walk, os.path.join(folder, name))
        _leave_out_files(walk, inside)
        found.append(path)
    return Layout(tuple(found), shards=False)


def class_folders(walk: Walk, folder: str) -> list[str]:
    """Names of the class folders in a folder; `InputError` if there are none."""
    names, path = _names(walk.contents(folder)), walk.path(folder)
    if not names:
        raise InputError(
            f"data folder {path} is empty or has no class folders (expected {path}/CLASS/IMAGE, or tar shards "
            "in train/ and val/)"
        )
    return names


def _below_wrappers(walk: Walk, folder: str) -> tuple[str, Contents]:
    """The first folder at or below `folder` that holds more than a single folder with folders inside.

    Raises:
        InputError: a broken link, which may have been a class or a split.
    """
    contents = walk.contents(folder)
    while True:
        if broken := contents.broken_links():
            raise InputError(f"{walk.path(folder) / broken[0]}: broken link; fix or remove it")
        if len(contents.folders) != 1 or _images(contents):
            return folder, contents
        inner = os.path.join(folder, contents.folders[0][0])
        inside = walk.contents(inner)
        if _images(inside) or not inside.folders:
            return folder, contents
        _leave_out_files(walk, contents)
        say(f"{walk.path(folder)}: reading {contents.folders[0][0]}/, the only folder inside")
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


def _train_is_class(walk: Walk, folder: str, contents: Contents, train: Contents) -> bool:
    """Whether a folder named train, without a test split beside it, is a class."""
    others = [os.path.join(folder, name) for name in _names(contents) if name != TRAIN and name not in TESTS]
    beside = next((other for other in others if _images(walk.contents(other))), None)
    path = walk.path(os.path.join(folder, TRAIN))
    if _images(train):
        if train.folders and beside is None:
            raise InputError(f"{path} holds images beside class folders; move them into a class or elsewhere")
        return True
    if beside is not None:
        raise InputError(
            f"{path} holds folders and {walk.path(beside)} images: train may be a class or the whole training split; "
            "move one of them away"
        )
    return False


def _require_no_unknown_splits(path: Path, within: dict[str, Contents]) -> None:
    """Folders that look like splits under other names must neither become classes nor be skipped."""
    odd = [name for name, inside in within.items() if inside.folders and not _images(inside)]
    if len(odd) > 1:
        named = " and ".join(f"{name}/" for name in odd[:2])
        raise InputError(f"{path}: {named} look like splits, not classes; name them train/ and val/ (or test/)")


def _leave_out_files(walk: Walk, contents: Contents, but: str = "") -> None:
    """Count the files beside class folders or splits."""
    walk.leave_out(contents)
    images = len(_images(contents))
    walk.left_out[BESIDE] += images
    walk.left_out[OTHER_KINDS] += len([entry for entry in contents.files if entry.name != but]) - images


def _names(contents: Contents) -> list[str]:
    return [name for name, _ in contents.folders]


def _images(contents: Contents) -> list[str]:
    return contents.named(IMAGE_SUFFIXES)


def shards_in(contents: Contents) -> list[str]:
    """Names of the tar shards in a folder."""
    return contents.named((SHARD,))
