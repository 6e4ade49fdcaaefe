"""The headers of a tar file: where its images are, and which members must not be read as images."""

from __future__ import annotations

import os
import posixpath
import re
import stat
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

from imagefolder.data.disk import IMAGE_SUFFIXES, is_hidden
from imagefolder.errors import InputError
from imagefolder.files import reading

LONGEST_NAME = 2**16  # bytes that a header may add for a long name
LONGEST_CLASS = 64  # bytes of a .cls member
CHUNK = 2**20
LIST_SUFFIXES = (".txt", ".csv")
REMEDY = "; download or create it again"

_EXTENSIONS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


class Member(NamedTuple):
    """A file in an archive: the position and number of its bytes.

    In a zip, `offset` is that of its header, `packed` the number of bytes it takes there and `crc` its CRC-32.
    """

    name: str
    offset: int
    size: int
    packed: int = 0
    crc: int = 0


@dataclass
class Headers:
    """The contents of a tar file: images by name, class indices (from .cls members) by key, the name without suffix.

    `lists`: files that may describe the classes, such as classes.txt, in folders that need not be theirs.
    """

    images: dict[str, Member] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)
    lists: list[Member] = field(default_factory=list)
    hidden: int = 0
    other_kinds: int = 0

    def class_indices(self, tar: Path) -> list[int]:
        """The class index of every image; -1 for all if the tar file has no .cls members.

        Raises:
            InputError: naming `tar` and an image without class index, or two with the same.
        """
        if not self.classes:
            return [-1] * len(self.images)
        keys = [posixpath.splitext(name)[0] for name in self.images]
        for name, key in zip(self.images, keys, strict=True):
            if key not in self.classes:
                raise InputError(f"{tar}: {name} has no .cls member, unlike other images of the shard")
        if len(set(keys)) < len(keys):
            raise InputError(f"{tar}: two images are named {Counter(keys).most_common(1)[0][0]}")
        return [self.classes[key] for key in keys]


def read_headers(shard: Path) -> Headers:
    """Read all headers of a shard. Names are normalized: "./cats/a.png" becomes "cats/a.png".

    Raises:
        InputError: naming the shard, and the member where one is to blame: damage, another archive after the end, an
            image that is not a regular file, a name that points outside the shard, an invalid class index.
    """
    found = Headers()
    with reading(shard, "a tar file", REMEDY):
        if not stat.S_ISREG(shard.stat().st_mode):  # opening a pipe would block
            raise InputError(f"{shard}: not a regular file")
        options = {"tarinfo": _Header, "encoding": "utf-8", "errors": "surrogateescape"}
        with shard.open("rb") as file, tarfile.open(fileobj=file, mode="r:", **options) as tar:
            for member in tar:
                _add(found, member, file, shard)
                vars(tar)["members"].clear()  # tarfile keeps a kB for each
            _require_end(shard, file, tar.offset)
    if not found.images:
        raise InputError(f"{shard}: holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return found


def _add(found: Headers, member: tarfile.TarInfo, file: IO[bytes], shard: Path) -> None:
    """Add one member of the shard, which is open as `file`, to what was found."""
    if member.isdir():
        return
    origin = f"{shard}: {member.name}"
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    if any(is_hidden(part) for part in parts if part != ".."):
        found.hidden += 1
        return
    name = "/".join(parts)
    key, suffix = posixpath.splitext(name)
    is_image = suffix.lower() in IMAGE_SUFFIXES
    if not is_image and suffix != ".cls":
        if suffix in LIST_SUFFIXES and member.isreg() and ".." not in parts:
            found.lists.append(Member(name, member.offset_data, member.size))
        found.other_kinds += 1
        return
    if member.name.startswith("/") or ".." in parts:
        raise InputError(f"{origin}: the name points outside the shard; create the shard with relative names")
    if not member.isreg() or member.issparse():
        raise InputError(f"{origin}: {_kind(member)}, not a regular file; store the image itself in the shard")
    if is_image:
        if name in found.images:
            raise InputError(f"{shard}: two images are named {name}")
        found.images[name] = Member(name, member.offset_data, member.size)
    elif member.size > LONGEST_CLASS:
        raise InputError(f"{origin}: expected a class index, not {member.size:,} bytes")
    else:
        found.classes[key] = _class_index(os.pread(file.fileno(), member.size, member.offset_data), origin)


def _kind(member: tarfile.TarInfo) -> str:
    if member.islnk() or member.issym():
        return f"a link to {member.linkname}"
    return "a sparse file" if member.issparse() else "a device or pipe"


def _class_index(text: bytes, origin: str) -> int:
    index = int(text) if re.fullmatch(rb"\s*[0-9]+\s*", text) else -1
    if not 0 <= index < 2**31:
        raise InputError(f"{origin}: expected a class index, not {text[:20]!r}")
    return index


def _require_end(shard: Path, file: IO[bytes], offset: int) -> None:
    """The last member must be followed by a block of zeros, and that by nothing but zeros.

    `tarfile` takes damage after the first member for the end of the archive, and ignores what follows an end.
    """
    file.seek(offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise InputError(f"{shard}: truncated or damaged at byte {offset}{REMEDY}")
    while chunk := file.read(CHUNK):
        if chunk.count(0) < len(chunk):
            raise InputError(
                f"{shard}: more data follows the end of the archive at byte {offset}; if tar files were concatenated, "
                "keep them as separate shards"
            )


class _Header(tarfile.TarInfo):
    """A header that is rejected if it announces a name so long that reading it would fill the memory."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> _Header:
        header = super().frombuf(buf, encoding, errors)
        if header.type in _EXTENSIONS and header.size > LONGEST_NAME:
            raise tarfile.ReadError(f"a name or header of {header.size:,} bytes")
        return header
