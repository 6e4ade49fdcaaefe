"""Files on disk: which of them count as data, and reading one that has not changed since it was listed."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from imagefolder.data.rows import make_rows
from imagefolder.distributed import is_main
from imagefolder.errors import InputError, reason
from imagefolder.files import reading
from imagefolder.progress import console

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
LARGEST_FILE = 2**29  # bytes of an image file
LARGEST_LIST = 2**24  # bytes of a list of classes
SYSTEM_FOLDERS = frozenset(
    {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
)  # added by archivers and file servers

HIDDEN, OTHER_KINDS, LINKS, OUTPUTS = (
    "hidden",
    "of other kinds",
    "links to folders already read",
    "in output folders of runs",
)

Stamp = tuple[int, int, int]  # size in bytes, and the times of the last change of data and of status in ns


class File(NamedTuple):
    """A file below a root: its path there, size in bytes, times of the last change of data and status in ns, inode."""

    name: bytes
    size: int
    mtime: int
    ctime: int
    inode: int


_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def say(text: str) -> None:
    """Print a line; only rank 0 prints."""
    if is_main():
        console.print(text)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is not the user's own: notebook checkpoints, macOS metadata, ..."""
    return name.startswith(".") or name in SYSTEM_FOLDERS


def decoded(size: int, read: Callable[[], bytes]) -> str:
    """The content of a text file of `size` bytes; `ValueError` if it is too large or not in UTF-8."""
    if size > LARGEST_LIST:
        raise ValueError(f"{size:,} bytes are too many")
    return read().decode("utf-8-sig")


def stamp(status: os.stat_result) -> Stamp:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def read_unchanged(
    path: Path,
    known: Stamp,
    *,
    offset: int,
    size: int,
    origin: str,
    sha256: bytes = b"",
    read: Callable[[int, int, int], bytes] = os.pread,
) -> bytes:
    """Read `size` bytes at `offset` of a file that must still have the stamp `known`.

    If only the status has changed (permissions, links, or the content with the time set back), `sha256` decides, where
    it is given. What is not a regular file is never opened: a pipe would block, a device might react. `read` gets the
    descriptor, size and offset, and raises `ValueError` if the bytes there are damaged.

    Raises:
        InputError: naming `origin`: missing, changed, unreadable, not a regular file, or larger than `LARGEST_FILE`.
    """
    data, damage = b"", ""
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            raise InputError(f"{origin}: it is {_KINDS.get(stat.S_IFMT(mode), 'a special file')}, not a file")
        if size > LARGEST_FILE:
            raise InputError(f"{origin}: {size:,} bytes are more than the {LARGEST_FILE:,} allowed for an image")
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            try:
                data = read(descriptor, size, offset)
            except ValueError as error:
                damage = str(error)
            found = stamp(os.fstat(descriptor))  # after reading, to notice a change in the meantime
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        what = "broken link" if path.is_symlink() else "the file is missing; restore it or start the run again"
        raise InputError(f"{origin}: {what}") from None
    except OSError as error:
        raise InputError(f"{origin}: cannot be read ({error.strerror or reason(error)})") from None
    touched = found[2] != known[2] and hashlib.sha256(data).digest() != sha256
    if found[:2] != known[:2] or touched or (not damage and len(data) != size):
        raise InputError(f"{origin}: changed since the images were checked; start the run again")
    if damage:
        raise InputError(f"{origin}: {damage}")
    return data


class Entry(Protocol):
    """A file or folder in a folder; `os.DirEntry` is one."""

    @property
    def name(self) -> str: ...
    @property
    def path(self) -> str: ...
    def is_symlink(self) -> bool: ...


@dataclass(frozen=True)
class Contents:
    """The contents of one folder, sorted by name.

    `folders`: names and real paths; `skipped`: files and folders that do not count as data, with the reason.
    """

    folders: list[tuple[str, str]]
    files: Sequence[Entry]
    skipped: Sequence[tuple[Entry, str]]

    def named(self, suffixes: tuple[str, ...]) -> list[str]:
        """Names of the files that end with one of these suffixes, in either case."""
        return [entry.name for entry in self.files if entry.name.lower().endswith(suffixes)]

    def broken_links(self) -> list[str]:
        """Names of links whose target does not exist."""
        return [entry.name for entry in self.files if entry.is_symlink() and not os.path.exists(entry.path)]


class Tree(Protocol):
    """The folders and files of a data path: of a folder on disk (`Walk`) or in an archive (`packed.PackedTree`).

    Folders and files are given by their path below `root` ("" is `root` itself). What is skipped is counted by reason
    in `left_out`. All methods raise `InputError` if something cannot be read.
    """

    root: Path
    left_out: Counter[str]

    def path(self, folder: str) -> Path:
        """As shown in messages."""
        ...

    def is_folder(self, folder: str) -> bool: ...

    def contents(self, folder: str) -> Contents:
        """The contents of a folder. Counts nothing."""
        ...

    def leave_out(self, contents: Contents) -> None:
        """Count the skipped entries of a folder."""
        ...

    def count(self, folder: str) -> int:
        """Number of files at any depth of a folder."""
        ...

    def rows(self, folder: str) -> np.ndarray:
        """Rows of the images at any depth of a folder, sorted by path; what else is there is counted."""
        ...

    def text(self, file: str, what: str) -> str | None:
        """Content of a text file in UTF-8, described as `what` in errors; None if there is no such file."""
        ...


