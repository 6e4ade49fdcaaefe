"""The folders and files in a zip or tar file, as if it were unpacked. It never is: images are read one by one."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imagefolder.data.archive import Member
from imagefolder.data.disk import HIDDEN, IMAGE_SUFFIXES, OTHER_KINDS, Contents, decoded, is_hidden, read_unchanged
from imagefolder.data.rows import ARCHIVE, make_rows, state_of
from imagefolder.data.zips import reader
from imagefolder.errors import InputError
from imagefolder.files import reading

DEEPEST = 100  # nested folders


class PackedEntry(NamedTuple):
    """A file or folder in an archive; `path` from the archive's root."""

    name: str
    path: str

    def is_symlink(self) -> bool:
        return False


class PackedTree:
    """The `Tree` of an archive.

    Args:
        root: the archive.
        status: of its file, before `members` were read.
        members: its files, with normalized names.

    Raises:
        InputError: two members have the same name.
    """

    def __init__(self, root: Path, status: os.stat_result, members: Iterable[Member]) -> None:
        self.root, self.status = root, status
        self.left_out: Counter[str] = Counter()
        self._folders: dict[str, dict[str, Member | None]] = {"": {}}  # None: a folder
        for member in members:
            folder, _, name = member.name.rpartition("/")
            if folder.count("/") > DEEPEST:
                raise InputError(f"{root}: {member.name}: folders nested more than {DEEPEST} deep")
            if self._folder(folder).setdefault(name, member) is not member:
                raise InputError(f"{root}: two members are named {member.name}")

    def _folder(self, folder: str) -> dict[str, Member | None]:
        """The contents of a folder, which is added where it is missing."""
        if folder not in self._folders:
            self._folders[folder] = {}
            above, _, name = folder.rpartition("/")
            if self._folder(above).setdefault(name, None) is not None:
                raise InputError(f"{self.root}: a file and a folder are named {folder}")
        return self._folders[folder]

    def path(self, folder: str) -> Path:
        return self.root / folder

    def is_folder(self, folder: str) -> bool:
        return folder in self._folders

    def contents(self, folder: str) -> Contents:
        folders, files, skipped = [], [], []
        for name, member in sorted(self._folders[folder].items(), key=lambda item: item[0]):
            path = os.path.join(folder, name)
            if is_hidden(name):
                skipped.append((PackedEntry(name, path), HIDDEN))
            elif member is None:
                folders.append((name, path))
            else:
                files.append(PackedEntry(name, path))
        return Contents(folders, files, skipped)

    def leave_out(self, contents: Contents) -> None:
        for entry, why in contents.skipped:
            self.left_out[why] += self.count(entry.path) if self.is_folder(entry.path) else 1

    def count(self, folder: str) -> int:
        inside = self._folders[folder].items()
        return sum(1 if member else self.count(os.path.join(folder, name)) for name, member in inside)

    def rows(self, folder: str) -> np.ndarray:
        members = sorted(self._images(folder))
        names, offsets, sizes, packed, crcs = map(list, zip(*members, strict=True)) if members else ([],) * 5
        return make_rows(
            [os.fsencode(name) for name in names],
            shard=ARCHIVE,
            offset=offsets,
            size=sizes,
            packed=packed,
            crc=crcs,
            cls=-1,
            **state_of(self.status),
        )

    def _images(self, folder: str) -> list[Member]:
        contents, inside = self.contents(folder), self._folders[folder]
        self.leave_out(contents)
        members = (inside[name] for name in contents.named(IMAGE_SUFFIXES))
        found = [member for member in members if member is not None]
        self.left_out[OTHER_KINDS] += len(contents.files) - len(found)
        for _, path in contents.folders:
            found += self._images(path)
        return found

    def text(self, file: str, what: str) -> str | None:
        folder, name = os.path.split(file)
        member = self._folders.get(folder, {}).get(name)
        if member is None:
            return None
        known = (self.status.st_size, self.status.st_mtime_ns, self.status.st_ctime_ns)
        origin = f"{self.root}: {file}"
        with reading(Path(origin), f"{what} in UTF-8"):
            return decoded(
                member.size,
                lambda: read_unchanged(
                    self.root,
                    known,
                    offset=member.offset,
                    size=member.size,
                    origin=origin,
                    read=reader(member.packed, member.crc),
                ),
            )
