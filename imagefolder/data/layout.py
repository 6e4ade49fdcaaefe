"""Where in a data folder the classes are: layouts as people and archives make them, without being told."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from imagefolder.data.disk import OTHER_KINDS, Contents, Walk, say
from imagefolder.errors import InputError

TRAIN = "train"
TESTS = ("val", "validation", "valid", "test")  # the first that is there is the test split
SHARD, CLASS_NAMES = ".tar", "classes.txt"

BESIDE, ELSEWHERE = "beside class folders", "in other folders"

_SPLIT = re.compile(
    r"(.*[_\- ])?(train|training|val|valid|validation|test|testing|dev|eval)([_\- ]?(set|data|images))?"
)


@dataclass(frozen=True)
class Layout:
    """Folders of class folders or shards, by their path below the data folder; `test` None: part of `train` is."""

    train: str
    test: str | None
    shards: bool


def output_folder(root: Path, index: Path | None) -> Path | None:
    """The folder of a run's output, which holds the folder of indices: where it lies among images, it holds none.

    Raises:
        InputError: it is the data folder itself, in which models and pictures would become classes.
    """
    if index is None:
        return None
    output = index.parent
    if os.path.realpath(output) == os.path.realpath(root):
        raise InputError(f"{root}: the output folder is the data folder itself; choose another one with --output")
    return output


def find_layout(walk: Walk) -> Layout:
    """The layout of a data folder, once folders that hold nothing but another one are passed.

    `train` and one of `TESTS` are splits. `train` alone is the whole, unless it holds images itself: then it is a class
    like others. Says what is not obvious and counts what is left out.

    Raises:
        InputError: no class folders, or it is not clear which folders are the classes.
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
        return Layout(folder, None, False)
    splits = [TRAIN] if test is None else [TRAIN, test]
    for name in _names(contents):
        if name not in splits:
            reason = f"in {name}/" if name in TESTS else ELSEWHERE
            walk.left_out[reason] += walk.count(walk.path(folder) / name)
    if any(shards_in(within[name]) for name in splits):
        if test is None:
            raise InputError(f"{walk.path(folder)}: train/ holds tar shards, but there is no val/ with some")
        _leave_out_files(walk, contents, but=CLASS_NAMES)
        return Layout(os.path.join(folder, TRAIN), os.path.join(folder, test), True)
    if test is None:
        say(f"{walk.path(folder)}: reading train/ alone, a part of which is for testing")
    _leave_out_files(walk, contents)
    found = []
    for name in splits:
        path, inside = _below_wrappers(walk, os.path.join(folder, name))
        _leave_out_files(walk, inside)
        found.append(path)
    return Layout(found[0], None if test is None else found[1], False)


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
    """The first folder from `folder` on that holds more than a single folder with folders inside.

    Raises:
        InputError: a link to nowhere, where there may have been a class or a split.
    """
    contents = walk.contents(folder)
    while True:
        if lost := contents.lost():
            raise InputError(f"{walk.path(folder) / lost[0]}: a link to nowhere; mend or remove it")
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
    """The test split beside train/, of the folders that may be splits.

    A test/ of images without classes, as contests have it, is none if train/ has class folders.
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
    """Whether a folder called train, without a test split beside it, is a class."""
    others = [os.path.join(folder, name) for name in _names(contents) if name != TRAIN and name not in TESTS]
    beside = next((other for other in others if _images(walk.contents(other))), None)
    path = walk.path(os.path.join(folder, TRAIN))
    if _images(train):
        if train.folders and beside is None:
            raise InputError(f"{path} holds images beside class folders; move them into a class, or away")
        return True
    if beside is not None:
        raise InputError(
            f"{path} holds folders and {walk.path(beside)} images: train may be a class, or all the training images; "
            "move one of the two away"
        )
    return False


def _require_no_unknown_splits(path: Path, within: dict[str, Contents]) -> None:
    """Folders that look like splits under other names must not become classes, or be passed over."""
    odd = [name for name, inside in within.items() if inside.folders and not _images(inside)]
    if len(odd) > 1:
        named = " and ".join(f"{name}/" for name in odd[:2])
        raise InputError(f"{path}: {named} look like splits, not classes; call them train/ and val/ (or test/)")


def _leave_out_files(walk: Walk, contents: Contents, but: str = "") -> None:
    """Count what lies beside class folders or splits."""
    walk.leave_out(contents)
    images = len(_images(contents))
    walk.left_out[BESIDE] += images
    walk.left_out[OTHER_KINDS] += len([entry for entry in contents.files if entry.name != but]) - images


def _names(contents: Contents) -> list[str]:
    return [name for name, _ in contents.folders]


def _images(contents: Contents) -> list[str]:
    return contents.named(IMG_EXTENSIONS)


def shards_in(contents: Contents) -> list[str]:
    """Names of the tar shards in a folder."""
    return contents.named((SHARD,))