class Walk:
    """The `Tree` of a folder on disk.

    Links to folders are followed, but no folder is read twice. `output`, the output folder of this run, is ignored.
    Whatever else is skipped is counted by reason in `left_out`.
    """

    def __init__(self, root: Path, output: Path | None = None) -> None:
        self.root = root
        self.output = None if output is None else os.path.realpath(output)
        self.left_out: Counter[str] = Counter()
        self._read: dict[str, tuple[str, str]] = {}  # by real path: the folder requested, and the path it was found at

    def path(self, folder: str) -> Path:
        return self.root / folder

    def is_folder(self, folder: str) -> bool:
        return os.path.isdir(self.path(folder))

    def contents(self, folder: str) -> Contents:
        """The contents of a folder; `InputError` if it cannot be read. Counts nothing."""
        *above, real = self._real_paths(folder)
        return self._list(folder, real, above)

    def files(self, folder: str, suffixes: tuple[str, ...]) -> list[File]:
        """All files at any depth of a folder whose names end with one of `suffixes`, sorted by path.

        Broken links are included whatever their names: something is missing there.

        Raises:
            InputError: a folder cannot be read, or is the same as one found below another requested folder.
        """
        found: list[File] = []
        *above, real = self._real_paths(folder)
        todo = [(folder, real, above)]
        while todo:
            path, real, above = todo.pop()
            other, place = self._read.setdefault(real, (folder, path))
            if other != folder:
                same = f"{self.path(path)} and {self.path(place)} are the same folder"
                raise InputError(f"{same}, so images would count twice; remove one of the links")
            if place != path:
                self.left_out[LINKS] += 1
                continue
            contents = self._list(path, real, above)
            self.leave_out(contents)
            wanted = {*contents.named(suffixes), *contents.broken_links()}
            self.left_out[OTHER_KINDS] += len(contents.files) - len(wanted)
            found += [_file(path, entry) for entry in contents.files if entry.name in wanted]
            todo += [(os.path.join(path, name), there, [*above, real]) for name, there in reversed(contents.folders)]
        return sorted(found)

    def rows(self, folder: str) -> np.ndarray:
        files = self.files(folder, IMAGE_SUFFIXES)
        if not files:
            return make_rows([])
        names, sizes, times, status_times, inodes = map(list, zip(*files, strict=True))
        return make_rows(names, size=sizes, file_size=sizes, mtime=times, ctime=status_times, inode=inodes, cls=-1)

    def text(self, file: str, what: str) -> str | None:
        path = self.path(file)
        if not os.path.lexists(path):
            return None
        if not path.is_file():
            raise InputError(f"{path} is not a regular file")
        with reading(path, f"{what} in UTF-8"):
            return decoded(path.stat().st_size, path.read_bytes)

    def leave_out(self, contents: Contents) -> None:
        for entry, why in contents.skipped:
            whole = os.path.isdir(entry.path) and not entry.is_symlink()
            self.left_out[why] += self._count(entry.path) if whole else 1

    def count(self, folder: str) -> int:
        """Number of readable files at any depth of a folder; links are not followed."""
        return self._count(self.path(folder))

    def _count(self, place: str | Path) -> int:
        number = 0
        for path, folders, files in os.walk(place):
            if os.path.realpath(path) == self.output:
                folders.clear()
            else:
                number += len(files)
        return number

    def _real_paths(self, folder: str) -> list[str]:
        """Real paths of the root, of every folder on the way to `folder`, and of `folder` itself."""
        parts = Path(folder).parts
        return [os.path.realpath(self.path(os.path.join("", *parts[:depth]))) for depth in range(len(parts) + 1)]

    def _list(self, folder: str, real: str, above: list[str]) -> Contents:
        """`real`: the folder's real path; `above`: those of the folders it was reached through."""
        path = self.path(folder)
        try:
            with os.scandir(path) as entries:
                every = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise InputError(f"{path}: the folder cannot be read ({error.strerror or reason(error)})") from None
        folders, files, skipped = [], [], []
        for entry in every:
            if is_hidden(entry.name):
                skipped.append((entry, HIDDEN))
            elif not _is_folder(entry):
                files.append(entry)
            else:
                there = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(real, entry.name)
                if entry.is_symlink() and any(os.path.commonpath([there, each]) == there for each in (*above, real)):
                    skipped.append((entry, LINKS))  # a loop
                elif _is_output(entry.path) and there != self.output:
                    skipped.append((entry, OUTPUTS))
                elif there != self.output:
                    folders.append((entry.name, there))
        return Contents(folders, files, skipped)


def _is_output(folder: str) -> bool:
    """Whether a folder is the output folder of a run, with its models and pictures."""
    marks = (("data-index",), ("records", "report.html"))
    return any(all(os.path.exists(os.path.join(folder, name)) for name in every) for every in marks)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _file(folder: str, entry: Entry) -> File:
    name = os.fsencode(os.path.join(folder, entry.name))
    try:
        status = os.stat(entry.path)
    except OSError:  # a broken link, which is reported when it is read
        return File(name, 0, 0, 0, 0)
    return File(name, *stamp(status), status.st_ino)
