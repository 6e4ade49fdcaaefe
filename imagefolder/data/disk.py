"""Files as they lie on the disk: which of them count, and reading one that is still as it was when it was listed."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from imagefolder.distributed import is_main
from imagefolder.errors import InputError, reason
from imagefolder.progress import console

LARGEST_FILE = 2**29  # bytes of an image file
SYSTEM_FOLDERS = frozenset(
    {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
)  # what archives and file servers add

HIDDEN, OTHER_KINDS, LINKS, OUTPUTS = (
    "hidden",
    "of other kinds",
    "links to folders already read",
    "in output folders of runs",
)

File = tuple[bytes, int, int, int, int]  # path below the root, bytes, times of last change (data, status) in ns, inode
Stamp = tuple[int, int, int]  # bytes, and the times of the last change of data and status in ns

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def say(text: str) -> None:
    """A line for people, from the main process alone."""
    if is_main():
        console.print(text)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is none of the user's: a notebook's copies, what macOS leaves, ..."""
    return name.startswith(".") or name in SYSTEM_FOLDERS


def stamp(status: os.stat_result) -> Stamp:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def read_unchanged(path: Path, known: Stamp, offset: int, size: int, origin: str, sha256: bytes = b"") -> bytes:
    """`size` bytes from `offset` on of a file that must still have its stamp.

    Where the status alone has changed (permissions, links, or content by someone who set the time back), `sha256`
    decides, if it is known.
    What is no regular file is not even opened: a pipe would block, a device may act.

    Raises:
        InputError: naming `origin`: gone, changed, unreadable, no regular file, or more than `LARGEST_FILE` bytes.
    """
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            raise InputError(f"{origin}: it is {_KINDS.get(stat.S_IFMT(mode), 'a special file')}, not a file")
        if size > LARGEST_FILE:
            raise InputError(f"{origin}: {size:,} bytes are more than the {LARGEST_FILE:,} an image may have")
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            data = os.pread(descriptor, size, offset)
            found = stamp(os.fstat(descriptor))  # after reading, so that a change meanwhile shows
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        what = "a link to nowhere" if path.is_symlink() else "it is gone; put it back, or start the run again"
        raise InputError(f"{origin}: {what}") from None
    except OSError as error:
        raise InputError(f"{origin}: cannot be read ({error.strerror or reason(error)})") from None
    touched = found[2] != known[2] and hashlib.sha256(data).digest() != sha256
    if found[:2] != known[:2] or touched or len(data) != size:
        raise InputError(f"{origin}: has changed since the images were checked; start the run again")
    return data


@dataclass(frozen=True)
class Contents:
    """What one folder holds, sorted by name.

    `folders`: names and real paths; `passed_over`: files and folders that do not count, and the reason.
    """

    folders: list[tuple[str, str]]
    files: list[os.DirEntry[str]]
    passed_over: list[tuple[os.DirEntry[str], str]]

    def named(self, suffixes: tuple[str, ...]) -> list[str]:
        """Names of the files that end with one of these suffixes, in whatever case."""
        return [entry.name for entry in self.files if entry.name.lower().endswith(suffixes)]

    def lost(self) -> list[str]:
        """Names of the links to nowhere."""
        return [entry.name for entry in self.files if entry.is_symlink() and not os.path.exists(entry.path)]


class Walk:
    """Looks through a data folder. Folders are named by their path below `root` ("" is `root` itself).

    Links to folders are followed, but no folder is read twice. `output`, the output folder of this run, does not exist
    to it. Whatever else is passed over is counted by reason in `left_out`.
    """

    def __init__(self, root: Path, output: Path | None = None) -> None:
        self.root = root
        self.output = None if output is None else os.path.realpath(output)
        self.left_out: Counter[str] = Counter()
        self._read: dict[str, tuple[str, str]] = {}  # by real path: the folder asked for, and the path it was found at

    def path(self, folder: str) -> Path:
        return self.root / folder

    def contents(self, folder: str) -> Contents:
        """What a folder holds; `InputError` if it cannot be read. Counts nothing."""
        *above, real = self._real_paths(folder)
        return self._list(folder, real, above)

    def files(self, folder: str, suffixes: tuple[str, ...]) -> list[File]:
        """All files at any depth of a folder whose names end with one of `suffixes`, sorted by path.

        Links to nowhere are among them, whatever their names: what they led to is missing.

        Raises:
            InputError: a folder cannot be read, or is the same as one found in another folder asked for.
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
            wanted = {*contents.named(suffixes), *contents.lost()}
            self.left_out[OTHER_KINDS] += len(contents.files) - len(wanted)
            found += [_file(path, entry) for entry in contents.files if entry.name in wanted]
            todo += [(os.path.join(path, name), there, [*above, real]) for name, there in reversed(contents.folders)]
        return sorted(found)

    def leave_out(self, contents: Contents) -> None:
        """Count what does not count in a folder."""
        for entry, why in contents.passed_over:
            whole = _is_folder(entry) and not entry.is_symlink()
            self.left_out[why] += self.count(entry.path) if whole else 1

    def count(self, place: str | Path) -> int:
        """Number of files at any depth of a folder, as far as it can be read; links inside are not followed."""
        number = 0
        for path, folders, files in os.walk(place):
            if os.path.realpath(path) == self.output:
                folders.clear()
            else:
                number += len(files)
        return number

    def _real_paths(self, folder: str) -> list[str]:
        """Real paths of the root, of every folder on the way to `folder`, and of `folder`."""
        parts = Path(folder).parts
        return [os.path.realpath(self.path(os.path.join("", *parts[:depth]))) for depth in range(len(parts) + 1)]

    def _list(self, folder: str, real: str, above: list[str]) -> Contents:
        """`real`: the folder's real path, `above`: those of the folders it was reached through."""
        path = self.path(folder)
        try:
            with os.scandir(path) as entries:
                every = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise InputError(f"{path}: the folder cannot be read ({error.strerror or reason(error)})") from None
        found = Contents([], [], [])
        for entry in every:
            if is_hidden(entry.name):
                found.passed_over.append((entry, HIDDEN))
            elif not _is_folder(entry):
                found.files.append(entry)
            else:
                there = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(real, entry.name)
                if entry.is_symlink() and any(os.path.commonpath([there, each]) == there for each in (*above, real)):
                    found.passed_over.append((entry, LINKS))  # it would lie within itself
                elif _is_output(entry.path) and there != self.output:
                    found.passed_over.append((entry, OUTPUTS))
                elif there != self.output:
                    found.folders.append((entry.name, there))
        return found


def _is_output(folder: str) -> bool:
    """Whether a folder is where a run of these programs keeps its models and pictures."""
    marks = (("data-index",), ("records", "report.html"))
    return any(all(os.path.exists(os.path.join(folder, name)) for name in every) for every in marks)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _file(folder: str, entry: os.DirEntry[str]) -> File:
    name = os.fsencode(os.path.join(folder, entry.name))
    try:
        status = entry.stat()
    except OSError:  # a link to nowhere: why it cannot be read is found where it is read
        return name, 0, 0, 0, 0
    return name, *stamp(status), status.st_ino
